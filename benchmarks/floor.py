"""What the disk alone takes: a copy of the source's weights, and writing as many bytes as were saved."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

BLOCK = 1 << 24


def settle() -> None:
    """Writes out what earlier runs left, so that no run pays for another's."""
    os.sync()


def warm(path: Path) -> None:
    """Reads a file once, so that every contender finds as much of it in memory as the machine holds."""
    buffer = bytearray(BLOCK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def chill(path: Path) -> None:
    """Drops a file's pages from memory, so that whoever reads it next is charged for them."""
    os.sync()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy_seconds(source: Path, folder: Path) -> float:
    """Seconds of ``cp`` of a file onto the disk that the outputs go to."""
    target = folder / "copy.bin"
    began = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", str(source), str(target)], check=True)
    taken = time.perf_counter() - began
    target.unlink()
    return taken


def write_seconds(size: int, folder: Path) -> float:
    """Seconds of writing so many random bytes to a new file."""
    target, block = folder / "written.bin", os.urandom(BLOCK)
    began = time.perf_counter()
    with target.open("wb", buffering=0) as file:
        for start in range(0, size, BLOCK):
            file.write(block[: min(BLOCK, size - start)])
    taken = time.perf_counter() - began
    target.unlink()
    return taken
