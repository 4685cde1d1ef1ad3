"""What a type checker says of code that uses the package: strictly, from outside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RIGHT = """
from pathlib import Path

import openvino as ov
import ov_weight_compression as owc

model: ov.Model = ov.Core().read_model("m.xml")
again: ov.Model = owc.apply_weight_compression(model, mode="int4_sym", group_size=64, rules=[("*q*", "int8_asym")])
compression = owc.WeightCompression(mode=owc.Mode.INT4_ASYM, ignored_scope=owc.IgnoredScope(names=["a"]), awq=True)
compression.run_on_model(model)
total: int = compression.report.bytes_after
report: owc.Report | None = owc.report_of(model)
owc.save_model(again, Path("out.xml"))
found: owc.Comparison = owc.compare(model, again, "text.txt", protocol=owc.ComparisonProtocol(context=64))
weights: int = len(owc.inspect(model).weights)
try:
    owc.apply_weight_decompression(model)
except owc.ModelError as error:
    print(error)
"""
WRONG = """
import ov_weight_compression as owc

owc.WeightCompression(mod="int4_sym")
owc.WeightCompression(group_size="64")
owc.nothing_of_this_name
"""


def checked(code: str, folder: Path) -> list[str]:
    pytest.importorskip("mypy")
    (folder / "consumer.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--disable-error-code",
        "import-untyped",
        "--cache-dir",
        str(folder / "cache"),
        "consumer.py",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    return [line for line in done.stdout.splitlines() if "error:" in line and line.startswith("consumer.py")]


def test_code_that_is_right_passes(tmp_path: Path) -> None:
    assert checked(RIGHT, tmp_path) == []


def test_code_that_is_wrong_is_told_line_by_line(tmp_path: Path) -> None:
    assert [line.split(":")[1] for line in checked(WRONG, tmp_path)] == ["4", "5", "6"]
