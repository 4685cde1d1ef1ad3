"""Writing a model so that neither memory nor a crash matters.

`ov.save_model` holds one weight at a time, but all of it: the table of a large vocabulary is hundreds of megabytes.
Here a large postponed constant is first written as zeros that begin with a mark, and once the .xml says where in the
.bin they lie, its pieces are computed and written straight into place.

Everything is written beside the destination and renamed. Before the new .bin takes the old one's place the old .xml is
removed, so an interrupted write leaves the old pair, no model, or the new pair; never a mixture.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.ir_file import stored_constants
from ov_weight_compression.ir_utils.types import Array

__all__ = ["LARGE_BYTES", "MARK_BYTES", "Deferral", "FileSink", "LargeWeight", "active_deferral", "save_model"]

LARGE_BYTES = 32 << 20
MARK_BYTES = 16

_local = threading.local()


class FileSink:
    """A stretch of an open file that pieces are written into, from any thread."""

    def __init__(self, descriptor: int, offset: int) -> None:
        self._descriptor, self._offset = descriptor, offset

    def room(self, offset: int, size: int) -> Array:
        """Memory for bytes that are to be written: the calling thread's own, which its next call hands out again."""
        buffer: Array | None = getattr(_local, "buffer", None)
        if buffer is None or buffer.size < size:
            buffer = _local.buffer = np.empty(size, dtype=np.uint8)
        return buffer[:size]

    def write(self, offset: int, data: Array) -> None:
        """Put bytes at `offset` of the stretch."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        while view:
            written = os.pwrite(self._descriptor, view, self._offset + offset)
            view, offset = view[written:], offset + written


class LargeWeight(Protocol):
    """A weight whose postponed constants can be written in pieces."""

    name: str

    def write(self, sinks: Mapping[str, FileSink]) -> None:
        """Compute the weight and write each of its parts into its sink."""
        ...


@dataclass
class Deferral:
    """The large constants that were written as zeros, to be filled in afterwards."""

    marks: dict[bytes, tuple[LargeWeight, str]] = field(default_factory=dict)

    def stub(self, owner: LargeWeight, part: str, kind: ov.Type, shape: ov.Shape) -> ov.Tensor:
        """A tensor of zeros that begins with a mark of its own. Untouched memory is none: it costs nothing."""
        tensor = ov.Tensor(kind, shape)
        mark = b"to be filled" + (len(self.marks) + 1).to_bytes(MARK_BYTES - 12, "little")
        tensor.data.reshape(-1).view(np.uint8)[:MARK_BYTES] = np.frombuffer(mark, dtype=np.uint8)
        self.marks[mark] = (owner, part)
        return tensor

    def fill(self, xml: Path, weights: Path) -> None:
        """Find the marks in the .bin and write what they stand for."""
        descriptor = os.open(weights, os.O_RDWR)
        try:
            found: dict[int, tuple[LargeWeight, dict[str, FileSink]]] = {}
            for constant in stored_constants(xml):
                if constant.size < MARK_BYTES:
                    continue
                entry = self.marks.pop(os.pread(descriptor, MARK_BYTES, constant.offset), None)
                if entry is not None:
                    owner, part = entry
                    found.setdefault(id(owner), (owner, {}))[1][part] = FileSink(descriptor, constant.offset)
            if self.marks:
                owner, part = next(iter(self.marks.values()))
                raise WorkError(f"{owner.name}: its {part} were not found in {weights}")
            for owner, sinks in found.values():
                owner.write(sinks)
        finally:
            os.close(descriptor)


def active_deferral() -> Deferral | None:
    """The deferral of the `save_model` that is running in this thread, if there is one."""
    return getattr(_local, "deferral", None)


@contextmanager
def _deferring() -> Iterator[Deferral]:
    _local.deferral = Deferral()
    try:
        yield _local.deferral
    finally:
        _local.deferral = None


def save_model(model: Any, path: str | Path, after_write: Callable[[], None] | None = None) -> None:
    """Write `model` as `path` (.xml) and its .bin, in bounded memory and all or nothing.

    Unlike `ov.save_model` it leaves the precision of everything that was not compressed as it is. `after_write` is
    called when both files are complete and before they take their names: what it raises leaves the destination as it
    was.

    Raises:
        WorkError: the disk is full or the files cannot be written, or a weight could not be computed.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.xml")
    weights = partial.with_suffix(".bin")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _deferring() as deferral:
            ov.serialize(model, str(partial), str(weights))
        _check_complete(partial, weights)
        deferral.fill(partial, weights)
        if after_write is not None:
            after_write()
        path.unlink(missing_ok=True)
        weights.replace(path.with_suffix(".bin"))
        partial.replace(path)
    except OSError as error:
        raise WorkError(f"{path}: cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:
        if isinstance(error, WorkError):
            raise
        raise WorkError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        for leftover in (partial, weights):
            if leftover.exists():
                leftover.unlink()


def _reason(error: RuntimeError) -> str:
    """The last line of what OpenVINO says; in plain words where that is only that a stream failed."""
    line = (str(error).strip() or "no reason given").splitlines()[-1]
    return f"the disk is full, or refuses more for another reason ({line})" if "iostream" in line else line


def _check_complete(xml: Path, weights: Path) -> None:
    """OpenVINO does not notice a full disk."""
    needed = max((constant.offset + constant.size for constant in stored_constants(xml)), default=0)
    size = weights.stat().st_size if weights.exists() else 0
    if size < needed:
        raise OSError(28, f"the disk is full ({size} of {needed} bytes were written)")
