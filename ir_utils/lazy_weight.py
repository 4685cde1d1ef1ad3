"""A weight whose constants are computed when somebody asks for them: of compression, decompression and adapters alike.

What knows how to compute it is its `Encoding`; the pipeline that runs it is shared by all weights of a model, and by
all clones of the model. Nothing here changes while models are saved and compiled: any number of threads may do that.

**Stubs.** While `save_model` lets OpenVINO serialise a model, the maker of a postponed constant may hand over a stub: a
few bytes that no other constant has. `save_model` then makes room in the .bin for what the stubs stand for, and the
weights are computed straight into their places, by all threads and in any order: no tensor of a whole weight is ever
held.

**Postponed constants** are OpenVINO's own, or a variant that becomes a plain Constant in every clone of the model. The
variant exists for embeddings. The CPU plugin recognises a compressed table in front of a Gather only if its codes
are a plain Constant, and folds the chain to floats before it would fold a postponed one to codes; in groups it wants
the scales and zero points plain as well, and refuses to compile the model where they are not. Each plugin compiles
a clone of the model, so the clone is where the codes can become plain. `ov.save_model` clones as well: there the table
is computed at once and kept until it is written (a large one in a temporary file).

OpenVINO gives a clone the marks of the original, and of a plain Constant that is marked as postponed it makes a copy in
memory when it saves. So the mark of a large one is taken away as soon as the next node is cloned.

**Exceptions.** What is raised in a call out of `compile_model` is what `compile_model` raises, Ctrl-C included.

OpenVINO (2026.4) makes a RuntimeError of several lines of any exception that is raised in Python while it compiles a
model; saving hands them on as they are. So with the first call out of a `compile_model` a watch begins. It ends with
the Python frame of that `compile_model`, of which a profile function is told, and which can still raise something else.

A signal that arrives while OpenVINO computes is handled when Python code is next executed, in the first line of such a
call at the latest, where nothing could catch what the handler raises. So for the time of the watch the handler of
SIGINT is called by one that keeps that for later.

Where somebody else profiles the thread OpenVINO's errors stay as they are.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, Protocol

import numpy as np
import openvino as ov
from openvino.utils import postponed_constant as base

from ov_weight_compression.ir_utils.file_io import WriteBehind, reserve, write_at
from ov_weight_compression.ir_utils.types import Array, element_type, tensor_bytes
from ov_weight_compression.ir_utils.worker_pool import Job, Pipeline, Task

_DEEPEST = 64  # frames to look through for a compile_model
_MARK = "postponed_constant"
_MARKED_BYTES = 1 << 20


class _Local(threading.local):
    """What a thread is at."""

    marked: Any = None
    """The large Constant that its last clone is."""
    stubs: Stubs | None = None
    """Of the `save_model` that is running."""
    buffer: Array = np.empty(0, dtype=np.uint8)


here = _Local()


class PostponedConstant(base.PostponedConstant):
    # (The name is the type that OpenVINO shows.)
    plain: Callable[[], Any] | None = None

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        with called_by_openvino():
            return bool(super().evaluate(outputs, inputs))

    def clone_with_new_inputs(self, new_inputs: Any) -> Any:
        with called_by_openvino():
            name = self.get_friendly_name()
            if self.plain is None:
                return postponed_constant(self.m_element_type, self.m_shape, self.m_maker, name=name)
            constant = self.plain()
            constant.set_friendly_name(name)
            if constant.get_byte_size() >= _MARKED_BYTES:
                here.marked = constant
            return constant


def postponed_constant(
    kind: ov.Type,
    shape: ov.Shape,
    maker: Callable[[], ov.Tensor],
    plain: Callable[[], Any] | None = None,
    name: str | None = None,
) -> Any:
    """A constant whose value `maker` computes when it is serialised or folded; the tensor must own its memory.

    `plain` returns the Constant that stands for it in clones; without it the clones are postponed as well.
    """
    node = PostponedConstant(kind, shape, maker, name)
    node.plain = plain
    return node


@contextmanager
def called_by_openvino() -> Iterator[None]:
    """Around all that happens in a call out of OpenVINO: what is raised is noted by the watch over the `compile_model`
    that is running in this thread, if there is one."""
    marked, here.marked = here.marked, None
    if marked is not None and _MARK in marked.get_rt_info():
        del marked.get_rt_info()[_MARK]
    watch: Any = sys.getprofile()
    frame: FrameType | None = sys._getframe() if watch is None else None
    for _ in range(_DEEPEST):
        if frame is None:
            break
        if frame.f_code.co_name == "compile_model" and frame.f_globals.get("__name__", "").startswith("openvino"):
            with contextlib.suppress(ValueError):  # a thread of another interpreter cannot handle signals
                watch = _Watch(frame)
            break
        frame = frame.f_back
    if not isinstance(watch, _Watch):
        yield
        return
    try:
        watch.inside = True
        if watch.interrupt is not None:
            raise watch.interrupt
        yield
    except BaseException as error:
        watch.inside = False
        watch.error = watch.error or error
        if sys.getprofile() is not watch:  # Python drops a profile function that is interrupted
            sys.setprofile(watch)
        raise
    finally:
        watch.inside = False


class _Watch:
    """The profile function of a thread that compiles a model, until its `frame` ends."""

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame
        self.inside = False
        """Whether what is raised now can be noted."""
        self.error: BaseException | None = None
        self.interrupt: BaseException | None = None
        """What the handler of a signal has raised at a bad moment."""
        self.handler: Any = None
        if threading.current_thread() is threading.main_thread():
            self.handler = signal.getsignal(signal.SIGINT)
            if callable(self.handler):
                signal.signal(signal.SIGINT, self.handle)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, result: object) -> None:
        if frame is not self.frame or event != "return":
            return
        sys.setprofile(None)
        if callable(self.handler) and signal.getsignal(signal.SIGINT) == self.handle:
            signal.signal(signal.SIGINT, self.handler)
        error = self.interrupt or (self.error if result is None else None)
        self.error = self.interrupt = None
        if error is not None:
            raise error

    def handle(self, number: int, frame: FrameType | None) -> None:
        """In place of the handler of SIGINT."""
        if self.inside:
            self.handler(number, frame)
            return
        try:
            self.handler(number, frame)
        except BaseException as caught:
            self.interrupt = caught


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
        return tensor_bytes(math.prod(self.shape), element_type(self.type).bitwidth)

    def tensor(self, data: Array | None = None) -> ov.Tensor:
        """A tensor that owns its memory, with these bytes or empty."""
        tensor = ov.Tensor(element_type(self.type), ov.Shape(list(self.shape)))
        if data is not None:
            tensor.data.reshape(-1).view(np.uint8)[...] = data.reshape(-1).view(np.uint8)
        return tensor


class Sink(Protocol):
    """Where a part goes piece by piece: a tensor, or the output file itself."""

    def room(self, offset: int, size: int) -> Array:
        """Memory (uint8) to put in what will be written at byte `offset`; this thread's until it asks again."""

    def write(self, offset: int, data: Array) -> None:
        """Put the bytes of `data` at byte `offset` of the part."""


@dataclass(frozen=True, eq=False)
class _MemorySink:
    bytes: Array

    def room(self, offset: int, size: int) -> Array:
        return self.bytes[offset : offset + size]

    def write(self, offset: int, data: Array) -> None:
        data = data.reshape(-1).view(np.uint8)
        target = self.bytes[offset : offset + data.size]
        if not np.may_share_memory(target, data):  # it is `room`
            target[:] = data


@dataclass(frozen=True, eq=False)
class FileSink:
    """A stretch of an open file that pieces are written into, from any thread."""

    descriptor: int
    offset: int
    behind: WriteBehind | None = None

    def room(self, offset: int, size: int) -> Array:
        """Memory for bytes that are to be written: the calling thread's own, which its next call hands out again."""
        if here.buffer.size < size:
            here.buffer = np.empty(size, dtype=np.uint8)
        return here.buffer[:size]

    def write(self, offset: int, data: Array) -> None:
        """Put the bytes of `data` at byte `offset` of the stretch."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        start = self.offset + offset
        write_at(self.descriptor, view, start)
        if self.behind is not None:
            self.behind.note(start, len(view))


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
        """Equal for small weights that `begin` takes together; None for one that is computed alone."""
        ...

    def begin(self, targets: Sequence[Target]) -> tuple[Sequence[Task], Task]:
        """The tasks that put this weight's computed parts, and those of others that are computed together with it,
        where they go, and what does the rest after the last. The first target is its own."""
        ...


@dataclass(frozen=True, eq=False)
class Target:
    """Where the computed parts of a weight go: to places of their own, else into tensors."""

    encoding: Any
    places: Mapping[str, Sink]
    tensors: dict[str, Any] = field(default_factory=dict)

    def sink(self, name: str) -> Sink:
        """Of a part; asked for once."""
        if name in self.places:
            return self.places[name]
        tensor = self.tensors[name] = self.encoding.parts[name].tensor()
        return _MemorySink(tensor.data.reshape(-1).view(np.uint8))


@dataclass(frozen=True)
class _WeightJob:
    """A weight computed into tensors, but for the parts that have a place of their own."""

    name: str
    nbytes: int
    together: Hashable | None
    encoding: Encoding
    places: Mapping[str, Sink]

    def begin(self, *others: _WeightJob) -> tuple[Sequence[Task], Task, Sequence[dict[str, Any]]]:
        targets = [Target(job.encoding, job.places) for job in (self, *others)]
        return *self.encoding.begin(targets), [target.tensors for target in targets]


class LazyWeight:
    """A weight of a pipeline, as the makers of its constants and `save_model` see it. Implements `StubbedWeight`."""

    def __init__(self, pipeline: Pipeline, encoding: Encoding) -> None:
        self.pipeline, self.encoding = pipeline, encoding
        self.name = encoding.name
        self._number = pipeline.batches.add(self.job({}))

    @property
    def identity(self) -> Hashable | None:
        """What the constants follow from (see `StubbedWeight`)."""
        return self.encoding.identity

    def part(self, name: str) -> ov.Tensor:
        """A part, computed now or fetched if computed ahead; a stub where `save_model` computes the weight later."""
        if here.stubs is None:
            return self.computed(name)
        part = self.encoding.parts[name]
        return here.stubs.stub(self, name, element_type(part.type), part.shape)

    def computed(self, name: str) -> ov.Tensor:
        """A part, computed now or fetched if computed ahead."""
        tensor: ov.Tensor = self.pipeline.take(self._number, name)
        return tensor

    def constant(self, name: str, plain_in_clones: bool = False) -> Any:
        """A part as a postponed constant; `plain_in_clones` as `plain` of `postponed_constant`."""
        part = self.encoding.parts[name]
        plain = partial(self._plain, name) if plain_in_clones else None
        return postponed_constant(element_type(part.type), ov.Shape(list(part.shape)), partial(self.part, name), plain)

    def job(self, places: Mapping[str, Sink]) -> Job:
        """The weight's computation, with the parts that have places straight into them."""
        encoding = self.encoding
        return _WeightJob(encoding.name, encoding.nbytes, encoding.together, encoding, places)

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
            return ov.op.Constant(self.pipeline.take(self._number, name), shared_memory=True)
        kept: dict[str, Any] = self.__dict__.setdefault("_mapped", threading.local()).__dict__
        if name not in kept:
            with tempfile.TemporaryFile(prefix="ov-weight-compression-") as file:
                reserved = reserve(file.fileno(), bulk.nbytes)
                codes = np.memmap(file, dtype=kind, mode="r+", shape=bulk.shape)
                memory = np.asarray(codes).reshape(-1).view(np.uint8)
                sink = _MemorySink(memory) if reserved else FileSink(file.fileno(), 0)
                (small,) = self.pipeline.run_all([self.job({self.encoding.bulk: sink})])
            self.pipeline.files.handed_out(bulk.nbytes)
            kept.update({part: ov.op.Constant(tensor, shared_memory=True) for part, tensor in small.items()})
            kept[self.encoding.bulk] = ov.op.Constant(codes, shared_memory=True)
        return kept.pop(name)


STUB_BYTES = 16


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

    def job(self, places: Mapping[str, FileSink]) -> Job:
        """What computes the weight and writes each of its parts into its place; it returns no parts."""
        ...


@dataclass(frozen=True)
class Stub:
    """A constant to be: whose, and what it is stored as."""

    owner: StubbedWeight
    part: str
    kind: ov.Type
    shape: tuple[int, ...]
    nbytes: int
    """In the .bin file."""


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
        if mark not in self.stubs:
            self.stubs[mark] = Stub(first, part, kind, shape, tensor_bytes(math.prod(shape), kind.bitwidth))
        tensor = ov.Tensor(ov.Type.u8, ov.Shape([STUB_BYTES]))
        tensor.data[:] = np.frombuffer(mark, dtype=np.uint8)
        return tensor

    def compute(self, descriptor: int, offsets: Mapping[bytes, int]) -> None:
        """Compute every weight into the open file; `offsets` are those of the constants by their stubs.

        Raises:
            WorkError: a weight could not be computed, or not be written.
        """
        behind = WriteBehind(descriptor)
        places: dict[int, dict[str, FileSink]] = {}
        owners: dict[int, StubbedWeight] = {}
        for mark, stub in self.stubs.items():
            owners[id(stub.owner)] = stub.owner
            places.setdefault(id(stub.owner), {})[stub.part] = FileSink(descriptor, offsets[mark], behind)
        jobs: dict[int, tuple[Pipeline, list[Job]]] = {}
        for number, owner in owners.items():
            pipeline = owner.pipeline
            jobs.setdefault(id(pipeline), (pipeline, []))[1].append(owner.job(places[number]))
        for pipeline, each in jobs.values():
            pipeline.run_all(each)


@contextmanager
def stubbing() -> Iterator[Stubs]:
    """Let makers that this thread calls hand over stubs."""
    here.stubs = Stubs()
    try:
        yield here.stubs
    finally:
        here.stubs = None
