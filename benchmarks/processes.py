"""Running one command and watching its memory, child processes included.

Linux tells a process's memory apart in ``/proc/<pid>/status``: ``RssAnon`` is what it allocated itself and what a
memory limit is about; ``VmRSS`` has the resident pages of mapped files too, which the kernel takes back at need.
Both are sampled every ``PERIOD`` seconds; ``VmHWM``, the kernel's own record of the highest ``VmRSS``, closes the gap
between two samples. While there are children, the proportional figures of ``/proc/<pid>/smaps_rollup`` are summed
instead: a page that a fork shares with its parent must not count twice.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PERIOD = 0.02


@dataclass(frozen=True)
class Run:
    """What one command did: wall seconds from start to end, seconds of processor time, the moment of the start
    (``time.time()``), peaks in bytes, the exit code (negative: the signal), the end of what it printed."""

    seconds: float
    processor: float
    started: float
    anonymous: int
    resident: int
    code: int
    printed: str


def descendants(pid: int) -> list[int]:
    """The process and everything it started that still lives."""
    found = [pid]
    for parent in found:
        with suppress(OSError):  # it may have ended meanwhile
            for path in list(Path(f"/proc/{parent}/task").glob("*/children")):
                with suppress(OSError):  # or one of its threads
                    found += [int(child) for child in path.read_text().split()]
    return found


def memory_of(pids: Sequence[int]) -> tuple[int, int]:
    """Anonymous and resident bytes of processes taken together, without those that have ended."""
    if len(pids) == 1:
        own = _fields(Path(f"/proc/{pids[0]}/status"))
        return own.get("RssAnon", 0), max(own.get("VmRSS", 0), own.get("VmHWM", 0))
    shares = [_fields(Path(f"/proc/{pid}/smaps_rollup")) for pid in pids]
    return sum(share.get("Pss_Anon", 0) for share in shares), sum(share.get("Pss", 0) for share in shares)


def _fields(path: Path) -> dict[str, int]:
    """The lines ``name: number kB`` of a file of /proc, in bytes; empty where the process has ended."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) == 3 and line[2] == "kB"}


def run(
    command: Sequence[str],
    log: Path,
    environment: dict[str, str] | None = None,
    cwd: Path | None = None,
    before: Callable[[], None] | None = None,
    timeout: float | None = None,
) -> Run:
    """Runs a command to its end, its output in ``log``. ``before`` is called in the new process (to join a cgroup)."""
    anonymous = resident = 0
    processor = -_children_seconds()
    with log.open("wb") as output:
        began, started = time.perf_counter(), time.time()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            preexec_fn=before,
        )
        try:
            while process.poll() is None:
                together = memory_of(descendants(process.pid))
                anonymous, resident = max(anonymous, together[0]), max(resident, together[1])
                if timeout is not None and time.perf_counter() - began > timeout:
                    process.kill()
                time.sleep(PERIOD)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        seconds = time.perf_counter() - began
    processor += _children_seconds()
    printed = log.read_text(errors="replace")[-2000:]
    return Run(seconds, processor, started, anonymous, resident, process.returncode, printed)


def _children_seconds() -> float:
    """Processor time of all ended children, user's and system's."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
