"""Postponed constants: OpenVINO's own, and a variant that becomes a plain Constant in every clone of the model.

The variant exists for embeddings. The CPU plugin recognises a compressed table in front of a Gather only if its codes
are a plain Constant, and folds the chain to floats before it would fold a postponed one to codes; in groups it wants
the scales and zero points plain as well, and refuses to compile the model where they are not. Each plugin compiles
a clone of the model, so the clone is where the codes can become plain. `ov.save_model` clones as well: there the table
is computed at once and kept until it is written (a large one in a temporary file).

See `compile_watch` for what becomes of exceptions in makers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino as ov
from openvino.utils import postponed_constant as base

from ov_weight_compression.ir_utils.compile_watch import called_by_openvino

__all__ = ["postponed_constant"]


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
