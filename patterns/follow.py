"""From a constant to the operations that read it, through everything that only converts or rearranges it.

Constant ─ (Convert, FakeConvert, Reshape, Squeeze, Unsqueeze, Transpose)* ─┬─ layer       a role, or a refusal
                                                                           └─ operation   no role
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from math import prod

import openvino as ov

from ov_weight_compression.ir_utils.widened_constants import is_widened
from ov_weight_compression.patterns.graphs import Graph
from ov_weight_compression.patterns.roles import ROLES, Refusal, Role, Roles, role_of
from ov_weight_compression.patterns.views import Piece, View, reshape, transpose

__all__ = ["Use", "follow", "reshaped"]

_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_THROUGH = frozenset({"Convert", "FakeConvert", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})


@dataclass(frozen=True, eq=False)
class Use:
    """One operation that reads a constant, and how the constant looks from there."""

    node: ov.Node
    port: int
    view: View | Refusal
    """The view, or why there is none."""
    role: Role | Refusal | None
    """What the operation makes of it, or why it refuses; None for an operation that takes no weights."""


def follow(graph: Graph, constant: ov.Node, roles: Roles = ROLES) -> list[Use]:
    """The operations of a graph that read a constant, in graph order, through everything that only converts or
    rearranges it, and what they make of it by the table `roles`.

    Operations that no result of the model depends on are not in the graph, and do not count.
    """
    whole = tuple((Piece(axis, size, 1),) for axis, size in enumerate(constant.get_output_shape(0)))
    front: list[tuple[ov.Node, View | Refusal]] = [(constant, whole)]
    found: list[Use] = []
    while front:
        source, seen = front.pop()
        for target in source.output(0).get_target_inputs():
            node, port = target.get_node(), target.get_index()
            kind = node.get_type_name()
            if port == 0 and kind in _THROUGH:
                front.append((node, _behind(node, kind, seen)))
            elif kind == "ShapeOf" or node not in graph.position:
                continue
            elif isinstance(seen, Refusal):
                found.append(Use(node, port, seen, seen if (kind, port) in roles else None))
            else:
                shape = tuple(prod(piece.size for piece in dimension) for dimension in seen)
                found.append(Use(node, port, seen, role_of(roles, node, port, shape)))
    return sorted(found, key=lambda use: (graph.position[use.node], use.port))


def reshaped(constant: ov.Node, alive: Container[ov.Node]) -> ov.Node:
    """The last of the Reshapes (Squeezes, Unsqueezes) through which everything that reads a constant reads it; the
    constant itself, or what stands for it in f32, where there is none. Only operations in `alive` count.

    A weight is stored in the shape that it has there: codes in another shape in front of a Reshape look like codes in
    groups to the CPU plugin of OpenVINO 2026.4, which then cannot compile the model.
    """
    end = node = constant
    while True:
        targets = [target for target in node.output(0).get_target_inputs() if target.get_node() in alive]
        if len(targets) != 1 or targets[0].get_index() != 0:
            return end
        node = targets[0].get_node()
        kind = node.get_type_name()
        if kind not in (*_RESHAPING, "Convert") or not node.get_output_partial_shape(0).is_static:
            return end
        if kind in _RESHAPING or is_widened(node):
            end = node


def _behind(node: ov.Node, kind: str, view: View | Refusal) -> View | Refusal:
    """The view behind an operation that only converts or rearranges."""
    if isinstance(view, Refusal) or kind in ("Convert", "FakeConvert"):
        return view
    if kind == "Transpose":
        order = node.input_value(1).get_node()
        if order.get_type_name() != "Constant":
            return Refusal(f"transposed by '{node.get_friendly_name()}' in an order known only at run time")
        axes = [int(axis) for axis in order.data.reshape(-1)]
        return transpose(view, axes or range(len(view))[::-1])
    shape = node.get_output_partial_shape(0)
    if not shape.is_static:
        return Refusal(f"reshaped by '{node.get_friendly_name()}' to a shape known only at run time")
    seen = reshape(view, tuple(shape.to_shape()))
    return seen if seen is not None else Refusal(f"the reshape '{node.get_friendly_name()}' cuts across its axes")
