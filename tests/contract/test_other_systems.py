"""What Windows and macOS do not have is taken away from this process: the same bytes come out, by the other ways.

That tries the package's own code. OpenVINO's, and file systems that forbid what POSIX allows, cannot be tried here.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = """
import ctypes, os, signal, sys
import openvino, numpy, rich.progress, rich.table, tempfile, subprocess, multiprocessing
for name in ("pread", "preadv", "pwrite", "pwritev", "posix_fallocate", "posix_fadvise", "fork", "geteuid", "getuid",
             "memfd_create", "sched_getaffinity", "sched_setaffinity", "statvfs", "uname"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGALRM", "SIGCHLD", "setitimer", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
sys.modules["fcntl"] = sys.modules["resource"] = None
sys.platform = "win32"
def refuse(*_, **__):
    raise OSError("no such library")
ctypes.CDLL = refuse
opened = open
def without_proc(name, *rest, **more):
    if str(name).startswith(("/proc", "/sys")):
        raise FileNotFoundError(name)
    return opened(name, *rest, **more)
import builtins
builtins.open = without_proc
"""
JOB = """
import sys
from pathlib import Path
import openvino as ov
import ov_weight_compression as owc
from ov_weight_compression.cli.command import main
model, text, out = sys.argv[1:]
run = lambda *words: main([*words, "--quiet"]) == 0 or sys.exit(f"failed: {words}")
run(model, "-o", f"{out}/int4", "--mode", "int4_sym", "--group-size", "64")
run(model, "-o", f"{out}/int4", "--mode", "int4_sym", "--group-size", "32", "--force")
run(model, "-o", f"{out}/fast", "--mode", "int4_asym", "--group-size", "64", "--accuracy", "fast", "--data", text,
    "--subset-size", "1", "--context-length", "64")
run("decompress", f"{out}/int4", "-o", f"{out}/floats")
read = ov.Core().read_model(f"{model}/openvino_model.xml")
for _ in range(2):
    owc.save_model(owc.apply_weight_compression(read.clone(), mode="nf4"), f"{out}/nf4.xml")
owc.inspect(f"{out}/nf4.xml")
import numpy as np
owc.compare(f"{model}/openvino_model.xml", f"{out}/nf4.xml", np.load(text)[:64], layers=False)
left = [path.name for path in Path(out).rglob(".*")]
assert not left, left
"""


def made(prelude: str, out: Path) -> dict[str, str]:
    """The hashes of what the job writes, by name."""
    out.mkdir()
    words = [str(ROOT / "samples" / "pylm"), str(ROOT / "samples" / "python_tokens.npy"), str(out)]
    done = subprocess.run([sys.executable, "-c", prelude + JOB, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.rglob("*.bin"))
    }


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_the_same_bytes_without_what_windows_does_not_have(tmp_path: Path) -> None:
    assert made(WINDOWS, tmp_path / "windows") == made("", tmp_path / "linux")
