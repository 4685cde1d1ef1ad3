"""Postponed constants: OpenVINO's own, and a variant that becomes a plain Constant in every clone of the model.

The variant exists for embeddings. The CPU plugin recognises a compressed table in front of a Gather only if its codes
are a plain Constant, and folds the chain to floats before it would fold a postponed one to codes; in groups it wants
the scales and zero points plain as well, and refuses to compile the model where they are not. Each plugin compiles
a clone of the model, so the clone is where the codes can become plain. `ov.save_model` clones as well: there the table
is computed at once and kept until it is written (a large one in a temporary file).

What goes wrong in a maker reaches whoever saves the model as it is, but `compile_model` makes a RuntimeError of several
lines of anything, of Ctrl-C too. So while it runs, a profile function waits for its Python frame to end and raises what
was raised in the maker in its place. Where somebody else profiles the thread OpenVINO's error stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import openvino as ov
from openvino.utils import postponed_constant as base

__all__ = ["postponed_constant"]

_DEEPEST = 64  # frames to look through for a compile_model


class PostponedConstant(base.PostponedConstant):
    # (The name is the type that OpenVINO shows.)
    plain: Callable[[], Any] | None = None

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        with _Noted():
            return bool(super().evaluate(outputs, inputs))

    def clone_with_new_inputs(self, new_inputs: Any) -> Any:
        if self.plain is None:
            return postponed_constant(self.m_element_type, self.m_shape, self.m_maker, name=self.get_friendly_name())
        with _Noted():
            constant = self.plain()
        constant.set_friendly_name(self.get_friendly_name())
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


class _Noted:
    """A call out of OpenVINO; what it raises is also told to the `compile_model` that it happens in."""

    def __enter__(self) -> None:
        self._watch = _watch()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._watch is not None and self._watch.error is None:
            self._watch.error = error


class _Watch:
    """A profile function that ends with a frame."""

    def __init__(self, frame: FrameType) -> None:
        self.frame = frame
        self.error: BaseException | None = None

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "return":
            return
        if frame is self.frame:
            sys.setprofile(None)
            error, self.error = self.error, None
            if error is not None and argument is None:
                raise error
        elif frame.f_code in _OURS and argument is None and self.error is None:
            # It was left by an exception that nobody noted: Ctrl-C before its first line.
            self.error = KeyboardInterrupt()


_OURS = frozenset({PostponedConstant.evaluate.__code__, PostponedConstant.clone_with_new_inputs.__code__})


def _watch() -> _Watch | None:
    """The watch over the `compile_model` that is running in this thread, if there is one."""
    present = sys.getprofile()
    if present is not None:
        return present if isinstance(present, _Watch) else None
    frame: FrameType | None = sys._getframe(2)
    for _ in range(_DEEPEST):
        if frame is None:
            return None
        if frame.f_code.co_name == "compile_model" and frame.f_globals.get("__name__", "").startswith("openvino"):
            watch = _Watch(frame)
            sys.setprofile(watch)
            return watch
        frame = frame.f_back
    return None
