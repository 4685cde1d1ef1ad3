"""Tensors of every window, between the piece of a model that makes them and the last one that reads them.

In memory while it lasts, then on disk: in a temporary directory (`TMPDIR` decides where) that is removed when the pool
is closed, whatever happens. Memory that a tensor no longer needs goes to the next one of its size, as blocks of a model
have tensors of the same few sizes: having new pages mapped takes several times as long as copying a tensor into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ov_weight_compression.calibration.activation_graph import TensorKey
from ov_weight_compression.ir_utils.publish import TemporaryFolder

_TINY = 128
"""Bytes of a tensor that never goes to disk."""
_SMALL = 16
"""Integer vectors of at most so many elements are compared between windows: shapes that are always the same."""


class Pool:
    """What several stores share: a memory limit in bytes, and the directory for what does not fit. Several threads may
    use it at once, but no two of them one tensor."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._idle: dict[int, list[NDArray[np.uint8]]] = {}
        self._idle_bytes = 0
        self._directory: TemporaryFolder | None = None
        self._files = 0
        self._lock = Lock()

    def take(self, size: int) -> NDArray[np.uint8] | None:
        """Memory for so many bytes; None where that would be too much."""
        with self._lock:
            if self._idle.get(size):
                found = self._idle[size].pop()
                self._idle_bytes -= size
            elif self.used + size > self.limit and size > _TINY:
                return None
            else:
                for other in [one for one, arrays in self._idle.items() for _ in arrays]:
                    if self.used + self._idle_bytes + size > self.limit:
                        self._idle[other].pop()
                        self._idle_bytes -= other
                found = np.empty(size, np.uint8)
            self.used += size
            return found

    def give(self, memory: NDArray[np.uint8]) -> None:
        """Memory that nothing reads any more."""
        with self._lock:
            self.used -= memory.size
            if self._idle_bytes + memory.size <= self.limit // 2:
                self._idle.setdefault(memory.size, []).append(memory)
                self._idle_bytes += memory.size

    def new_file(self) -> Path:
        """A path in the temporary directory that nothing uses yet."""
        with self._lock:
            if self._directory is None:
                self._directory = TemporaryFolder()
            self._files += 1
            return self._directory.path / f"{self._files}.bin"

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._directory is not None:
            self._directory.discard()
            self._directory = None


@dataclass
class _Entry:
    """One tensor: an array for each window, or where in the file it lies."""

    arrays: dict[int, NDArray[Any]] = field(default_factory=dict)
    memory: list[NDArray[np.uint8]] = field(default_factory=list)
    """What the arrays lie in."""
    places: dict[int, tuple[int, tuple[int, ...], np.dtype[Any]]] = field(default_factory=dict)
    path: Path | None = None
    size: int = 0
    first: tuple[tuple[int, ...], NDArray[Any]] | None = None
    same_shape: bool = True
    same_value: bool = True


class Store:
    """The tensors of one stream. A stream that has left another one reads from it what it has not made itself."""

    def __init__(self, pool: Pool, parent: Store | None = None) -> None:
        self._pool = pool
        self._parent = parent
        self._entries: dict[TensorKey, _Entry] = {}

    def put(self, key: TensorKey, window: int, array: NDArray[Any]) -> None:
        """Keep a copy of a window's tensor. The windows of a tensor are put once each, in any order."""
        entry = self._entries.setdefault(key, _Entry())
        _compare(entry, array)
        memory = self._pool.take(array.nbytes)
        if memory is not None:
            entry.memory.append(memory)
            entry.arrays[window] = memory.view(array.dtype).reshape(array.shape)
            np.copyto(entry.arrays[window], array)
            return
        if entry.path is None:
            entry.path = self._pool.new_file()
        with entry.path.open("ab") as file:
            file.write(np.ascontiguousarray(array).data)
        entry.places[window] = (entry.size, array.shape, array.dtype)
        entry.size += array.nbytes

    def get(self, key: TensorKey, window: int) -> NDArray[Any]:
        """A window's tensor; not to be written to, nor read once the tensor has been dropped."""
        entry = self._find(key)
        if window in entry.arrays:
            return entry.arrays[window]
        offset, shape, dtype = entry.places[window]
        assert entry.path is not None
        count = int(np.prod(shape, dtype=np.int64))
        return np.fromfile(entry.path, dtype, count, offset=offset).reshape(shape)

    def shape(self, key: TensorKey) -> tuple[int, ...] | None:
        """The tensor's shape where it is the same in all windows, else None."""
        entry = self._find(key)
        return entry.first[0] if entry.first is not None and entry.same_shape else None

    def value(self, key: TensorKey) -> NDArray[Any] | None:
        """The value of a short vector of integers that is the same in all windows, else None."""
        entry = self._find(key)
        return entry.first[1] if entry.first is not None and entry.same_value else None

    def drop(self, key: TensorKey) -> None:
        """Forget a tensor of this store; nothing happens where it has none."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            for memory in entry.memory:
                self._pool.give(memory)
            if entry.path is not None:
                entry.path.unlink(missing_ok=True)

    def __contains__(self, key: object) -> bool:
        """Whether this store holds the tensor itself."""
        return key in self._entries

    def __iter__(self) -> Iterator[TensorKey]:
        """The tensors that this store holds itself, now: another thread may put one there meanwhile."""
        return iter(list(self._entries))

    def _find(self, key: TensorKey) -> _Entry:
        if key in self._entries or self._parent is None:
            return self._entries[key]
        return self._parent._find(key)


def _compare(entry: _Entry, array: NDArray[Any]) -> None:
    """Note whether this window's tensor has the shape, and if it is small the value, of the windows before."""
    small = array.size <= _SMALL and array.ndim <= 1 and array.dtype.kind in "iu"
    if entry.first is None:
        entry.first = (array.shape, np.array(array) if small else np.empty(0, array.dtype))
        entry.same_value = small
        return
    shape, value = entry.first
    entry.same_shape &= array.shape == shape
    entry.same_value &= small and array.shape == shape and bool(np.array_equal(array, value))
