"""A copy of a model that remembers nothing between two runs: what calibration runs instead of the model itself.

A stateful language model keeps its KV cache in variables. Every calibration window starts with an empty cache, so a
variable's value is always what it is at the start:

    before    init ─ ReadValue ─ Gather(beam_idx) ─ Concat(·, new keys) ┬ attention
                                                                        └ Assign
    after     new keys ─ attention

where the Concat is left out if its other part is empty, as a cache is; a variable that starts with anything else is
simply replaced by that. The copy shares its constants with the original, so it costs a few megabytes whatever the
model's size.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as ops

__all__ = ["stateless_copy"]


def stateless_copy(model: ov.Model) -> tuple[ov.Model, dict[str, ov.Node]]:
    """A clone of `model` without variables.

    Returns the clone and, by the unique name (`get_name()`) of each of the model's operations, the operation in the
    clone that stands for it.
    """
    clone = model.clone()
    twins = {
        original.get_name(): copied
        for original, copied in zip(model.get_ordered_ops(), clone.get_ordered_ops(), strict=True)
    }
    for node in clone.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            _bypass(node, _initial_value(node))
        elif node.get_type_name() == "Assign":
            _bypass(node, node.input_value(0))
    for sink in list(clone.get_sinks()):
        if sink.get_type_name() == "Assign":
            clone.remove_sink(sink)
    for variable in list(clone.get_variables()):
        clone.remove_variable(variable)
    clone.validate_nodes_and_infer_types()
    for node in clone.get_ordered_ops():
        if node.get_type_name() == "Concat":
            _drop_empty(node)
    return clone, twins


def _bypass(node: ov.Node, value: ov.Output) -> None:
    """Let everything that reads `node` read `value` instead."""
    for target in list(node.output(0).get_target_inputs()):
        target.replace_source_output(value)


def _drop_empty(concat: ov.Node) -> None:
    """Bypass a Concat of which all parts but one are known to be empty."""
    axis = concat.get_attributes()["axis"]
    parts = [value for value in concat.input_values() if not _is_empty(value.get_partial_shape(), axis)]
    if len(parts) == 1 < concat.get_input_size():
        _bypass(concat, parts[0])


def _is_empty(shape: ov.PartialShape, axis: int) -> bool:
    return bool(shape.rank.is_static and shape[axis].is_static and shape[axis].get_length() == 0)


def _initial_value(read: ov.Node) -> ov.Output:
    """What the variable holds before the first run: its initialiser, else zeros (none along a dynamic dimension)."""
    if read.get_input_size():
        return read.input_value(0)
    shape = [dim.get_length() if dim.is_static else 0 for dim in read.get_output_partial_shape(0)]
    zeros = np.zeros(shape, np.float32)
    return ops.convert(ops.constant(zeros), read.get_output_element_type(0).to_string()).output(0)
