"""Transposes between a weight and its MatMul: the MatMul turns the weight itself.

    weight ─ Transpose ─ [Convert] ─ MatMul(transpose_b)     ─▸     weight ─ [Convert] ─ MatMul(not transpose_b)

The CPU plugin of OpenVINO 2026.4 executes a MatMul on codes in either orientation, but not through a Transpose: it
expands the weight, and where the chain is not folded first it does so at each inference.
"""

from __future__ import annotations

from typing import Any

from openvino.passes import ModelPass

from ov_weight_compression.patterns import Consumer, find_compressed, find_weights


class FuseWeightTranspose(ModelPass):
    """Let the MatMuls of a model read their weights, float or compressed, from in front of any Transpose.

    A pass for `openvino.passes.Manager`; compression does the same for the weights that it compresses. What several
    operations read of a Transpose stays for the others.
    """

    def __init__(self) -> None:
        super().__init__()

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        layers = [layer for weight in find_weights(model)[0] for layer in weight.consumers]
        layers += [layer for weight in find_compressed(model) for layer in weight.consumers]
        changed = [take_over_transpose(layer) for layer in layers]
        return any(changed)


def take_over_transpose(consumer: Consumer) -> bool:
    """Let a MatMul read its weight from in front of a Transpose of the last two axes; whether there was one."""
    layer: Any = consumer.node
    if layer.get_type_name() != "MatMul":
        return False
    target = layer.input(consumer.port)
    before = target.get_source_output().get_node()
    converts: list[Any] = []
    while before.get_type_name() == "Convert" and len(before.output(0).get_target_inputs()) == 1:
        converts.insert(0, before)
        target = before.input(0)
        before = target.get_source_output().get_node()
    if before.get_type_name() != "Transpose" or not _swaps(before):
        return False
    name = "transpose_b" if consumer.port == 1 else "transpose_a"
    target.replace_source_output(before.input_value(0))
    layer.set_attribute(name, not layer.get_attributes()[name])
    for node in (*converts, layer):
        node.validate_and_infer_types()
    return True


def _swaps(transpose: Any) -> bool:
    """Whether it exchanges the last two axes and leaves the others where they are."""
    order = transpose.input_value(1).get_node()
    rank = len(transpose.get_output_partial_shape(0))
    if order.get_type_name() != "Constant" or rank < 2:
        return False
    axes = [int(axis) for axis in order.data.reshape(-1)] or list(range(rank))[::-1]
    return axes == [*range(rank - 2), rank - 1, rank - 2]
