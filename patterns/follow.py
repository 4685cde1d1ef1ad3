"""From a constant to the operations that read it, through everything that only converts or rearranges it.

Constant ─ (Convert, FakeConvert, Reshape, Squeeze, Unsqueeze, Transpose)* ─┬─ layer       a role, or a refusal
                                                                           └─ operation   no role

Its axes are followed through Transpose and Reshape. A *view* of the constant is what a layer sees: for each of its
dimensions, the pieces of the constant's own axes that it is made of, outermost first. A constant `[8, 6]` starts as

    ((axis 0, 8), (axis 1, 6))

after Reshape to `[8, 2, 3]` the second axis is in two pieces, `(axis 1, 2, stride 3)` and `(axis 1, 3, stride 1)`;
after Reshape to `[48]` one dimension holds both axes. Where a layer reduces over a dimension, its pieces say which of
the constant's axes that is, and whether each of them is there as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import NamedTuple

import openvino as ov

from ov_weight_compression.ir_utils.types import sizes_of
from ov_weight_compression.ir_utils.weight_source import is_widened
from ov_weight_compression.patterns.graphs import Graph
from ov_weight_compression.patterns.roles import ROLES, Refusal, Role, Roles, role_of

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
    whole = tuple((Piece(axis, size, 1),) for axis, size in enumerate(sizes_of(constant.get_output_shape(0))))
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
    seen = reshape(view, sizes_of(shape.to_shape()))
    return seen if seen is not None else Refusal(f"the reshape '{node.get_friendly_name()}' cuts across its axes")


class Piece(NamedTuple):
    """`size` positions of one axis of the constant, `stride` positions apart along that axis."""

    axis: int
    size: int
    stride: int


View = tuple[tuple[Piece, ...], ...]


def transpose(view: View, order: Sequence[int]) -> View:
    """The view behind a Transpose by `order`."""
    return tuple(view[axis] for axis in order)


def pieces_of(view: View, dimensions: Iterable[int]) -> list[Piece]:
    """The pieces of some dimensions, in order, neighbours that belong together joined into one."""
    joined: list[Piece] = []
    for dimension in dimensions:
        for piece in view[dimension]:
            last = joined[-1] if joined else None
            if last is not None and last.axis == piece.axis and last.stride == piece.stride * piece.size:
                joined[-1] = Piece(piece.axis, last.size * piece.size, piece.stride)
            else:
                joined.append(piece)
    return joined


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """The view behind a Reshape to `shape`, or None where the new dimensions cut across the axes.

    Axes of one element belong to no dimension in particular and are dropped.
    """
    pieces = [piece for piece in pieces_of(view, range(len(view))) if piece.size != 1]
    result: list[tuple[Piece, ...]] = []
    for wanted in shape:
        dimension: list[Piece] = []
        while wanted > 1:
            if not pieces:
                return None
            axis, size, stride = pieces[0]
            if wanted % size == 0:
                dimension.append(pieces.pop(0))
                wanted //= size
            elif size % wanted == 0:
                inner = size // wanted
                dimension.append(Piece(axis, wanted, stride * inner))
                pieces[0] = Piece(axis, inner, stride)
                wanted = 1
            else:
                return None
        result.append(tuple(dimension))
    return tuple(result) if not pieces else None


def whole_axis(axis: int, size: int | None) -> tuple[Piece, ...]:
    """The one piece of a dimension that is a whole axis; none where the size is one or unknown."""
    return (Piece(axis, size, 1),) if size is not None and size != 1 else ()


def reshape_partly(view: View, before: Sequence[int | None], after: Sequence[int | None]) -> View | None:
    """The view behind a Reshape where some sizes are known only at run time (None, with no pieces of their own).

    Unknown dimensions are taken to correspond to each other in order, where what lies between them has equal sizes.
    Where they do not, only what follows the last of them can be tracked.
    """
    old, new = _runs(before), _runs(after)
    if len(old) == len(new) and all(_product(before, a) == _product(after, b) for a, b in zip(old, new, strict=True)):
        runs = list(zip(old, new, strict=True))
    elif _product(before, old[-1]) == _product(after, new[-1]):
        runs = [(old[-1], new[-1])]
        if any(view[dim] for dim in range(old[-1].start)):
            return None
    else:
        return None
    result: list[tuple[Piece, ...]] = [()] * len(after)
    for source, target in runs:
        if any(math.prod(piece.size for piece in view[dim]) != before[dim] for dim in source):
            return None
        part = reshape(view[source.start : source.stop], [after[dim] or 1 for dim in target])
        if part is None:
            return None
        result[target.start : target.stop] = part
    return tuple(result)


def repeat(view: View, before: Sequence[int | None], after: Sequence[int | None], axis: int) -> View | None:
    """The view behind a Broadcast or a Tile: repetitions are pieces of `axis` with stride 0."""
    missing = len(after) - len(before)
    if missing < 0:
        return None
    result: list[tuple[Piece, ...]] = []
    for place, size in enumerate(after):
        old = before[place - missing] if place >= missing else 1
        pieces = view[place - missing] if place >= missing else ()
        if size is None or old is None or size == old:
            result.append(pieces)
        elif size % old == 0:
            result.append((Piece(axis, size // old, 0), *pieces))
        else:
            return None
    return tuple(result)


def cut(view: View, dimension: int, start: int, length: int, step: int) -> tuple[View, dict[int, int]] | None:
    """The view of `length` positions of a dimension, and how far each axis has moved; None where pieces would break."""
    pieces = view[dimension]
    inner = math.prod(piece.size for piece in pieces[1:])
    if not pieces or (inner > 1 and (step != 1 or start % inner or length % inner)) or step < 1:
        return None
    axis, _, stride = pieces[0]
    first = (Piece(axis, length // inner, stride * step),) if length != inner else ()
    return (*view[:dimension], (*first, *pieces[1:]), *view[dimension + 1 :]), {axis: start // inner * stride}


def _product(sizes: Sequence[int | None], run: range) -> int:
    """The number of positions in a run of known dimensions."""
    return math.prod(sizes[dim] or 1 for dim in run)


def _runs(sizes: Sequence[int | None]) -> list[range]:
    """The runs of known dimensions before, between and after the unknown ones."""
    ends = [-1, *(dim for dim, size in enumerate(sizes) if size is None), len(sizes)]
    return [range(left + 1, right) for left, right in pairwise(ends)]
