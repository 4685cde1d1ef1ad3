"""Arrays kept in a temporary file until they are asked for: results that took long and must not fill memory."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from ov_weight_compression.ir_utils.positional_io import read_into, write_at
from ov_weight_compression.ir_utils.types import Array


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
