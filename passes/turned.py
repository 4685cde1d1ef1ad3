"""Transposes between a weight and its MatMul: the MatMul turns the weight itself.

    weight ─ Transpose ─ [Convert] ─ MatMul(transpose_b)     ─▸     weight ─ [Convert] ─ MatMul(not transpose_b)

The CPU plugin of OpenVINO 2026.4 executes a MatMul on codes in either orientation, but not through a Transpose: it
expands the weight, and where the chain is not folded first it does so at each inference.
"""

from __future__ import annotations

from typing import Any

from ov_weight_compression.patterns import Consumer

__all__ = ["take_over_transpose"]


def take_over_transpose(consumer: Consumer) -> None:
    """Let a MatMul read its weight from in front of a Transpose of the last two axes; nothing where there is none."""
    layer: Any = consumer.node
    if layer.get_type_name() != "MatMul":
        return
    target = layer.input(consumer.port)
    before = target.get_source_output().get_node()
    converts: list[Any] = []
    while before.get_type_name() == "Convert" and _readers(before) == 1:
        converts.insert(0, before)
        target = before.input(0)
        before = target.get_source_output().get_node()
    if before.get_type_name() != "Transpose" or not _swaps(before):
        return
    name = "transpose_b" if consumer.port == 1 else "transpose_a"
    target.replace_source_output(before.input_value(0))
    layer.set_attribute(name, not layer.get_attributes()[name])
    for node in (*converts, layer):
        node.validate_and_infer_types()


def _readers(node: Any) -> int:
    return len(node.output(0).get_target_inputs())


def _swaps(transpose: Any) -> bool:
    """Whether it exchanges the last two axes and leaves the others where they are."""
    order = transpose.input_value(1).get_node()
    rank = len(transpose.get_output_partial_shape(0))
    if order.get_type_name() != "Constant" or rank < 2:
        return False
    axes = [int(axis) for axis in order.data.reshape(-1)] or list(range(rank))[::-1]
    return axes == [*range(rank - 2), rank - 1, rank - 2]
