"""Postponed constants: OpenVINO's own, and a variant that becomes a plain Constant in every clone of the model.

The variant exists for embeddings. The CPU plugin recognises a compressed table in front of a Gather only if its codes
are a plain Constant, and folds the chain to floats before it would fold a postponed one to codes; in groups it wants
the scales and zero points plain as well, and refuses to compile the model where they are not. Each plugin compiles
a clone of the model, so the clone is where the codes can become plain. `ov.save_model` clones as well: there the table
is computed at once and kept until it is written (a large one in a temporary file).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino as ov
from openvino.utils.postponed_constant import PostponedConstant

__all__ = ["postponed_constant"]


class _PlainInClones(PostponedConstant):
    plain: Callable[[], Any]

    def clone_with_new_inputs(self, new_inputs: Any) -> Any:
        constant = self.plain()
        constant.set_friendly_name(self.get_friendly_name())
        return constant


def postponed_constant(
    kind: ov.Type, shape: ov.Shape, maker: Callable[[], ov.Tensor], plain: Callable[[], Any] | None = None
) -> Any:
    """A constant whose value `maker` computes when it is serialised or folded; the tensor must own its memory.

    `plain` returns the Constant that stands for it in clones; without it the clones are postponed as well.
    """
    if plain is None:
        return PostponedConstant(kind, shape, maker)
    node = _PlainInClones(kind, shape, maker)
    node.plain = plain
    return node
