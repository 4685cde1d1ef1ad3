"""Reading and writing files by many threads in bounded memory: at a place, behind themselves, in a temporary one.

**Write-behind.** Large files leave memory while they are written, as their sources do while they are read.

What is written lies in the page cache until the kernel gets round to it. Told at once, a fast disk keeps up, and pages
that have arrived there serve the next pieces: writing takes the memory of a few pieces, not of the file. Fresh pages
are dear where the memory of a virtual machine has to be asked for again: 1.2 GB took 2.8 s there, and 0.35 s this way.

Nobody waits for a slow disk: the first call that takes long is the last one, and the file stays in the cache.

**At a place** of a file, from several threads at once: POSIX has calls for that. Elsewhere the file's own position is
moved, by one thread at a time.

**A spool.** Arrays kept in a temporary file until they are asked for: results that took long and must not fill memory.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ov_weight_compression.ir_utils.types import Array

KEPT_BYTES = 64 << 20  # on their way; given back when so much has been written after them
_SMALL_BYTES = 1 << 16
_WATCHED_BYTES = 16 << 20  # between two looks at whether there is a thread
_LOOK_SECONDS = 0.01
IDLE_LOOKS = 20
SLOW_SECONDS = 0.05
_SLOW_RATE = 1e9  # bytes a second: a large constant is written in one go


class WriteBehind:
    """What has been written of one open file, from any thread; at most `kept` bytes of it are on their way. A call that
    takes more than `slow` seconds, and longer than a disk needs for so much, is the last."""

    def __init__(self, descriptor: int, kept: int = KEPT_BYTES, slow: float = SLOW_SECONDS) -> None:
        self._descriptor, self._most, self._slow = descriptor, kept, slow
        self._written: deque[tuple[int, int]] = deque()
        self._kept = 0
        self._lock = threading.Lock()
        self._active = hasattr(os, "posix_fadvise")

    def note(self, offset: int, size: int) -> None:
        """So many bytes have just been written."""
        if not self._active or size < _SMALL_BYTES:
            return
        ready = [(offset, size)]
        with self._lock:
            self._written.append((offset, size))
            self._kept += size
            while self._kept > self._most:
                ready.append(self._written.popleft())
                self._kept -= ready[-1][1]
        begun = time.perf_counter()
        for place, length in ready:
            # Dirty pages are sent to the disk by this call, clean ones given back: each stretch gets it twice.
            os.posix_fadvise(self._descriptor, place, length, os.POSIX_FADV_DONTNEED)
        patience = max(self._slow, sum(length for _, length in ready) / _SLOW_RATE)
        self._active = time.perf_counter() - begun < patience


class ForeignFiles:
    """The weights that OpenVINO itself is writing, of which nothing is known but that this process has a .bin file open
    for writing. While constants are `handed_out`, a thread sees to it that what is added to it goes to the disk.

    Advice about pages of the page cache changes nothing that is in a file, whichever file it turns out to be.
    """

    def __init__(self, idle_looks: int = IDLE_LOOKS) -> None:
        self._bytes, self._idle_looks = 0, idle_looks
        self._thread: threading.Thread | None = None
        self._seen: dict[tuple[int, int, int], tuple[WriteBehind, int]] = {}

    def handed_out(self, size: int) -> None:
        """A constant of so many bytes is about to be written."""
        self._bytes += size
        if self._bytes < _WATCHED_BYTES or not sys.platform.startswith("linux"):
            return
        self._bytes = 0
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._watch, name="ov-weight-compression", daemon=True)
            with suppress(RuntimeError):  # the interpreter ends, or the system has no more threads
                thread.start()
                self._thread = thread

    def _watch(self) -> None:
        idle = 0
        while idle < self._idle_looks:
            idle = 0 if self.look() else idle + 1
            time.sleep(_LOOK_SECONDS)

    def look(self) -> bool:
        """Whether a file has grown since the last look. For one thread at a time."""
        grown, found = False, {}
        for descriptor, about in _files_being_written():
            key = (descriptor, about.st_dev, about.st_ino)
            behind, known = self._seen.get(key, (WriteBehind(descriptor), 0))
            if about.st_size > known:
                grown = True
                with suppress(OSError):
                    behind.note(known, about.st_size - known)
            found[key] = behind, about.st_size
        self._seen = found
        return grown


def _files_being_written() -> Iterator[tuple[int, os.stat_result]]:
    import fcntl

    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            if not os.readlink(f"/proc/self/fd/{name}").endswith(".bin"):
                continue
            about, flags = os.fstat(int(name)), fcntl.fcntl(int(name), fcntl.F_GETFL)
            if stat.S_ISREG(about.st_mode) and flags & os.O_ACCMODE == os.O_WRONLY:
                yield int(name), about


def reserve(descriptor: int, size: int) -> bool:
    """Take the space of a whole file at once: a disk that is too small says so now, and writing is faster.

    Returns:
        Whether the space is there; otherwise the file has its size, and only writing tells.
    """
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return True
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
    os.ftruncate(descriptor, size)
    return False


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


class Spool:
    """A file without a name: it disappears with the last reference to it, however the process ends."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="ov-weight-compression-")  # noqa: SIM115  (lives as long as the spool)
        self._end = 0
        self._lock = threading.Lock()

    def put(self, values: Array) -> Spooled:
        """Write an array; what is returned reads it, whole or by rows."""
        values = np.ascontiguousarray(values)
        with self._lock:
            offset, self._end = self._end, self._end + values.nbytes
        write_at(self._file.fileno(), values.reshape(-1).view(np.uint8).data, offset)
        return Spooled(self, offset, values.shape, values.dtype)

    def read(self, offset: int, count: int, dtype: np.dtype[Any]) -> Array:
        """`count` elements from byte `offset`."""
        values: Array = np.empty(count, dtype=dtype)
        if read_into(self._file.fileno(), values.view(np.uint8).data, offset) < values.nbytes:
            raise EOFError("the temporary file is shorter than what was written")
        return values


@dataclass(frozen=True, eq=False)
class Spooled:
    """An array in a spool."""

    spool: Spool
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, start: int = 0, stop: int | None = None) -> Array:
        """The rows from `start` to `stop` (of the first axis), all by default."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        width = int(np.prod(self.shape[1:], dtype=np.int64))
        first = self.offset + start * width * self.dtype.itemsize
        return self.spool.read(first, (stop - start) * width, self.dtype).reshape(stop - start, *self.shape[1:])
