"""NNCF's own tests of weight compression, with `compat` called wherever they call NNCF, and both results compared.

    python -m benchmarks.nncf_suite CHECKOUT --peer-python PYTHON

CHECKOUT is a checkout of NNCF's repository, or its git directory; nothing of it is kept. PYTHON is an interpreter with
NNCF, pytest, pytest-mock and pandas. Takes minutes, and writes benchmarks/results/nncf_suite.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ov_weight_compression
from benchmarks import machine, peers
from benchmarks.places import ROOT
from benchmarks.tables import markdown

RESULTS = ROOT / "benchmarks" / "results" / "nncf_suite.md"
_SUITE = "tests/openvino/native/quantization/test_weights_compression.py"
_NEEDED = ("tests/__init__.py", "tests/openvino", "tests/cross_fw")
_LARGER = 1.05
"""An output's error above so many times NNCF's counts as larger."""
_ALGORITHMS = ("awq", "scale_estimation", "gptq", "lora_correction")

_LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "arithmetic of NNCF's own functions on arrays, without a model": (
        *("test_quantization_error_calculation", "test_calculate_scale_per_group", "test_raise_error_for_many_axes"),
        *(
            "test_nvfp4_precomputed_scales",
            "test_nvfp4_optimized_scale_compression",
            "test_int_compressed_weighs_range",
        ),
        *("test_float_compressed_weighs_range", "test_codebook_weights_range", "test_nf4_quantization_mid_quant"),
        *("test_int_quantization_with_precomputed_parameters", "test_mxfp4_quantization_edge_cases"),
        *("test_f8e4m3_quantization_edge_cases", "test_scale_estimation_calculate_quantization_params"),
        "test_process_stats",
    ),
    "classes inside NNCF: its parameters of a weight, and its setter of weights": (
        *("test_data_type_for_num_weights", "test_set_weight"),
    ),
    "the signature of NNCF's function": ("test_default_subset_value",),
}
"""Groups of tests that compress no model through the public function, by the reason why they are left out."""

AGREE, REFUSED = "agree", "refused by both"


def kind_of(call: Mapping[str, Any]) -> str:
    """What a call shows: that both agree, that both refuse, or which difference there is."""
    ours, theirs, given = call["ours"], call["theirs"], call["given"]
    if "error" in ours and "error" in theirs:
        return REFUSED
    if "error" in ours:
        return _refused_here(ours["error"], ours["message"])
    if "error" in theirs:
        return _taken_here(theirs["message"])
    names = {*ours["formats"], *theirs["formats"]}
    other = {name for name in names if ours["formats"].get(name) != theirs["formats"].get(name)}
    tiny = {name for name in other if name not in ours["formats"] and name in call["skips"]}
    if other - tiny:
        return _formats_differ(given, ours["formats"], theirs["formats"])
    if tiny:
        return f"left alone here: {_in_short(call['skips'][min(tiny)])}"
    return _errors_differ(given, call.get("errors") or {})


def _refused_here(error: str, message: str) -> str:
    if "at least 2, got 1" in message:
        return "refused here: groups of one"
    if "no counterpart" in message:
        return f"refused here: {message.split(': ', 1)[1].split(' has no')[0]}"
    return f"refused here: {error}: {message}"


def _taken_here(message: str) -> str:
    for part, kind in (
        ("but mode in", "algorithms with 4-bit float modes"),
        ("Simultaneous use", "lora_correction with gptq"),
        ("INT8 modes do not support all_layers", "all_layers=False with INT8"),
        ("INT8 modes do not support backup_mode", "backup_mode=INT8_ASYM with INT8"),
        ("do not support the `statistics_path`", "statistics_path with INT8"),
        ("must be a sorted", "a codebook in any order, or with equal values"),
        ("Failed to apply group-wise", "a group that does not divide is adjusted"),
    ):
        if part in message:
            return f"taken here: {kind}"
    return f"taken here, refused by NNCF: {message[:100]}"


def _formats_differ(given: Mapping[str, str], ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    if given.get("mode", "").startswith(("fp", "mxfp", "nvfp")) and given.get("backup_mode") in (None, "None"):
        return "formats: the backup of float modes, and which of two added branches is last"
    if float(given.get("ratio") or 1) == 1:
        return "formats: others"
    few = [
        {name for name, stored in formats.items() if not stored.startswith(("u8", "i8"))} for formats in (ours, theirs)
    ]
    if len(few[0]) > len(few[1]):
        return "formats: ratio filled without gaps, more weights in the mode"
    if len(few[0]) == len(few[1]):
        return "formats: ratio filled without gaps, as many weights in the mode"
    return "formats: fewer weights in the mode"


def _errors_differ(given: Mapping[str, str], errors: Mapping[str, Sequence[float]]) -> str:
    larger = {name for name, (ours, theirs) in errors.items() if ours > _LARGER * theirs + 1e-6}
    fitted = any(given.get(name) == "True" for name in _ALGORITHMS)
    if "random" in larger and not (fitted and "data" in errors and "data" not in larger):
        return "more error: on random inputs"
    if "data" in larger and fitted:
        return "more error: on the very sample that was fitted, not on random inputs"
    return AGREE


def _in_short(reason: str) -> str:
    return reason.split(":")[0]


def take_suite(checkout: Path, folder: Path) -> str:
    """Put the tests and what they import into a folder; what version of NNCF they are of."""
    git = ["git", f"--git-dir={checkout}"] if not (checkout / "tests").is_dir() else None
    if git is None:
        for needed in _NEEDED:
            source = checkout / needed
            for file in [source] if source.is_file() else source.rglob("*.py"):
                target = folder / file.relative_to(checkout)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        return _version((checkout / "src/nncf/version.py").read_text(encoding="utf-8"))
    listed = subprocess.run([*git, "ls-tree", "-r", "--name-only", "HEAD", *_NEEDED], check=True, capture_output=True)
    for name in listed.stdout.decode().split("\n"):
        if name.endswith(".py"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(subprocess.run([*git, "show", f"HEAD:{name}"], check=True, capture_output=True).stdout)
    shown = subprocess.run([*git, "show", "HEAD:src/nncf/version.py"], check=True, capture_output=True)
    return _version(shown.stdout.decode())


def _version(text: str) -> str:
    return next(line.split('"')[1] for line in text.split("\n") if line.startswith("__version__"))


def run_suite(python: str, folder: Path) -> list[dict[str, Any]]:
    """Run the tests with the plugin; every call that they made."""
    packages = folder / "packages"
    packages.mkdir()
    (packages / "ov_weight_compression").symlink_to(Path(ov_weight_compression.__file__).parent)
    (packages / "benchmarks").symlink_to(ROOT / "benchmarks")
    calls = folder / "calls.jsonl"
    paths = [str(packages), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    left_out = " and ".join(f"not {name}" for names in _LEFT_OUT.values() for name in names)
    command = [python, "-m", "pytest", _SUITE, "-q", "--tb=no", "-k", left_out]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.nncf_suite_child"]
    environment = {**os.environ, "CALLS": str(calls), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if not calls.exists():
        sys.exit(f"the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [json.loads(line) for line in calls.read_text(encoding="utf-8").split("\n") if line]


def page(calls: Sequence[Mapping[str, Any]], suite: str, versions: Mapping[str, str]) -> str:
    """The results as a page of Markdown."""
    kinds = [kind_of(call) for call in calls]
    counted = Counter(kinds)
    first = [AGREE, REFUSED]
    order = [kind for kind in first if kind in counted] + [k for k, _ in counted.most_common() if k not in first]
    rows = [[kind, str(counted[kind]), _tests(calls, kinds, kind)] for kind in order]
    left = [[", ".join(names), reason] for reason, names in _LEFT_OUT.items()]
    told = (
        f"{_SUITE} of NNCF {suite}'s repository. Each of its {len(calls)} calls of `compress_weights` was made with "
        "`compat` too, on a copy of the model and with the same objects, and both results were compared: the format "
        "and the group of every weight, and the errors of the outputs, on random inputs and on the data. The "
        "differences are of the kinds that the list in `passes/compat.py` names.\n"
    )
    return "\n".join(
        [
            "### NNCF's own tests\n",
            machine.describe(dict(versions)) + "\n",
            told,
            markdown(["what", "calls", "for instance"], rows),
            "Left out:\n",
            markdown(["tests", "why"], left),
        ]
    )


def _tests(calls: Iterable[Mapping[str, Any]], kinds: Sequence[str], kind: str) -> str:
    names = {call["test"].split("::")[-1].split("[")[0] for call, own in zip(calls, kinds, strict=True) if own == kind}
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nncf_suite", description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="of NNCF's repository, or its git directory")
    parser.add_argument("--calls", type=Path, metavar="FILE", help="keep every call, as lines of JSON")
    parser.add_argument("--output", type=Path, metavar="FILE", default=RESULTS, help=f"default {RESULTS}")
    peers.add_option(parser)
    parsed = parser.parse_args()
    versions = peers.versions(parsed.peer_python)
    if versions is None:
        sys.exit(peers.ADVICE)
    with tempfile.TemporaryDirectory() as folder:
        suite = take_suite(parsed.checkout, Path(folder))
        calls = run_suite(parsed.peer_python, Path(folder))
    if parsed.calls is not None:
        parsed.calls.write_text("".join(json.dumps(call) + "\n" for call in calls), encoding="utf-8")
    text = page(calls, suite, versions)
    parsed.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
