"""How the house is built: which room may import which, what is imported when, and which package the tests test."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest

import ov_weight_compression

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ov_weight_compression"
ROOMS = ("calibration", "checkpoints", "cli", "evaluation", "ir_utils", "passes", "patterns", "quantization")
ALLOWED = {
    "ir_utils": set(),
    "patterns": {"ir_utils"},
    "quantization": {"ir_utils"},
    "calibration": {"ir_utils", "patterns", "quantization"},
    "passes": {"ir_utils", "patterns", "quantization", "calibration"},
    "checkpoints": {"ir_utils", "patterns", "quantization", "calibration", "passes"},
    "evaluation": {"ir_utils", "patterns", "quantization", "calibration", "passes"},
    "cli": {"ir_utils", "patterns", "quantization", "calibration", "passes", "checkpoints", "evaluation"},
}
HEAVY = ("rich", "safetensors", "tokenizers", "matplotlib", "onnx", "openvino_genai", "nncf", "torch", "transformers")
DANGEROUS = ("pickle", "marshal", "shelve", "dill", "cloudpickle")


def modules() -> list[Path]:
    """Every module of the package, in the checkout."""
    return [
        *sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")),
        ROOT / "__init__.py",
        ROOT / "entry.py",
    ]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Every module that a file imports, and whether that happens when the file itself is imported."""
    tree = tree_of(path)
    later = {
        node
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_type_checking(outer)
        for node in ast.walk(outer)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(("." * node.level + (node.module or ""), node not in later))
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryModule:
    def test_arrows_between_rooms_point_one_way(self, path: Path) -> None:
        room = path.relative_to(ROOT).parts[0]
        for name, _ in imports_of(path):
            parts = name.split(".")
            if parts[0] == PACKAGE and len(parts) > 1 and parts[1] in ROOMS and room in ROOMS:
                assert parts[1] in ALLOWED[room] | {room}, f"{room} imports {name}"

    def test_imports_are_absolute(self, path: Path) -> None:
        for name, _ in imports_of(path):
            assert not name.startswith("."), name
            assert name.split(".")[0] not in (*ROOMS, "tests", "benchmarks", "samples"), name

    def test_nothing_heavy_is_imported_with_it(self, path: Path) -> None:
        for name, at_once in imports_of(path):
            assert not (at_once and name.split(".")[0] in HEAVY), f"{name} belongs into the function that needs it"

    def test_nothing_is_unpickled_or_evaluated(self, path: Path) -> None:
        assert not {name.split(".")[0] for name, _ in imports_of(path)} & set(DANGEROUS)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"line {node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is False

    def test_it_says_what_it_is(self, path: Path) -> None:
        if path.read_text(encoding="utf-8").strip():
            assert ast.get_docstring(tree_of(path)), "no docstring"


TWICE = {"main"}
"""What two modules may call alike: the way into the command, before and after OpenVINO is there."""


def _public_names(tree: ast.Module) -> Iterator[str]:
    """What a module defines at its top level, without a leading underscore."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def test_no_stem_and_no_public_name_is_there_twice() -> None:
    stems: dict[str, list[str]] = {}
    names: dict[str, list[str]] = {}
    for path in modules():
        if path.stem not in ("__init__", "__main__"):
            stems.setdefault(path.stem, []).append(str(path.relative_to(ROOT)))
            for name in set(_public_names(tree_of(path))):
                names.setdefault(name, []).append(str(path.relative_to(ROOT)))
    assert not {stem: paths for stem, paths in stems.items() if len(paths) > 1}
    twice = {name: paths for name, paths in names.items() if len(paths) > 1 and not name.startswith("_")}
    assert not {name: paths for name, paths in twice.items() if name not in TWICE}


def test_patterns_know_no_numerics_and_numbers_no_graph() -> None:
    for path in modules():
        room = path.relative_to(ROOT).parts[0]
        text = path.read_text(encoding="utf-8")
        if room == "quantization" and "kernels" not in path.parts:
            assert "read_model" not in text, path
            assert "get_ordered_ops" not in text, path


def test_the_rooms_that_are_public_name_what_they_offer() -> None:
    for room in ("passes", "patterns", "quantization", "calibration", "checkpoints", "evaluation"):
        module = importlib.import_module(f"{PACKAGE}.{room}")
        assert module.__doc__
        assert len(set(module.__all__)) == len(module.__all__)
        for name in module.__all__:
            if (ROOT / room / f"{name}.py").exists():  # once imported, it takes the place of a name that is given late
                importlib.import_module(f"{PACKAGE}.{room}.{name}")
            assert not isinstance(getattr(module, name), ModuleType)


def test_the_installed_package_is_the_one_that_is_tested() -> None:
    """A checkout has an `__init__.py` at its root; it must not be imported in place of what pip installed."""
    text = distribution("ov-weight-compression").read_text("direct_url.json") or "{}"
    editable = json.loads(text).get("dir_info", {}).get("editable", False)
    where = Path(ov_weight_compression.__file__).resolve().parent
    assert (where == ROOT) == editable
    if not editable:
        assert "site-packages" in where.parts
    assert not [name for name in sys.modules if name in ROOMS]


def test_it_is_typed() -> None:
    assert (Path(ov_weight_compression.__file__).parent / "py.typed").exists()


def test_importing_costs_next_to_nothing_over_openvino(tmp_path: Path) -> None:
    """The least of several runs; 0.15 s is meant, and twice that allowed, because test machines are busy."""
    script = tmp_path / "measure.py"
    script.write_text(
        "import time, sys\nimport openvino, numpy, concurrent.futures, openvino.opset13, openvino.passes\n"
        "start = time.process_time()\nimport ov_weight_compression.passes\nprint(time.process_time() - start)\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\nassert not heavy, heavy\n"
    )
    taken = []
    for _ in range(5):
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=tmp_path)
        taken.append(float(done.stdout))
        if min(taken) < 0.15:
            break
    assert min(taken) < 0.3


def test_threads_that_read_constants_at_once_do_not_wait_for_each_other(tmp_path: Path) -> None:
    script = tmp_path / "race.py"
    script.write_text(
        "import threading\nimport openvino as ov\nimport ov_weight_compression.passes\n"
        "gate = threading.Barrier(8)\n"
        "constants = [ov.op.Constant(ov.Type.f16, ov.Shape([4]), [0.0] * 4) for _ in range(8)]\n"
        "def read(constant):\n    gate.wait()\n    constant.data\n"
        "threads = [threading.Thread(target=read, args=(one,)) for one in constants]\n"
        "[thread.start() for thread in threads]\n[thread.join() for thread in threads]\n"
    )
    subprocess.run([sys.executable, script], check=True, timeout=60, cwd=tmp_path)
