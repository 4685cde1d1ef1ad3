"""Reading and writing at a place of a file, from several threads at once.

POSIX has calls for that. Elsewhere the file's own position is moved, by one thread at a time.
"""

from __future__ import annotations

import os
import threading

_moving = threading.Lock()


def read_at(descriptor: int, size: int, place: int) -> bytes:
    """At most `size` bytes from `place` on; none at the end of the file."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, place)
    with _moving:
        os.lseek(descriptor, place, os.SEEK_SET)
        return os.read(descriptor, size)


def read_into(descriptor: int, view: memoryview, place: int) -> int:
    """Fill a view of bytes with what lies from `place` on: how many; fewer than it holds only where the file ends."""
    filled = 0
    while filled < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [view[filled:]], place + filled)
        else:
            data = read_at(descriptor, len(view) - filled, place + filled)
            count = len(data)
            view[filled : filled + count] = data
        if not count:
            break
        filled += count
    return filled


def write_at(descriptor: int, data: bytes | memoryview, place: int) -> None:
    """Write all of some bytes from `place` on."""
    view = memoryview(data)
    while view:
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, view, place)
        else:
            with _moving:
                os.lseek(descriptor, place, os.SEEK_SET)
                count = os.write(descriptor, view)
        view, place = view[count:], place + count
