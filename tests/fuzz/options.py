"""Random types and values for every option of the functions, the passes and the command.

Each case ends in success or in the package's own error: one line of fewer than 300 characters. The command ends with
exit code 0, or with 2 (1 where something fails while working) and that one line. A case follows from the seed and its
number: `python -m tests.fuzz options --seed 7 --case 123 -v` shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import enum
import fractions
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.cli import main
from ov_weight_compression.evaluation import ComparisonProtocol, compare, inspect
from ov_weight_compression.ir_utils.errors import CompressionError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import (
    DecompressWeights,
    WeightCompression,
    apply_weight_compression,
    apply_weight_decompression,
)
from ov_weight_compression.passes.options import OPTIONS
from tests.fuzz import campaign
from tests.fuzz.campaign import Failure
from tests.models import layers

LONGEST = 300


class _Hostile:
    """An object all of whose methods raise."""

    def _raise(self, *_: Any) -> Any:
        raise ZeroDivisionError("a method that raises\nand says so in two lines")

    __eq__ = __bool__ = __str__ = __repr__ = __len__ = __iter__ = __index__ = __float__ = __lt__ = _raise  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]
    names = patterns = property(_raise)


class _Text(str):
    """A text whose methods raise."""

    def lower(self) -> str:
        raise KeyError("lower")

    def strip(self, _: Any = None) -> str:
        raise KeyError("strip")


class _Other(enum.Enum):
    MODE = "int4_sym"
    NUMBER = 4
    NOTHING = "nothing"


def values(random: np.random.Generator) -> list[Any]:
    """Things of every type."""
    whole = int(random.integers(-(2**40), 2**40))
    return [
        *(
            None,
            True,
            False,
            0,
            1,
            -1,
            2,
            32,
            whole,
            2**31,
            2**63,
            -(2**63),
            10**400,
            10**5000,
            np.int64(8),
            np.uint8(3),
        ),
        *(
            0.5,
            -0.0,
            float("nan"),
            float("inf"),
            -float("inf"),
            1e308,
            np.float16(1),
            np.float64("nan"),
            np.bool_(True),
        ),
        *("", " ", "auto", "int4_sym", "INT4_ASYM", "none", "random", "²", "٣", "1e3", "nan", "re:(", "re:.*", "*"),
        *(
            "a\nb",
            "\0",
            "x" * 20000,
            "\ud800",
            "[" * 300,
            "re:" + "(" * 2000,
            "🙂",
            "%s %d {0}",
            "1" * 5000,
        ),
        *(b"", b"int4_sym", bytearray(4), 1j, ..., NotImplemented, fractions.Fraction(1, 2), range(3), slice(3)),
        *([], [1], [[1, [2]], 3], [None], ["a", 1], ["x" * 20000], list(range(1000)), (), ("a",), [("a", "int8_sym")]),
        *([("layer_0", {"mode": "int4_sym", "group_size": 10**30})], [("a", _Hostile())], [(_Hostile(), "b")], [[]]),
        *({}, {"a": 1}, {"names": ["layer_0"]}, {"names": 1}, {1: 2}, {"mode": "nf4"}, set(), {1, 2}, frozenset("ab")),
        *(
            np.array(3),
            np.array([]),
            np.array([1, 2]),
            np.linspace(-1, 1, 4),
            np.zeros((2, 2)),
            np.full((40, 40), 1e38),
        ),
        *(np.array(["a"]), np.array([object()]), np.array([np.nan]), np.ones((1, 64), np.float32), np.array(None)),
        *(
            [np.ones((1, 64), np.float32)],
            [{0: np.ones((1, 64), np.float32)}],
            [{"nobody": 1}],
            [np.full((1, 64), 1e25)],
        ),
        *([{_Hostile: 1}], [{0: _Hostile()}], [np.ones((1, 64), np.float32) * np.nan], [{0: "text"}], [np.ones(3)]),
        *(
            _Hostile(),
            [_Hostile()],
            _Text("int4_sym"),
            object(),
            object,
            int,
            len,
            lambda: 1,
            _Other.MODE,
            _Other.NUMBER,
        ),
        *(
            (number for number in (1, 2)),
            iter([]),
            (1 / 0 for _ in range(3)),
            io.StringIO("a"),
            Path("/"),
            Path("x" * 300),
        ),
        *(ov.Tensor(np.ones((2, 2), np.float32)), ov.Type.f32, ov.Shape([1, 2]), np.dtype("f4"), np.datetime64("2020")),
    ]


def _words(random: np.random.Generator) -> list[str]:
    found = [value for value in values(random) if type(value) is str and "\0" not in value]
    return [
        *found,
        "-1",
        "32",
        "0.5",
        "=",
        ":",
        "a=",
        "=b",
        "a=b=int8_sym",
        "a=int4_sym:",
        "a=int4_sym:²",
        "name:",
        "type:",
    ]


def _model() -> ov.Model:
    return layers(2)


Target = Callable[[dict[str, Any], Path], Any]


def _compared(options: dict[str, Any], folder: Path) -> Any:
    names = {field.name for field in fields(ComparisonProtocol)}
    protocol = {name: options.pop(name) for name in names & set(options)}
    made = {"protocol": ComparisonProtocol(**protocol)} if protocol else {}
    return compare(_model(), _model(), **{"layers": False, **made, **options})


TARGETS: dict[str, tuple[Target, tuple[str, ...]]] = {
    "apply_weight_compression": (
        lambda options, folder: apply_weight_compression(_model(), **options),
        tuple(OPTIONS),
    ),
    "WeightCompression": (
        lambda options, folder: WeightCompression(**options).run_on_model(_model()),
        tuple(OPTIONS),
    ),
    "preview": (lambda options, folder: WeightCompression(**options).preview(_model()), tuple(OPTIONS)),
    "the model": (
        lambda options, folder: [
            function(options["model"]) for function in (apply_weight_compression, apply_weight_decompression)
        ],
        ("model",),
    ),
    "DecompressWeights": (lambda options, folder: DecompressWeights(**options), ("dtype", "lazy")),
    "apply_weight_decompression": (
        lambda options, folder: apply_weight_decompression(_model(), **options),
        ("dtype", "lazy"),
    ),
    "compare": (
        _compared,
        (
            *("data", "window", "stride", "context", "windows", "score_last", "tokenizer", "batch", "shapes", "device"),
            *("as_deployed", "layers", "layer_samples", "save_base", "base_logits", "protocol"),
        ),
    ),
    "compared models": (lambda options, folder: compare(options["base"], _model()), ("base",)),
    "inspect": (
        lambda options, folder: inspect(**{"model": _model(), **options}),
        ("model", "device"),
    ),
    "save_model": (lambda options, folder: save_model(options["model"], folder / "m.xml"), ("model",)),
}
_FLAGS = ("output", "report", "rule", "ignore", "data", "no-such-flag")


def check_case(seed: int, number: int, told: Callable[[str], None] = lambda text: None) -> list[Failure]:
    """What is wrong in one case; `told` is given what it is."""
    random = np.random.default_rng([seed, number])
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(name)
        try:
            found = (_check_command if random.random() < 0.3 else _check_function)(random, Path(name), told)
        finally:
            os.chdir(before)
    return [Failure(one.kind, one.detail.encode("ascii", "backslashreplace").decode()) for one in found]


def _check_function(random: np.random.Generator, folder: Path, told: Callable[[str], None]) -> list[Failure]:
    where = str(random.choice(list(TARGETS)))
    target, names = TARGETS[where]
    options: dict[str, Any] = {}
    if "mode" in names and random.random() < 0.7:
        options.update(mode="int4_sym", group_size=32, all_layers=True)
        if random.random() < 0.3:
            options.update(dataset=[np.ones((1, 64), np.float32)], scale_estimation=True)
    chosen = [str(one) for one in random.choice(names, size=min(len(names), int(random.integers(1, 3))), replace=False)]
    for one in chosen:
        every = values(random)
        options[one] = every[int(random.integers(len(every)))]
    place = f"{where}({', '.join(f'{one}: {_type(options[one])}' for one in chosen)})"
    told(f"{place} {[_shown(options[one]) for one in chosen]}")
    try:
        target(dict(options), folder)
    except CompressionError as error:
        return _judge(str(error), place)
    except Exception as error:
        return [Failure(f"{type(error).__name__} from {where}", f"{place}: {str(error)[:200]!r}")]
    return []


def _check_command(random: np.random.Generator, folder: Path, told: Callable[[str], None]) -> list[Failure]:
    ov.save_model(_model(), "m.xml", compress_to_fp16=False)
    names = [*(name.replace("_", "-") for name, option in OPTIONS.items() if option.flag is not None), *_FLAGS]
    words = ["compress", "m.xml", *(["--dry-run"] if random.random() < 0.6 else ["-o", "out.xml"])]
    if random.random() < 0.5:
        words += ["--mode", "int4_sym", "--group-size", "32"]
    for name in random.choice(names, size=int(random.integers(1, 3)), replace=False):
        every = _words(random)
        word = every[int(random.integers(len(every)))]
        words += [f"--{name}={word}"] if random.random() < 0.8 else [f"--{name}", word]
    place = " ".join(word[:40] for word in words)
    told(place)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 99
    except Exception as error:
        return [Failure(f"{type(error).__name__} from the command", f"{place}: {str(error)[:200]!r}")]
    said = err.getvalue()
    if code == 0:
        return []
    given = max(map(len, words))  # a path that is not there is said whole
    found = _judge(said.removesuffix("\n"), place, LONGEST + given)
    if code not in (1, 2) or not said.startswith("ov-compress: ") or "a fault of this program" in said:
        found.append(Failure(f"exit code {code}", f"{place}: {said[:200]!r}"))
    return found


def _judge(message: str, place: str, longest: int = LONGEST) -> list[Failure]:
    if "\n" in message or not message.isprintable():
        return [Failure("a message of several lines", f"{place}: {message[:200]!r}")]
    if not 10 < len(message) < longest:
        return [Failure("a message too long or too short", f"{place}: {len(message)}: {message[:200]!r}")]
    return []


def _type(value: Any) -> str:
    return type(value).__name__


def _shown(value: Any) -> str:
    try:
        return repr(value)[:100]
    except Exception:
        return f"a {_type(value)}"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this campaign."""
    campaign.add_arguments(parser, cases=3000)


def run(parsed: argparse.Namespace) -> int:
    """Run it; 1 where something was found."""

    def check(number: int, tell: Callable[[str], None]) -> tuple[list[Failure], list[str]]:
        return check_case(parsed.seed, number, tell), []

    return campaign.run("options", parsed, check)
