"""A weight whose constants are computed when somebody asks for them: of compression, decompression and adapters alike.

What knows how to compute it is its `Encoding`; the pipeline that runs it is shared by all weights of a model, and by
all clones of the model. Nothing here changes while models are saved and compiled: any number of threads may do that.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.packing import tensor_bytes
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.postponed_constants import postponed_constant
from ov_weight_compression.ir_utils.stubs import FileSink, active_stubs
from ov_weight_compression.ir_utils.types import Array, element_type
from ov_weight_compression.ir_utils.worker_pool import Job, Task
from ov_weight_compression.ir_utils.write_behind import reserve

_LARGE_BYTES = 32 << 20
_MAPPED = {"u8": np.uint8, "i8": np.int8}


@dataclass(frozen=True)
class Part:
    """One constant as it will be stored: OpenVINO's name of its type, and its shape."""

    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the .bin file."""
        return tensor_bytes(self.shape, element_type(self.type).bitwidth)

    def tensor(self) -> ov.Tensor:
        """An empty tensor that owns its memory."""
        return ov.Tensor(element_type(self.type), ov.Shape(list(self.shape)))


def filled(part: Part, data: Array) -> ov.Tensor:
    """A part's tensor with these bytes."""
    tensor = part.tensor()
    tensor.data.reshape(-1).view(np.uint8)[...] = data.reshape(-1).view(np.uint8)
    return tensor


class Sink(Protocol):
    """Where a part goes piece by piece: a tensor, or the output file itself."""

    def room(self, offset: int, size: int) -> Array:
        """Memory (uint8) to put in what will be written at byte `offset`; this thread's until it asks again."""

    def write(self, offset: int, data: Array) -> None:
        """Put the bytes of `data` at byte `offset` of the part."""


class _MemorySink:
    def __init__(self, memory: Array) -> None:
        self._bytes: Array = memory.reshape(-1).view(np.uint8)

    def room(self, offset: int, size: int) -> Array:
        return self._bytes[offset : offset + size]

    def write(self, offset: int, data: Array) -> None:
        data = data.reshape(-1).view(np.uint8)
        target = self._bytes[offset : offset + data.size]
        if not np.may_share_memory(target, data):  # it is `room`
            target[:] = data


class Encoding(Protocol):
    """What computes a weight's constants. Running it changes nothing of it."""

    @property
    def name(self) -> str:
        """The weight's, for errors."""
        ...

    @property
    def identity(self) -> Hashable | None:
        """Equal for weights whose constants are the same bytes, which are then stored once; None is equal to none."""
        ...

    @property
    def parts(self) -> Mapping[str, Part]:
        """The constants."""
        ...

    @property
    def bulk(self) -> str:
        """The part that is computed in pieces."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held while it is computed in memory."""
        ...

    @property
    def together(self) -> Hashable | None:
        """Equal for small weights that `begin_into` takes together; None for one that is computed alone."""
        ...

    def begin_into(
        self, sink: Sink, others: Sequence[tuple[Any, Sink]] = ()
    ) -> tuple[Sequence[Task], Callable[[], Sequence[dict[str, Array]]]]:
        """The tasks that put the bulk into `sink`, and that of other encodings into theirs, and what returns the bytes
        of each one's other computed parts after the last."""
        ...


class LazyWeight:
    """A weight of a pipeline, as the makers of its constants and `save_model` see it. Implements `StubbedWeight`."""

    def __init__(self, pipeline: Pipeline, encoding: Encoding) -> None:
        self.pipeline, self.encoding = pipeline, encoding
        self.name = encoding.name
        self._number = pipeline.add(self.job({}))

    @property
    def identity(self) -> Hashable | None:
        """What the constants follow from (see `StubbedWeight`)."""
        return self.encoding.identity

    def part(self, name: str) -> ov.Tensor:
        """A part, computed now or fetched if computed ahead; a stub where `save_model` computes the weight later."""
        stubs = active_stubs()
        if stubs is None:
            return self.computed(name)
        part = self.encoding.parts[name]
        return stubs.stub(self, name, element_type(part.type), part.shape)

    def computed(self, name: str) -> ov.Tensor:
        """A part, computed now or fetched if computed ahead."""
        tensor: ov.Tensor = self.pipeline.take(self._number, name)
        return tensor

    def constant(self, name: str, plain_in_clones: bool = False) -> Any:
        """A part as a postponed constant; `plain_in_clones` as in `ir_utils.postponed_constants`."""
        part = self.encoding.parts[name]
        plain = partial(self._plain, name) if plain_in_clones else None
        return postponed_constant(element_type(part.type), ov.Shape(list(part.shape)), partial(self.part, name), plain)

    def job(self, sinks: Mapping[str, Sink]) -> Job:
        """The weight's computation, with the parts that have sinks straight into their places there."""
        encoding = self.encoding
        return _WeightJob(encoding.name, encoding.nbytes, encoding.together, encoding, sinks)

    def _plain(self, name: str) -> Any:
        """A part as a Constant. A large weight's codes lie in a temporary file that is mapped, not in memory; its other
        parts are kept until this thread asks for them.

        Codes are put there through the mapping: a file is written by one thread at a time, and where its pages are
        dear all threads waited for them. Where the space was not to be had beforehand they are written all the same: a
        disk that is full then would end the process in the middle of a store.
        """
        bulk = self.encoding.parts[self.encoding.bulk]
        kind = _MAPPED.get(bulk.type)
        if kind is None or bulk.nbytes < _LARGE_BYTES:
            return ov.op.Constant(self.computed(name), shared_memory=True)
        kept: dict[str, Any] = self.__dict__.setdefault("_mapped", threading.local()).__dict__
        if name not in kept:
            with tempfile.TemporaryFile(prefix="ov-weight-compression-") as file:
                reserved = reserve(file.fileno(), bulk.nbytes)
                codes = np.memmap(file, dtype=kind, mode="r+", shape=bulk.shape)
                sink = _MemorySink(np.asarray(codes)) if reserved else FileSink(file.fileno(), 0)
                (small,) = self.pipeline.run_all([self.job({self.encoding.bulk: sink})])
            self.pipeline.files.handed_out(bulk.nbytes)
            kept.update({part: ov.op.Constant(tensor, shared_memory=True) for part, tensor in small.items()})
            kept[self.encoding.bulk] = ov.op.Constant(codes, shared_memory=True)
        return kept.pop(name)


@dataclass(frozen=True)
class _WeightJob:
    """A weight computed into tensors, but for the parts that have a place of their own."""

    name: str
    nbytes: int
    together: Hashable | None
    encoding: Encoding
    sinks: Mapping[str, Sink]

    def begin(self, *others: _WeightJob) -> tuple[Sequence[Task], Callable[[], Sequence[dict[str, Any]]]]:
        jobs = (self, *others)
        made: list[dict[str, Any]] = [{} for _ in jobs]
        first, *rest = [(job.encoding, job._bulk_sink(parts)) for job, parts in zip(jobs, made, strict=True)]
        tasks, finish = self.encoding.begin_into(first[1], rest)

        def hand_over() -> Sequence[dict[str, Any]]:
            for job, parts, computed in zip(jobs, made, finish(), strict=True):
                for name, data in computed.items():
                    if name in job.sinks:
                        job.sinks[name].write(0, data)
                    else:
                        parts[name] = filled(job.encoding.parts[name], data)
            return made

        return tasks, hand_over

    def _bulk_sink(self, parts: dict[str, Any]) -> Sink:
        """Where the bulk goes: its own place, or a tensor among the parts."""
        bulk = self.encoding.bulk
        if bulk in self.sinks:
            return self.sinks[bulk]
        parts[bulk] = self.encoding.parts[bulk].tensor()
        return _MemorySink(parts[bulk].data)
