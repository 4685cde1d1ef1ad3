"""A model and all that is nested in it: the bodies of If, Loop and TensorIterator, however deep.

`ov.Model.get_ordered_ops()` lists one level only; `graphs_of` lists every level, each with its path. Beside it two
small questions that the bindings answer only at length: what a tensor's dimensions are, and which constant it is.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cached_property

import openvino as ov
from openvino.utils.postponed_constant import PostponedConstant

from ov_weight_compression.ir_utils.types import sizes_of, tensor_bytes

_BODIES = {"If": ("then", "else"), "Loop": ("body",), "TensorIterator": ("body",)}
BODY_OPERATIONS = frozenset(_BODIES)

_GIVEN = frozenset({"ReadValue", "RandomUniform", "Multinomial"})
"""What makes values that neither a parameter nor a constant determines."""


@dataclass(frozen=True, eq=False)
class Graph:
    """One level of a model: its operations in an order in which they can run, and their type names beside them."""

    operations: list[ov.Node]
    types: list[str]
    path: str
    """Empty for the model itself; for a body the operations that lead to it, `loop/body` or `if/then`."""
    position: dict[ov.Node, tuple[int, ...]] = field(repr=False)
    """Where each operation lies: sorting by it gives graph order over all levels."""
    constants: list[tuple[ov.Node, str]] = field(repr=False)
    """The constants, postponed ones too, with the names of their element types."""
    given: frozenset[ov.Node] = field(repr=False)
    """The parameters that are not the same constant in every run."""

    @cached_property
    def varying(self) -> frozenset[ov.Node]:
        """The operations whose results depend on what the model is given, or on its state or chance. All others are
        computed once, when the model is compiled."""
        found = set(self.given)
        for node, kind in zip(self.operations, self.types, strict=True):
            if kind in _GIVEN or (
                kind != "Constant" and any(value.get_node() in found for value in node.input_values())
            ):
                found.add(node)
        return frozenset(found)


def graphs_of(model: ov.Model) -> list[Graph]:
    """The model and every body in it, outer before inner."""
    found: list[Graph] = []
    front: list[tuple[ov.Model, str, tuple[int, ...], frozenset[int]]] = [(model, "", (), frozenset())]
    while front:
        model, path, key, fixed = front.pop()
        operations = model.get_ordered_ops()
        types = [node.get_type_name() for node in operations]
        position = {node: (*key, index) for index, node in enumerate(operations)}
        constants = [
            (node, node.get_output_element_type(0).to_string())
            for node, kind in zip(operations, types, strict=True)
            if kind == "Constant" or isinstance(node, PostponedConstant)
        ]
        given = frozenset(node for number, node in enumerate(model.get_parameters()) if number not in fixed)
        graph = Graph(operations, types, path, position, constants, given)
        found.append(graph)
        bodies = []
        for node, kind in zip(operations, types, strict=True):
            for number, name in enumerate(_BODIES.get(kind, ())):
                inner = "/".join(filter(None, (path, node.get_friendly_name(), name)))
                body = node.get_function(number) if kind == "If" else node.get_function()
                bodies.append((body, inner, (*position[node], number), _fixed(node, kind, number, graph.varying)))
        front += reversed(bodies)
    return found


def dimensions(value: ov.Output) -> list[int | None] | None:
    """The sizes of a tensor's dimensions, None for those known only at run time; None for an unknown rank."""
    shape = value.get_partial_shape()
    if shape.is_static:  # one call in place of three for each dimension
        return [*sizes_of(shape.to_shape())]
    if shape.rank.is_dynamic:
        return None
    each = map(shape.__getitem__, range(len(shape)))
    return [dim.get_length() if dim.is_static else None for dim in each]


def is_postponed(node: ov.Node) -> bool:
    """Whether a node is a constant whose value is computed when the model is saved or compiled."""
    return isinstance(node, PostponedConstant)


def is_constant(node: ov.Node) -> bool:
    """Whether a node is a constant of either kind."""
    return bool(node.get_type_name() == "Constant") or is_postponed(node)


def bytes_of(constant: ov.Node) -> int:
    """Bytes of a constant of either kind."""
    if not is_postponed(constant):
        return int(constant.get_byte_size())
    return tensor_bytes(math.prod(sizes_of(constant.shape)), int(constant.get_output_element_type(0).bitwidth))


def constants_bytes(model: ov.Model) -> int:
    """Bytes of all constants of a model, those of the bodies in it included."""
    return sum(bytes_of(node) for graph in graphs_of(model) for node, _ in graph.constants)


def constant_of(value: ov.Output) -> ov.Node | None:
    """The constant behind a tensor and any Convert, Reshape, Squeeze or Unsqueeze; None where there is none."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Reshape", "Squeeze", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


def constant_port(node: ov.Node) -> int | None:
    """The port through which an operation of two operands reads a constant, the second where both are; None where it
    reads none."""
    return next((port for port in (1, 0) if constant_of(node.input_value(port)) is not None), None)


def _fixed(node: ov.Node, kind: str, number: int, varying: Set[ov.Node]) -> frozenset[int]:
    """The numbers of a body's parameters that are the same constant in every run and iteration; all of them where the
    operation itself reads constants alone, so that it is computed as a whole when the model is compiled."""
    descriptions = node.get_input_descriptions(number) if kind == "If" else node.get_input_descriptions()
    return frozenset(
        one.body_parameter_index
        for one in descriptions
        if node not in varying
        or (
            type(one).__name__ == "InvariantInputDescription"
            and node.input_value(one.input_index).get_node() not in varying
        )
    )
