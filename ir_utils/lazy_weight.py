"""A weight whose constants are computed when somebody asks for them: of compression, decompression and adapters alike.

What knows how to compute it is its `Encoding`; the pipeline that runs it is shared by all weights of a model, and by
all clones of the model. Nothing here changes while models are saved and compiled: any number of threads may do that.

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
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import openvino as ov
from openvino.utils import postponed_constant as base

from ov_weight_compression.ir_utils.file_io import reserve
from ov_weight_compression.ir_utils.types import element_type
from ov_weight_compression.ir_utils.worker_pool import Encoding, FileSink, Job, MemorySink, Pipeline

_DEEPEST = 64  # frames to look through for a compile_model
_MARK = "postponed_constant"
_MARKED_BYTES = 1 << 20


class _Local(threading.local):
    """What a thread is at."""

    marked: Any = None
    """The large Constant that its last clone is."""
    stub: Callable[[LazyWeight, str], ov.Tensor] | None = None
    """What the `save_model` that is running takes in place of a part."""


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


class LazyWeight:
    """A weight of a pipeline, as the makers of its constants and `save_model` see it."""

    def __init__(self, pipeline: Pipeline, encoding: Encoding) -> None:
        self.pipeline, self.encoding = pipeline, encoding
        self._number = pipeline.batches.add(Job(encoding))

    def part(self, name: str) -> ov.Tensor:
        """A part, computed now or fetched if computed ahead; a stub where `save_model` computes the weight later."""
        return self.computed(name) if here.stub is None else here.stub(self, name)

    def computed(self, name: str) -> ov.Tensor:
        """A part, computed now or fetched if computed ahead."""
        tensor: ov.Tensor = self.pipeline.take(self._number, name)
        return tensor

    def constant(self, name: str, plain_in_clones: bool = False) -> Any:
        """A part as a postponed constant; `plain_in_clones` as `plain` of `postponed_constant`."""
        part = self.encoding.parts[name]
        plain = partial(self._plain, name) if plain_in_clones else None
        return postponed_constant(element_type(part.type), ov.Shape(list(part.shape)), partial(self.part, name), plain)

    def _plain(self, name: str) -> Any:
        """A part as a Constant. A large weight's codes lie in a temporary file that is mapped, not in memory; its other
        parts are kept until this thread asks for them.

        Codes are put there through the mapping: a file is written by one thread at a time, and where its pages are
        dear all threads waited for them. Where the space was not to be had beforehand they are written all the same: a
        disk that is full then would end the process in the middle of a store.
        """
        bulk, stored = next(iter(self.encoding.parts.items()))
        kind = _MAPPED.get(stored.type)
        if kind is None or stored.nbytes < _LARGE_BYTES:
            return ov.op.Constant(self.pipeline.take(self._number, name), shared_memory=True)
        kept: dict[str, Any] = self.__dict__.setdefault("_mapped", threading.local()).__dict__
        if name not in kept:
            with tempfile.TemporaryFile(prefix="ov-weight-compression-") as file:
                reserved = reserve(file.fileno(), stored.nbytes)
                codes = np.memmap(file, dtype=kind, mode="r+", shape=stored.shape)
                memory = np.asarray(codes).reshape(-1).view(np.uint8)
                sink = MemorySink(memory) if reserved else FileSink(file.fileno(), 0)
                (small,) = self.pipeline.run_all([Job(self.encoding, {bulk: sink})])
            self.pipeline.files.handed_out(stored.nbytes)
            kept.update({part: ov.op.Constant(tensor, shared_memory=True) for part, tensor in small.items()})
            kept[bulk] = ov.op.Constant(codes, shared_memory=True)
        return kept.pop(name)
