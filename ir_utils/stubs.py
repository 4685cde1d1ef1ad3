"""Constants that are computed after the graph has been written.

While `save_model` lets OpenVINO serialise a model, the maker of a postponed constant may hand over a stub: a few bytes
that no other constant has. `save_model` then makes room in the .bin for what the stubs stand for, and the weights are
computed straight into their places, by all threads and in any order: no tensor of a whole weight is ever held.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.packing import tensor_bytes
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.positional_io import write_at
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.worker_pool import Job
from ov_weight_compression.ir_utils.write_behind import WriteBehind

STUB_BYTES = 16

_local = threading.local()


class FileSink:
    """A stretch of an open file that pieces are written into, from any thread."""

    def __init__(self, descriptor: int, offset: int, behind: WriteBehind | None = None) -> None:
        self._descriptor, self._offset, self._behind = descriptor, offset, behind

    def room(self, offset: int, size: int) -> Array:
        """Memory for bytes that are to be written: the calling thread's own, which its next call hands out again."""
        buffer: Array | None = getattr(_local, "buffer", None)
        if buffer is None or buffer.size < size:
            buffer = _local.buffer = np.empty(size, dtype=np.uint8)
        return buffer[:size]

    def write(self, offset: int, data: Array) -> None:
        """Put the bytes of `data` at byte `offset` of the stretch."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        start = self._offset + offset
        write_at(self._descriptor, view, start)
        if self._behind is not None:
            self._behind.note(start, len(view))


class StubbedWeight(Protocol):
    """A weight whose constants can be written after the graph."""

    name: str

    @property
    def pipeline(self) -> Pipeline:
        """What computes it."""
        ...

    @property
    def identity(self) -> Hashable | None:
        """Equal for weights whose constants are the same bytes, which are then stored once; None is equal to none."""
        ...

    def job(self, sinks: Mapping[str, FileSink]) -> Job:
        """What computes the weight and writes each of its parts into its sink; it returns no parts."""
        ...


@dataclass(frozen=True)
class Stub:
    """A constant to be: whose, and what it is stored as."""

    owner: StubbedWeight
    part: str
    kind: ov.Type
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the .bin file."""
        return tensor_bytes(self.shape, self.kind.bitwidth)


@dataclass
class Stubs:
    """The stubs of one `save_model`, by the bytes that stand for them."""

    stubs: dict[bytes, Stub] = field(default_factory=dict)
    _alike: dict[Hashable, StubbedWeight] = field(default_factory=dict)
    _first: dict[int, StubbedWeight] = field(default_factory=dict)
    """By the weight's id: the first one whose constants are the same bytes."""
    _marks: dict[tuple[int, str], bytes] = field(default_factory=dict)

    def stub(self, owner: StubbedWeight, part: str, kind: ov.Type, shape: tuple[int, ...]) -> ov.Tensor:
        """What is serialised in place of a constant."""
        if id(owner) not in self._first:
            identity = owner.identity
            self._first[id(owner)] = owner if identity is None else self._alike.setdefault(identity, owner)
        first = self._first[id(owner)]
        mark = b"to be filled" + (len(self.stubs) + 1).to_bytes(STUB_BYTES - 12, "little")
        mark = self._marks.setdefault((id(first), part), mark)
        self.stubs.setdefault(mark, Stub(first, part, kind, shape))
        tensor = ov.Tensor(ov.Type.u8, ov.Shape([STUB_BYTES]))
        tensor.data[:] = np.frombuffer(mark, dtype=np.uint8)
        return tensor

    def compute(self, descriptor: int, places: Mapping[bytes, int]) -> None:
        """Compute every weight into the open file; `places` are the offsets of the constants by their stubs.

        Raises:
            WorkError: a weight could not be computed, or not be written.
        """
        behind = WriteBehind(descriptor)
        sinks: dict[int, dict[str, FileSink]] = {}
        owners: dict[int, StubbedWeight] = {}
        for mark, stub in self.stubs.items():
            owners[id(stub.owner)] = stub.owner
            sinks.setdefault(id(stub.owner), {})[stub.part] = FileSink(descriptor, places[mark], behind)
        jobs: dict[int, tuple[Pipeline, list[Job]]] = {}
        for number, owner in owners.items():
            pipeline = owner.pipeline
            jobs.setdefault(id(pipeline), (pipeline, []))[1].append(owner.job(sinks[number]))
        for pipeline, each in jobs.values():
            pipeline.run_all(each)


def active_stubs() -> Stubs | None:
    """The stubs of the `save_model` that is running in this thread, if there is one."""
    return getattr(_local, "stubs", None)


@contextmanager
def stubbing() -> Iterator[Stubs]:
    """Let makers that this thread calls hand over stubs."""
    _local.stubs = Stubs()
    try:
        yield _local.stubs
    finally:
        _local.stubs = None
