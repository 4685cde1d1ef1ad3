"""Files read and written by many threads in bounded memory: mapped ones, at a place, behind themselves, temporary ones.

**Write-behind.** Large files leave memory while they are written, as their sources do while they are read.

What is written lies in the page cache until the kernel gets round to it. Told at once, a fast disk keeps up, and pages
that have arrived there serve the next pieces: writing takes the memory of a few pieces, not of the file. Fresh pages
are dear where the memory of a virtual machine has to be asked for again: 1.2 GB took 2.8 s there, and 0.35 s this way.

Nobody waits for a slow disk: the first call that takes long is the last one, and the file stays in the cache.

**At a place** of a file, from several threads at once: POSIX has calls for that. Elsewhere the file's own position is
moved, by one thread at a time.

**A spool.** Arrays kept in a temporary file until they are asked for: results that took long and must not fill memory.

**Memory that is a file's.** A model read from an IR maps its .bin file: a constant's memory is the file's. It is read
without touching pages that the file no longer has. Pages that were read through the mapping count as resident memory
until they are given back, which is done only where the memory is certain to be a read-only mapping of a file (anonymous
memory would lose its contents).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import mmap
import os
import stat
import sys
import tempfile
import threading
import time
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.types import Array

_SMALL_BYTES = 1 << 16
_WATCHED_BYTES = 16 << 20  # between two looks at whether there is a thread
_LOOK_SECONDS = 0.01
_SLOW_RATE = 1e9  # bytes a second: a large constant is written in one go


@dataclass(eq=False)
class WriteBehind:
    """What has been written of one open file, from any thread; at most `most` bytes of it are on their way. A call that
    takes more than `slow` seconds, and longer than a disk needs for so much, is the last."""

    descriptor: int
    most: int = 64 << 20
    slow: float = 0.05
    _kept: int = 0
    _written: deque[tuple[int, int]] = field(default_factory=deque)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _active: bool = hasattr(os, "posix_fadvise")

    def note(self, offset: int, size: int) -> None:
        """So many bytes have just been written."""
        if not self._active or size < _SMALL_BYTES:
            return
        ready = [(offset, size)]
        with self._lock:
            self._written.append((offset, size))
            self._kept += size
            while self._kept > self.most:
                ready.append(self._written.popleft())
                self._kept -= ready[-1][1]
        begun = time.perf_counter()
        for place, length in ready:
            # Dirty pages are sent to the disk by this call, clean ones given back: each stretch gets it twice.
            os.posix_fadvise(self.descriptor, place, length, os.POSIX_FADV_DONTNEED)
        patience = max(self.slow, sum(length for _, length in ready) / _SLOW_RATE)
        self._active = time.perf_counter() - begun < patience


@dataclass(eq=False)
class ForeignFiles:
    """The weights that OpenVINO itself is writing, of which nothing is known but that this process has a .bin file open
    for writing. While constants are `handed_out`, a thread sees to it that what is added to it goes to the disk.

    Advice about pages of the page cache changes nothing that is in a file, whichever file it turns out to be.
    """

    idle_looks: int = 20
    """After which the thread ends."""
    _bytes: int = 0
    _thread: threading.Thread | None = None
    _seen: dict[tuple[int, int, int], tuple[WriteBehind, int]] = field(default_factory=dict)

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
        while idle < self.idle_looks:
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


def read_at(descriptor: int, view: memoryview, place: int) -> int:
    """Fill a view of bytes with what lies from `place` on: how many; fewer than it holds only where the file ends."""
    filled = 0
    while filled < len(view):
        if hasattr(os, "preadv"):
            count = os.preadv(descriptor, [view[filled:]], place + filled)
        else:
            with _moving:
                os.lseek(descriptor, place + filled, os.SEEK_SET)
                data = os.read(descriptor, len(view) - filled)
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
        return Spooled(self._file, offset, values.shape, values.dtype)


@dataclass(frozen=True, eq=False)
class Spooled:
    """An array in the file of a spool."""

    file: Any
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def rows(self, start: int = 0, stop: int | None = None) -> Array:
        """The rows from `start` to `stop` (of the first axis), all by default."""
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        values: Array = np.empty((stop - start, *self.shape[1:]), dtype=self.dtype)
        place = self.offset + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        if read_at(self.file.fileno(), values.reshape(-1).view(np.uint8).data, place) < values.nbytes:
            raise EOFError("the temporary file is shorter than what was written")
        return values


_madvise: Any = ctypes.CDLL(None).madvise if sys.platform.startswith("linux") else None
_MADV_DONTNEED = 4
_MADV_POPULATE_READ = 22


@dataclass(eq=False)
class FileRange:
    """A mapping of a part of a file; or, without a path, all memory that is no file's."""

    start: int = 0
    stop: int = 0
    offset: int = 0
    inode: int = 0
    path: str = ""
    file: int | None = None
    """The file itself, whoever has its name later; None where it had lost its name before."""
    known: bool = False
    """Whether that has been looked at."""

    def check(self, values: Array) -> None:
        """Whether the file still has what is about to be read.

        Raises:
            WorkError: it does not; names the file.
        """
        if self.file is None:
            return
        there = os.fstat(self.file).st_size
        needed = self.offset + values.__array_interface__["data"][0] - self.start + values.nbytes
        if there < needed:
            raise WorkError(
                f"{self.path}: became shorter while it was read ({there} bytes, {needed} are needed); a model must not "
                "be written over the file that it was read from, except by save_model of this package"
            )

    def read(self, values: Array, buffer: Array | None = None) -> Array:
        """The values, read from the file and not through the mapping where that is possible: in a copy, or in `buffer`.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        if not self.path:
            return values
        if not values.flags.c_contiguous or not values.nbytes or self.file is None:
            self.check(values)
            self.advise(values, _MADV_POPULATE_READ)  # one call instead of a fault for every few pages
            return values
        copy = np.empty(values.shape, values.dtype) if buffer is None else buffer[: values.size].reshape(values.shape)
        self.read_into(copy, values)
        return copy

    def read_into(self, target: Array, values: Array) -> None:
        """Put contiguous values of a file that can be read into a contiguous array of the same shape and type.

        Raises:
            WorkError: the file is shorter than it was; names it.
        """
        assert self.file is not None
        place = self.offset + values.__array_interface__["data"][0] - self.start
        if read_at(self.file, target.reshape(-1).view(np.uint8).data, place) < values.nbytes:
            self.check(values)
            raise WorkError(f"{self.path}: cannot be read any more")

    def advise(self, values: Array, advice: int = _MADV_DONTNEED) -> None:
        """`madvise` for the whole pages under `values`: by default they are given back, and the file keeps them, so
        that a later read finds them again. A kernel that does not know the advice refuses: no harm done."""
        if not self.path or not values.flags.c_contiguous:
            return
        address = values.__array_interface__["data"][0]
        first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (address + values.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last <= self.stop:
            _madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


OWN_MEMORY = FileRange()
"""Of this process."""


@dataclass(frozen=True, eq=False)
class FileRows:
    """Rows of numbers that are still in their file: read into the memory of whoever computes with them, once, and not
    into an array that is copied from."""

    mapped: Array
    """Where they are mapped, contiguous `[rows, columns]`: shape and type tell, nothing of it is touched."""
    read_into: Callable[[Array, Array], None]
    """Puts some of them into an array, as `FileRange.read_into` does."""


class FileMappings:
    """The address ranges of this process that are read-only mappings of files, as they are now.

    Make it while every constant that it will be asked about is alive: memory that is unmapped later may be used again
    for something else at the same address.

    Touching a mapped page that its file no longer has ends the process (SIGBUS), as when somebody has cut the file
    short or written another model over it, `ov.save_model` over a model's own source included. So pieces are read from
    the file and not through the mapping, which costs 3 to 6 % of a run's processor time. Where that is not possible (a
    weight whose axes are permuted, a chain of constants) the file is asked for its size before each piece; what is left
    is the moment until the piece has been read, and what OpenVINO reads itself.
    """

    def __init__(self) -> None:
        self._ranges: list[FileRange] = []
        self._starts: list[int] = []
        if not sys.platform.startswith("linux"):
            return
        with open("/proc/self/maps") as lines:
            for line in lines:
                span, permissions, offset, _, inode, *path = line.split(maxsplit=5)
                if permissions[:2] == "r-" and inode != "0" and path:
                    start, stop = (int(end, 16) for end in span.split("-"))
                    self._ranges.append(FileRange(start, stop, int(offset, 16), int(inode), path[0].rstrip("\n")))
                    self._starts.append(start)

    def around(self, values: Array) -> FileRange:
        """The mapping that values begin in (they do not overlap, and the kernel lists them rising), or `OWN_MEMORY`."""
        address = values.__array_interface__["data"][0]
        place = bisect_right(self._starts, address) - 1
        if place < 0 or address >= self._ranges[place].stop:
            return OWN_MEMORY
        found = self._ranges[place]
        if not found.known:
            found.known = True
            with contextlib.suppress(OSError):
                flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
                descriptor = os.open(found.path, flags)
                if os.fstat(descriptor).st_ino == found.inode:
                    found.file = descriptor
                    weakref.finalize(found, os.close, descriptor)
                else:
                    os.close(descriptor)
        return found


def file_of(model: ov.Model) -> Path | None:
    """The model's own file, an .xml, as its constants' memory tells it; None where that is no file's, or another's."""
    mappings = FileMappings()
    constants = (node for node in model.get_ops() if node.get_type_name() == "Constant" and node.get_byte_size())
    for constant in sorted(constants, key=lambda node: -int(node.get_byte_size()))[:_ASKED]:
        path = mappings.around(np.asarray(constant.data).view()).path
        if path and Path(path).with_suffix(".xml").is_file():
            return Path(path).with_suffix(".xml")
    return None


_ASKED = 8
"""Constants, the largest first: some were perhaps computed when the model was read."""
