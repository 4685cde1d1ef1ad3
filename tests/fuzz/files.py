"""Damaged and strange files given to the command: it ends in time, with exit code 0, 1 or 2, with one line on stderr
where that is not 0, and leaves nothing behind then.

Each case damages one of the files that a run reads (bits flipped, cut, spliced, swapped with another kind, values of
other types in JSON) and runs one of the commands on it: `python -m tests.fuzz files --seed 1 --case 123 -v` shows it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.cli import main
from tests.fuzz import campaign
from tests.fuzz.campaign import Failure
from tests.models import layers, llama

SECONDS = 20
LONGEST = 1000
_STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    2**70,
    1e400,
    0.5,
    "",
    "x" * 300,
    "\ud800",
    "\0",
    [],
    [[]],
    {},
    {"a": 1},
    [None],
]


@cache
def material() -> dict[str, bytes]:
    """Whole files of every kind that the commands read, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ov.save_model(llama(dtype="f16"), folder / "lm.xml")
        ov.save_model(layers(2, 64), folder / "m.xml")
        assert main([str(folder / "lm.xml"), "-o", str(folder / "c.xml"), "--mode", "int4_sym", "--quiet"]) == 0
        np.save(folder / "ids.npy", np.arange(256) % 60)
        np.save(folder / "x.npy", np.ones((4, 1, 64), np.float32))
        np.savez(folder / "x.npz", x=np.ones((4, 1, 64), np.float32))
        np.savez(folder / "ids.npz", input_ids=np.arange(64).reshape(4, 16) % 60)
        (folder / "text.txt").write_text("def f(x):\n    return x\n" * 20)
        config = {"model_type": "llama", "max_position_embeddings": 128, "vocab_size": 64}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "openvino_config.json").write_text(json.dumps({"dtype": "fp16", "quantization_config": {"bits": 4}}))
        with contextlib.suppress(ImportError):
            from tokenizers import Tokenizer, models, pre_tokenizers

            tokenizer = Tokenizer(models.WordLevel({"def": 1, "f": 2, "x": 3, "return": 4, "?": 0}, unk_token="?"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.save(str(folder / "tokenizer.json"))
        with contextlib.suppress(ImportError, AssertionError):
            words = ["--data", "random", "--mode", "int4_sym", "--quiet", "--scale-estimation", "--dry-run"]
            assert main([str(folder / "lm.xml"), *words, "--statistics-path", str(folder / "st.safetensors")]) == 0
        with contextlib.suppress(ImportError):
            import onnx

            weight = onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
            made = onnx.helper.make_graph(
                [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
                "g",
                [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])],
                [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 64])],
                [weight],
            )
            opsets = [onnx.helper.make_opsetid("", 18)]
            onnx.save(onnx.helper.make_model(made, opset_imports=opsets, ir_version=9), folder / "o.onnx")
        words = ["compare", str(folder / "lm.xml"), str(folder / "c.xml"), "--quiet", "--data", str(folder / "ids.npy")]
        assert main([*words, "--window", "32", "--no-layers", "--save-base", str(folder / "base.logits")]) == 0
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def damaged(name: str, content: bytes, dice: random.Random) -> bytes:
    """The content of a file after something has happened to it."""
    if name.endswith(".json") and dice.random() < 0.6:
        return _json(content, dice)
    if name.endswith(".xml") and dice.random() < 0.5:
        return _xml(content, dice)
    kind = dice.randrange(9)
    place = dice.randrange(len(content) + 1)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[: len(content) - dice.randrange(1, 100)]
    if kind == 2:
        other = dice.choice(list(material().values()))
        return content[:place] + other[dice.randrange(len(other)) :][:10000]
    if kind == 3:
        return dice.choice(list(material().values()))
    if kind == 4:
        return content[:place] + content[min(len(content), place + dice.randrange(1, 64)) :]
    if kind == 5:
        return content + dice.randbytes(dice.randrange(1, 100))
    if kind == 6:
        return dice.choice(
            [b"", b"\0" * 200, b"[" * 100000, b"\xff\xfe" * 50, dice.randbytes(500), b"{}", b"[1]", b"null"]
        )
    changed = bytearray(content)
    reach = min(len(content), 400) if kind == 7 else len(content)  # headers are where it matters
    for _ in range(dice.choice([1, 1, 2, 8])):
        if reach:
            changed[dice.randrange(reach)] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _json(content: bytes, dice: random.Random) -> bytes:
    """Some value in a JSON file of another type."""
    read = json.loads(content)
    where: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            where.append((value, key))
            if isinstance(inner, (dict, list)):
                visit(inner)

    visit(read)
    if not where or dice.random() < 0.1:
        return json.dumps(dice.choice(_STRANGE)).encode()
    holder, key = dice.choice(where)
    if isinstance(holder, dict) and dice.random() < 0.3:
        del holder[key]
    else:
        holder[key] = dice.choice(_STRANGE)
    return json.dumps(read).encode()


def _xml(content: bytes, dice: random.Random) -> bytes:
    """An attribute's value, a tag or a piece of the XML replaced."""
    import re

    found = list(re.finditer(rb'"([^"]*)"', content))
    one = dice.choice(found)
    value = dice.choice(
        [
            b"",
            b"-1",
            b"0",
            b"99",
            b"18446744073709551616",
            b"x",
            b"1,-1,?",
            b"f64",
            b"u4",
            b"\xff",
            b"&#0;",
            found[-1][1],
        ]
    )
    return content[: one.start(1)] + value + content[one.end(1) :]


def prepare(folder: Path, dice: random.Random) -> tuple[str, ...]:
    """Put files into a folder, some of them damaged; the words of the command."""
    whole = dict(material())
    for name in list(whole):
        if name in ("st.safetensors", "base.logits"):
            (folder / name).write_bytes(whole[name])
    kind = dice.choice(["model", "data", "folder", "statistics", "compare", "inspect", "decompress", "onnx", "names"])
    hurt: list[str] = []
    lm = dice.random() < 0.6
    source = "lm.xml" if lm else "m.xml"
    words = ["o.xml"]
    base = ["--mode", dice.choice(["int8_asym", "int4_sym", "nf4"]), "--quiet"]
    if kind == "model":
        hurt, words = [dice.choice([source, source.replace("xml", "bin")])], [source, "-o", "o.xml", *base]
    elif kind == "onnx" and "o.onnx" in whole:
        hurt, words = ["o.onnx"], ["o.onnx", "-o", "o.xml", *base]
    elif kind == "data":
        name = dice.choice(["ids.npy", "ids.npz", "text.txt", "x.npy", "x.npz"])
        hurt = [dice.choice([name, "tokenizer.json"])] if name == "text.txt" else [name]
        words = [source, "-o", "o.xml", *base, "--data", name, "--subset-size", "4", "--context-length", "16"]
    elif kind == "statistics" and "st.safetensors" in whole:
        hurt = ["st.safetensors"]
        words = ["lm.xml", "-o", "o.xml", "--mode", "int4_sym", "--quiet", "--scale-estimation"]
        words += ["--data", "random", "--statistics-path", "st.safetensors"]
    elif kind == "compare":
        name = dice.choice(["ids.npy", "ids.npz", "text.txt"])
        hurt = [dice.choice(["c.xml", "c.bin", "lm.xml", "config.json", "tokenizer.json", name, "base.logits"])]
        words = ["compare", "lm.xml", "c.xml", "--data", name, "--json", "r.json", "--window", "16", "--windows", "2"]
        words += ["--quiet", "--layer-samples", "1"] + (
            ["--base-logits", "base.logits"] if hurt == ["base.logits"] else []
        )
    elif kind == "inspect":
        hurt, words = [dice.choice(["c.xml", "c.bin"])], ["inspect", "c.xml", "--json", "r.json"]
    elif kind == "decompress":
        hurt, words = [dice.choice(["c.xml", "c.bin"])], ["decompress", "c.xml", "-o", "o.xml", "--quiet"]
    elif kind == "names":
        strange = dice.choice(["~nosuchuser/x.xml", "a" * 300 + ".xml", "", ".", "..", "/", "x\ny.xml", "é\udcff.xml"])
        strange = dice.choice(
            [strange, "a/" * 3000 + "x.xml", "in/../..//o.xml", "/dev/null", "/proc/self/mem", "lm.xml/o"]
        )
        words = dice.choice(
            [
                [strange, "-o", "o.xml", *base],
                [source, "-o", strange if strange not in ("/", "..", ".") else "q", *base],
                [source, "-o", "o.xml", *base, "--data", strange],
                [source, "-o", "o.xml", *base, "--report", strange],
                ["inspect", strange],
                ["inspect", "c.xml", "--json", strange],
                ["decompress", strange, "-o", "o.xml"],
                ["compare", strange, "c.xml", "--quiet"],
                ["compare", "lm.xml", "c.xml", "--data", strange, "--quiet"],
                ["compare", "lm.xml", "c.xml", "--data", "text.txt", "--tokenizer", strange, "--quiet"],
            ]
        )
    else:
        inside = folder / "in"
        inside.mkdir()
        names = {"openvino_model.xml": "lm.xml", "openvino_model.bin": "lm.bin"}
        names |= {name: name for name in ("config.json", "openvino_config.json")}
        one = dice.choice(list(names))
        for name, origin in names.items():
            content = damaged(name, whole[origin], dice) if name == one else whole[origin]
            (inside / name).write_bytes(content)
        strange = dice.randrange(4)
        if strange == 0:
            (inside / "openvino_other.xml").mkdir()
        elif strange == 1:
            (inside / "dangling").symlink_to("nowhere")
        elif strange == 2:
            (inside / "loop").symlink_to(".")
        words = dice.choice(
            [["in", "-o", "out", *base], ["decompress", "in", "-o", "out", "--quiet"], ["inspect", "in"]]
        )
    for name, content in whole.items():
        (folder / name).write_bytes(damaged(name, content, dice) if name in hurt else content)
    return tuple(words)


def check_case(
    seed: int, number: int, told: Callable[[str], None] = lambda text: None, apart: bool = False
) -> list[Failure]:
    """Run one case in a folder of its own, in this process or `apart`, as a command; `told` is given its words."""
    dice = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = prepare(folder, dice)
        line = " ".join(words)[:200]
        told(line.encode("ascii", "backslashreplace").decode())
        before = {path.relative_to(folder) for path in folder.rglob("*")}
        begun = time.monotonic()
        try:
            code, said = (_run_apart if apart else _run_here)(folder, words)
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "ov_weight_compression" in frame.filename] or frames
            at = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
            return [_failure(f"{type(error).__name__} in {at}", f"{str(error)[:150]} ({line})")]
        after = {path.relative_to(folder) for path in folder.rglob("*")}
        return list(_judge(code, said, after - before, time.monotonic() - begun, line))


def _run_here(folder: Path, words: Sequence[str]) -> tuple[object, str]:
    """The exit code, and what is said on standard error."""
    back = Path.cwd()
    output, errors = io.StringIO(), io.StringIO()
    os.chdir(folder)
    os.environ["OV_COMPRESS_TRACEBACK"] = "1"
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            return main(words), errors.getvalue()
    except SystemExit as left:
        return left.code, errors.getvalue()
    finally:
        os.chdir(back)
        del os.environ["OV_COMPRESS_TRACEBACK"]


def _run_apart(folder: Path, words: Sequence[str]) -> tuple[object, str]:
    command = [sys.executable, "-m", "ov_weight_compression.cli", *words]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    return found.returncode, found.stderr


def _judge(code: object, said: str, new: set[Path], seconds: float, line: str) -> Iterator[Failure]:
    lines = said.splitlines()
    if code not in (0, 1, 2):
        yield _failure("another exit code", f"{code} ({line})")
    if code and (len(lines) != 1 or len(lines[0]) > LONGEST):
        yield _failure("not one short line on stderr", f"{len(lines)} lines: {said[:200]!r} ({line})")
    if code and new:
        yield _failure("something is left behind", f"{sorted(map(str, new))} ({line})")
    if "Check '" in said or "Exception from" in said:
        yield _failure("a raw message", f"{said[-250:]!r} ({line})")
    if seconds > SECONDS:
        yield _failure("takes too long", f"{seconds:.0f} s ({line})")


def _failure(kind: str, detail: str) -> Failure:
    return Failure(kind, detail.encode("ascii", "backslashreplace").decode())


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this campaign."""
    campaign.add_arguments(parser, cases=5000)


def run(parsed: argparse.Namespace) -> int:
    """Run it; 1 where something was found."""

    def check(number: int, tell: Callable[[str], None]) -> tuple[list[Failure], list[str]]:
        return check_case(parsed.seed, number, tell), []

    def apart(number: int) -> list[Failure]:
        return check_case(parsed.seed, number, apart=True)

    return campaign.run("files", parsed, check, chunk=500, apart=apart)
