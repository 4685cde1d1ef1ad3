"""Postponed constants: OpenVINO's own, and a variant that becomes a plain Constant in every clone of the model.

The variant exists for embeddings. The CPU plugin recognises a compressed table in front of a Gather only if its codes
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
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import openvino as ov
from openvino.utils import postponed_constant as base

_DEEPEST = 64  # frames to look through for a compile_model
_MARK = "postponed_constant"
_LARGE_BYTES = 1 << 20

_local = threading.local()
"""`marked`: the large Constant that this thread's last clone is."""


class PostponedConstant(base.PostponedConstant):
    # (The name is the type that OpenVINO shows.)
    plain: Callable[[], Any] | None = None

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        with called_by_openvino():
            _take_mark_away()
            return bool(super().evaluate(outputs, inputs))

    def clone_with_new_inputs(self, new_inputs: Any) -> Any:
        with called_by_openvino():
            _take_mark_away()
            name = self.get_friendly_name()
            if self.plain is None:
                return postponed_constant(self.m_element_type, self.m_shape, self.m_maker, name=name)
            constant = self.plain()
            constant.set_friendly_name(name)
            if constant.get_byte_size() >= _LARGE_BYTES:
                _local.marked = constant
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


def _take_mark_away() -> None:
    marked = _local.__dict__.pop("marked", None)
    if marked is not None and _MARK in marked.get_rt_info():
        del marked.get_rt_info()[_MARK]


@contextmanager
def called_by_openvino() -> Iterator[None]:
    """Around all that happens in a call out of OpenVINO."""
    watch = _present_watch()
    if watch is None:
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


def _present_watch() -> _Watch | None:
    """The watch over the `compile_model` that is running in this thread, if there is one."""
    present = sys.getprofile()
    if present is not None:
        return present if isinstance(present, _Watch) else None
    frame: FrameType | None = sys._getframe()
    for _ in range(_DEEPEST):
        if frame is None:
            return None
        if frame.f_code.co_name == "compile_model" and frame.f_globals.get("__name__", "").startswith("openvino"):
            with contextlib.suppress(ValueError):  # a thread of another interpreter cannot handle signals
                return _Watch(frame)
            return None
        frame = frame.f_back
    return None
