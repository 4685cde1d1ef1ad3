"""Reading and writing at a place of a file, from several threads at once.

POSIX has calls for that. Elsewhere the file's own position is moved, by one thread at a time.
"""

from __future__ import annotations

import os
import threading

__all__ = ["read_at", "read_into", "write_at"]

_moving = threading.Lock()


def read_at(descriptor: int, size: int, place: int) -> bytes:
    """At most `size` bytes from `place` on; none at the end of the file."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, place)
    with _moving:
        os.lseek(descriptor, place, os.SEEK_SET)
        return os.read(descriptor, size)


def read_into(descriptor: int, view: memoryview, place: int) -> int:
    """Fill a view of bytes, or some of it, with what lies at `place`: how many; 0 at the end of the file."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [view], place)
    data = read_at(descriptor, len(view), place)
    view[: len(data)] = data
    return len(data)


def write_at(descriptor: int, data: bytes | memoryview, place: int) -> int:
    """Write bytes, or some of them, at `place`: how many."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, place)
    with _moving:
        os.lseek(descriptor, place, os.SEEK_SET)
        return os.write(descriptor, data)
