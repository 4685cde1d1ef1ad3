"""The tests that matter on other versions of Python and OpenVINO: the oldest and the newest that pyproject.toml allows.

    python -m benchmarks.versions                              every Python that is found, with the newest OpenVINO;
                                                               this one with the oldest
    python -m benchmarks.versions --pythons /usr/bin/python3.12 --openvino 2026.2.0 --tests tests/passes

Each pair gets an environment of its own in a temporary folder. Exit code 1 where one fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import tables
from benchmarks.places import ROOT

LANGUAGE_MODEL = "tests/contract/test_language_model.py"
"""Not with the oldest: OpenVINO GenAI 2026.1 crashes on the sample as it is, whose tokenizer is of a later one."""
TESTS = (
    "tests/contract/test_public.py",
    "tests/contract/test_manager.py",
    "tests/contract/test_device_outputs.py",
    "tests/contract/test_runtime_graph.py",
    LANGUAGE_MODEL,
    "tests/ir_utils",
    "tests/quantization/test_formats.py",
    "tests/quantization/test_kernels.py",
    "tests/passes/test_values.py",
    "tests/passes/test_decompress.py",
)
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


def found_pythons() -> list[str]:
    """Interpreters of the versions that are promised, on PATH or as pyenv keeps them; this one for its own."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = []
    for version in VERSIONS:
        kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
        other = next(map(str, kept), None) or shutil.which(f"python{version}")
        path = sys.executable if version == here else other
        if path is None or subprocess.run([path, "-c", "import venv"], capture_output=True).returncode:
            print(f"Python {version}: not found here, not tried", flush=True)
        else:
            found.append(path)
    return found


def oldest_openvino() -> str:
    """The lower limit in pyproject.toml."""
    found = re.search(r'"openvino>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]


def tried(python: str, openvino: str, tests: list[str]) -> tuple[str, str, str, bool]:
    """Versions of Python and OpenVINO, the last line of the tests, and whether they passed."""
    with tempfile.TemporaryDirectory() as folder:
        own = f"{folder}/env/bin/python"
        subprocess.run([python, "-m", "venv", f"{folder}/env"], check=True)
        wanted = [f"openvino=={openvino}", *(f"openvino-{name}=={openvino}" for name in ("genai", "tokenizers"))]
        install = [own, "-m", "pip", "install", "--quiet", f"{ROOT}[test]", *(wanted if openvino else ())]
        installed = subprocess.run(install, capture_output=True, text=True)
        if installed.returncode:
            return python, openvino, (installed.stderr.strip().splitlines() or ["pip failed"])[-1][:120], False
        told = (
            "import sys, openvino; print('.'.join(map(str, sys.version_info[:3])), openvino.__version__.split('-')[0])"
        )
        versions = subprocess.run([own, "-c", told], capture_output=True, text=True, check=True).stdout.split()
        done = subprocess.run(
            [own, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:warnings", *tests],
            cwd=ROOT,
            capture_output=True,
            text=True,
            # OpenVINO's telemetry is off then, which runs scripts a second time on Python 3.14.
            env={**os.environ, "CI": "true"},
        )
        lines = done.stdout.strip().splitlines()
        for line in lines:
            if line.startswith(("FAILED", "ERROR")):
                print(line[:200], flush=True)
        return versions[0], versions[1], lines[-1] if lines else done.stderr[-120:], done.returncode == 0


def main() -> int:
    """Try, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("--pythons", nargs="*", help="interpreters; every one that is found")
    parser.add_argument("--openvino", default="", help="a version; the newest, and the oldest with this Python")
    parser.add_argument("--tests", nargs="*", default=list(TESTS))
    arguments = parser.parse_args()
    tests = arguments.tests
    runs = [(python, arguments.openvino, tests) for python in arguments.pythons or found_pythons()]
    if not arguments.openvino and not arguments.pythons:
        runs.append((sys.executable, f"{oldest_openvino()}.0", [one for one in tests if one != LANGUAGE_MODEL]))
    rows = []
    for run in runs:
        rows.append(tried(*run))
        print(*rows[-1][:3], flush=True)
    print(tables.markdown(("Python", "OpenVINO", "tests"), [row[:3] for row in rows]))
    return 0 if all(row[3] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
