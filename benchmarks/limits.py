"""A hard memory limit for one command: a control group of our own, or a systemd scope.

Pages of mapped files count too, but the kernel takes them back under pressure; what cannot be taken back (anonymous
memory) must fit, else the process is killed. ``RLIMIT_AS`` is not a substitute: it limits addresses, so that mapping a
6 GB file would already fail, whatever memory it takes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
UNAVAILABLE = (
    "no memory limit can be set here: neither the memory control group nor systemd-run may be used "
    "(RLIMIT_AS is no substitute, since it counts mapped files)"
)


@dataclass(frozen=True)
class Limit:
    """How a command gets under the limit: words before it, or a call in the new process; ``peak`` reads the group's
    highest use in bytes, None where the kernel does not tell."""

    how: str
    prefix: Sequence[str] = ()
    join: Callable[[], None] | None = None
    peak: Callable[[], int | None] = field(default=lambda: None)


def parse_size(text: str) -> int:
    """``512M`` → bytes (powers of 1024)."""
    match = re.fullmatch(r"(\d+)([KMG]?)i?B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"memory limit {text!r}: a whole number with K, M or G, such as 512M")
    return int(match[1]) * UNITS[match[2].upper()]


@contextmanager
def limited(size: int) -> Iterator[Limit | None]:
    """The limit for one command, taken away again at the end; None where it is not allowed."""
    version_2 = (ROOT / "cgroup.controllers").exists()
    parent = ROOT if version_2 else ROOT / "memory"
    group = parent / f"weight-compression-benchmark-{os.getpid()}"
    files = ("memory.max", "memory.swap.max", "memory.peak")
    if not version_2:
        files = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max_usage_in_bytes")
    try:
        group.mkdir()
        (group / files[0]).write_text(str(size))
    except OSError:
        if group.exists():
            group.rmdir()
        yield _scope(size)
        return
    swap = group / files[1]
    if swap.exists():
        swap.write_text("0" if version_2 else str(size))
    try:
        yield Limit(
            "a control group",
            (),
            lambda: _write(group / "cgroup.procs", str(os.getpid())),
            lambda: _number(group / files[2]),
        )
    finally:
        _remove(group)


def _scope(size: int) -> Limit | None:
    """The same through systemd, for users who may not write to the control groups."""
    command = ["systemd-run", "--user", "--scope", "--quiet", "-p", f"MemoryMax={size}", "-p", "MemorySwapMax=0"]
    if shutil.which(command[0]) is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        return None
    return Limit("a systemd scope", command)


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _remove(group: Path) -> None:
    """Removes the empty group; the last process may take a moment to leave it."""
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)
