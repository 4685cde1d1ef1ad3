"""What the layers that read a constant make of it together: one weight, or the reason why it is none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import openvino as ov

from ov_weight_compression.patterns.follow import Use, follow, reshaped
from ov_weight_compression.patterns.graphs import BODY_OPERATIONS, Graph, bytes_of
from ov_weight_compression.patterns.layout import View, own_view, pieces_of
from ov_weight_compression.patterns.roles import RECURRENT, Role
from ov_weight_compression.patterns.weight import Consumer, Kind, Skip, Weight, demanding

__all__ = ["TINY_ELEMENTS", "Axes", "Candidate", "judge", "own_axes"]

TINY_ELEMENTS = 64
"""Below this many elements a weight is left alone: three more nodes in the graph to save a few dozen bytes."""

_INT8_OVERHEAD = 3  # bytes per row: an f16 scale and a u8 zero point


@dataclass(frozen=True, eq=False)
class Candidate:
    """A floating-point constant and the operations that read it, in graph order."""

    graph: Graph
    constant: ov.Node
    end: ov.Node
    """Whose output stands for its values: itself, or a Reshape behind it (see `follow.reshaped`)."""
    element_type: str
    shape: tuple[int, ...]
    """That of `end`."""
    uses: list[Use]
    layers: list[Use]
    """Those of the uses that are operations which take weights."""

    @classmethod
    def of(cls, graph: Graph, constant: ov.Node, element_type: str) -> Candidate:
        """Follow a constant. Operations that no result of the model depends on do not count."""
        end = reshaped(constant, graph.position)
        shape = tuple(end.shape)
        uses = [_settled(use, graph) for use in follow(end, own_view(shape)) if use.node in graph.position]
        uses.sort(key=lambda use: (graph.position[use.node], use.port))
        return cls(graph, constant, end, element_type, shape, uses, [use for use in uses if use.role is not None])

    @property
    def first(self) -> Use | None:
        """The first layer, or else the first operation, that reads it."""
        return next(iter(self.layers or self.uses), None)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def name(self) -> str:
        """The constant's friendly name, not yet unique."""
        return str(self.constant.get_friendly_name())

    def skip(self, reason: str) -> Skip:
        """The refusal of this constant."""
        first = self.first
        return Skip(
            name=self.name,
            consumer=str(first.node.get_friendly_name()) if first else "",
            shape=tuple(self.constant.shape),
            element_type=self.element_type,
            reason=reason,
            bytes=bytes_of(self.constant),
        )


@dataclass(frozen=True)
class Axes:
    """A role in the constant's own axes; `inputs` are the reduction axes in the layer's order."""

    reduction: tuple[int, ...]
    inputs: tuple[int, ...]
    channel: tuple[int, ...]
    batch: tuple[int, ...]


def _settled(use: Use, graph: Graph) -> Use:
    """The use, with a refusal where nothing else that the layer reads depends on the model's inputs.

    OpenVINO computes such a layer while it compiles the model. There is nothing to gain, and what it computes from a
    decompression chain is not always right.
    """
    others = (value for port, value in enumerate(use.node.input_values()) if port != use.port)
    if not isinstance(use.role, Role) or any(value.get_node() in graph.varying for value in others):
        return use
    name = use.node.get_friendly_name()
    return replace(use, role=f"'{name}' reads constants alone: it is computed once, when the model is compiled")


def judge(candidate: Candidate, rules: dict[str, str]) -> Weight | str:
    """The weight that a constant is, or why it is left alone.

    `rules` are the ignored names and what ignores them, as `IgnoredScope.resolve` gives them.
    """
    layers = candidate.layers
    if layers and rules:
        for name in (candidate.name, *(use.node.get_friendly_name() for use in layers)):
            if name in rules:
                return f"ignored: {rules[name]}"
    for use in candidate.uses:
        kind = use.node.get_type_name()
        if kind in RECURRENT:
            return f"a recurrent layer ({kind}) takes its weights only as they are"
        if kind in BODY_OPERATIONS:
            return f"enters the body of {kind} '{use.node.get_friendly_name()}' as an input, which cannot be compressed"
    if not layers:
        return _no_layer(candidate)
    readings: list[tuple[Use, Role, Axes]] = []
    for use in layers:
        if isinstance(use.role, str):
            return use.role
        if isinstance(use.role, Role) and not isinstance(use.view, str):
            axes = own_axes(use.view, use.role, candidate.shape)
            if isinstance(axes, str):
                return axes
            readings.append((use, use.role, axes))
    return _disagreement(readings) or _no_gain(candidate, readings[0][2]) or _weight(candidate, readings)


def own_axes(view: View, role: Role, shape: tuple[int, ...]) -> Axes | str:
    """A role's dimensions as axes of a constant of this shape; a reason where a reduction axis is not whole."""
    inputs = pieces_of(view, role.reduction)
    for piece in inputs:
        if piece.size != shape[piece.axis]:
            return f"a Reshape cuts axis {piece.axis}: the layer sums over a part of it, or over its parts shuffled"
    if not inputs:
        return "the layer sums over a single element"
    reduction = {piece.axis for piece in inputs}
    outer = {piece.axis for dimension in role.channel for piece in view[dimension]}
    batch = {piece.axis for dimension in role.batch for piece in view[dimension]} - outer
    return Axes(
        reduction=tuple(sorted(reduction)),
        inputs=tuple(piece.axis for piece in inputs),
        channel=tuple(axis for axis in range(len(shape)) if axis not in reduction | batch),
        batch=tuple(sorted(batch)),
    )


def _no_layer(candidate: Candidate) -> str:
    """Why a constant that no layer reads is none of our business."""
    if not candidate.uses:
        return "only its shape is read"
    kinds = sorted({use.node.get_type_name() for use in candidate.uses})
    sort = "one-dimensional, " if max(candidate.shape) == candidate.elements else ""
    if kinds == ["FakeQuantize"]:
        return "behind a FakeQuantize: its values are quantised already"
    takes = "which takes no" if len(kinds) == 1 else "none of which takes"
    return f"{sort}feeds only {', '.join(kinds)}, {takes} compressed weights"


def _disagreement(readings: list[tuple[Use, Role, Axes]]) -> str | None:
    """Where two layers would want scales along different axes of one constant."""
    first, _, axes = readings[0]
    for other, _, others in readings[1:]:
        if others.reduction != axes.reduction:
            return (
                f"its consumers disagree about its axes: '{first.node.get_friendly_name()}' reduces over "
                f"{_text(axes.reduction)}, '{other.node.get_friendly_name()}' over {_text(others.reduction)}"
            )
    return None


def _text(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _no_gain(candidate: Candidate, axes: Axes) -> str | None:
    """Where compression would save next to nothing, or nothing."""
    if candidate.elements < TINY_ELEMENTS:
        return f"tiny: {candidate.elements} elements, fewer than {TINY_ELEMENTS}"
    columns = prod(candidate.shape[axis] for axis in axes.reduction)
    if columns * candidate.constant.get_output_element_type(0).size <= columns + _INT8_OVERHEAD:
        return f"nothing to gain: with {columns} elements a channel, the scales would take what the codes save"
    return None


def _weight(candidate: Candidate, readings: list[tuple[Use, Role, Axes]]) -> Weight:
    """One weight for all its consumers, which agree on its axes."""
    first, _, axes = readings[0]
    kinds = {role.kind for _, role, _ in readings}
    return Weight(
        name=candidate.name,
        constant=candidate.end,
        kind=demanding(kinds),
        consumers=tuple(Consumer(use.node, use.port, role.kind) for use, role, _ in readings),
        shape=candidate.shape,
        element_type=candidate.element_type,
        reduction_axes=axes.reduction,
        channel_axes=axes.channel,
        batch_axes=axes.batch,
        input_axes=axes.inputs,
        result_type=first.node.get_input_element_type(first.port).to_string(),
        is_embedding=Kind.GATHER in kinds,
        other_uses=tuple(Consumer(use.node, use.port) for use in candidate.uses if use.role is None),
        body=candidate.graph.path,
        parts=() if candidate.end is candidate.constant else (candidate.constant,),
    )
