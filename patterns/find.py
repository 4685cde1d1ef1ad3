"""Find every weight of a model, and a reason for every constant that is none.

Three steps for each floating-point constant, none of which looks at its values:

    follow   from the constant through Convert, Reshape, Transpose and FakeConvert to the operations that read it
    judge    what each of them makes of it (`roles.py`), in the constant's own axes
    settle   one `Weight` if they agree, else one `Skip` that says why
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import openvino as ov

from ov_weight_compression.patterns.follow import Use, follow
from ov_weight_compression.patterns.graphs import BODY_OPERATIONS, Graph, graphs_of
from ov_weight_compression.patterns.ignored import IgnoredScope
from ov_weight_compression.patterns.layout import View, own_view, pieces_of
from ov_weight_compression.patterns.roles import RECURRENT, Role
from ov_weight_compression.patterns.weight import FLOAT_TYPES, Consumer, Kind, Skip, Weight

__all__ = ["REPORTED_ELEMENTS", "TINY_ELEMENTS", "find_weights"]

TINY_ELEMENTS = 64
"""Below this many elements a weight is left alone: three more nodes in the graph to save a few dozen bytes."""
REPORTED_ELEMENTS = 1024
"""From this many elements on, a constant that no layer uses is reported too."""

_DEMANDING = (Kind.CONVOLUTION, Kind.GATHER, Kind.EXPERTS, Kind.MATMUL)
_INT8_OVERHEAD = 3  # bytes per row: an f16 scale and a u8 zero point


def find_weights(model: ov.Model, ignored: object = None) -> tuple[list[Weight], list[Skip]]:
    """Every weight of `model` and of the bodies inside it, in graph order, and every constant that is left alone.

    A skip is made for each constant that a layer reads but that cannot be compressed, and for every other
    floating-point constant of `REPORTED_ELEMENTS` or more. Nothing reads the constants' values, and nothing changes.

    Args:
        model: any model; compressed ones too.
        ignored: what to leave alone: an `IgnoredScope`, one of NNCF's, a dict of its fields, or a list of names.

    Raises:
        OptionError: the ignored scope names something that is not in the model, or cannot be read.
    """
    graphs = graphs_of(model)
    scope = IgnoredScope.of(ignored)
    rules = scope.resolve(graphs) if scope else {}
    found = [
        entry
        for graph in graphs
        for index, kind in enumerate(graph.types)
        if kind == "Constant" and (entry := _settle_constant(graph, graph.operations[index], rules)) is not None
    ]
    found.sort(key=lambda entry: entry.place)
    _name(found)
    _mark_last_layer(found)
    results = [entry.result for entry in found]
    return [one for one in results if isinstance(one, Weight)], [one for one in results if isinstance(one, Skip)]


@dataclass(eq=False)
class _Found:
    """What became of one constant, while names and the last layer are still to be settled."""

    place: tuple[int, ...]
    """Where the first operation that reads it lies."""
    layers: list[tuple[int, ...]]
    """Where the layers that read it lie, in order."""
    result: Weight | Skip


def _settle_constant(graph: Graph, constant: ov.Node, rules: dict[str, str]) -> _Found | None:
    """What becomes of one constant; None for one that needs no mention."""
    element_type = constant.get_output_element_type(0).to_string()
    if element_type not in FLOAT_TYPES:
        return None
    shape = tuple(constant.shape)
    elements = prod(shape)
    if not shape or elements == 0:
        return None
    live = [use for use in follow(constant, own_view(shape)) if use.node in graph.position]
    uses = sorted(live, key=lambda use: (graph.position[use.node], use.port))
    layers = [use for use in uses if use.role is not None]
    if not layers and elements < REPORTED_ELEMENTS:
        return None
    first = (layers or uses)[0].node if uses else constant
    places = [graph.place(use.node) for use in layers]
    result = _refusal(uses, layers, shape, constant, rules) or _weight(uses, layers, shape, constant, graph.path)
    if isinstance(result, Weight):
        return _Found(graph.place(first), places, result)
    consumer = first.get_friendly_name() if uses else ""
    size = int(constant.get_byte_size())
    skip = Skip(constant.get_friendly_name(), consumer, shape, element_type, result, size)
    return _Found(graph.place(first), places, skip)


def _refusal(
    uses: list[Use], layers: list[Use], shape: tuple[int, ...], constant: ov.Node, rules: dict[str, str]
) -> str | None:
    """Why a constant is left alone, whatever its axes are."""
    rule = rules.get(constant.get_friendly_name()) if rules else None
    for use in layers if rules else ():
        rule = rule or rules.get(use.node.get_friendly_name())
    if rule is not None and layers:
        return f"ignored: {rule}"
    for use in uses:
        kind = use.node.get_type_name()
        if kind in RECURRENT:
            return f"a recurrent layer ({kind}) takes its weights only as they are"
        if kind in BODY_OPERATIONS:
            return f"enters the body of {kind} '{use.node.get_friendly_name()}' as an input, which cannot be compressed"
    for use in layers:
        if isinstance(use.role, str):
            return use.role
    if not layers:
        return _unused(uses, shape)
    if prod(shape) < TINY_ELEMENTS:
        return f"tiny: {prod(shape)} elements, fewer than {TINY_ELEMENTS}"
    return None


def _unused(uses: list[Use], shape: tuple[int, ...]) -> str:
    """Why a constant that no layer reads is none of our business."""
    if not uses:
        return "only its shape is read"
    kinds = sorted({use.node.get_type_name() for use in uses})
    sort = "one-dimensional, " if max(shape) == prod(shape) else ""
    takes = "which takes no" if len(kinds) == 1 else "none of which takes"
    return f"{sort}feeds only {', '.join(kinds)}, {takes} compressed weights"


def _weight(
    uses: list[Use], layers: list[Use], shape: tuple[int, ...], constant: ov.Node, path: str
) -> Weight | str:
    """One weight for all its consumers, if they agree on its axes."""
    readings: list[tuple[Use, Role, _Axes]] = []
    for use in layers:
        role = use.role
        if not isinstance(role, Role) or isinstance(use.view, str):
            raise AssertionError("refusals are settled before")
        axes = _own_axes(use.view, role, shape)
        if isinstance(axes, str):
            return axes
        readings.append((use, role, axes))
    use, _, axes = readings[0]
    for other, _, others in readings[1:]:
        if others.reduction != axes.reduction:
            return (
                f"its consumers disagree about its axes: '{use.node.get_friendly_name()}' reduces over "
                f"{_text(axes.reduction)}, '{other.node.get_friendly_name()}' over {_text(others.reduction)}"
            )
    element_type = constant.get_output_element_type(0)
    columns = prod(shape[axis] for axis in axes.reduction)
    if columns * element_type.size <= columns + _INT8_OVERHEAD:
        return f"nothing to gain: with {columns} elements a channel, the scales would take what the codes save"
    kinds = {role.kind for _, role, _ in readings}
    return Weight(
        name=constant.get_friendly_name(),
        constant=constant,
        kind=next(kind for kind in _DEMANDING if kind in kinds),
        consumers=tuple(Consumer(one.node, one.port, role.kind) for one, role, _ in readings),
        shape=shape,
        element_type=element_type.to_string(),
        reduction_axes=axes.reduction,
        channel_axes=axes.channel,
        batch_axes=axes.batch,
        input_axes=axes.inputs,
        result_type=use.node.get_input_element_type(use.port).to_string(),
        is_embedding=Kind.GATHER in kinds,
        other_uses=tuple(Consumer(one.node, one.port) for one in uses if one.role is None),
        body=path,
    )


@dataclass(frozen=True)
class _Axes:
    """A role in the constant's own axes; `inputs` are the reduction axes in the layer's order."""

    reduction: tuple[int, ...]
    inputs: tuple[int, ...]
    channel: tuple[int, ...]
    batch: tuple[int, ...]


def _own_axes(view: View, role: Role, shape: tuple[int, ...]) -> _Axes | str:
    """A role's dimensions as axes of the constant; a reason where a reduction axis is not there as a whole."""
    inner = pieces_of(view, role.reduction)
    axes = [piece.axis for piece in inner]
    for piece in inner:
        if piece.size != shape[piece.axis]:
            return f"a Reshape cuts axis {piece.axis}, and the layer sums over a part of it, or over its parts shuffled"
    if not axes:
        return "the layer sums over a single element"
    reduction = tuple(sorted(axes))
    outer = {piece.axis for dimension in role.channel for piece in view[dimension]}
    batch = {piece.axis for dimension in role.batch for piece in view[dimension]} - outer
    rest = tuple(axis for axis in range(len(shape)) if axis not in axes and axis not in batch)
    return _Axes(reduction, tuple(axes), rest, tuple(sorted(batch)))


def _text(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def _name(found: list[_Found]) -> None:
    """Make names unique: the second constant called `name` becomes `name#2`."""
    taken: set[str] = set()
    for entry in found:
        name, number = entry.result.name, 1
        while name in taken:
            number += 1
            name = f"{entry.result.name}#{number}"
        taken.add(name)
        if number > 1:
            entry.result = replace(entry.result, name=name)


def _mark_last_layer(found: list[_Found]) -> None:
    """Mark the last MatMul of the model itself, as NNCF chooses it.

    Where the graph's last layer is skipped, or shares its weight with an earlier layer, NNCF keeps no MatMul back.
    """
    main = [entry for entry in found if entry.layers and len(entry.place) == 1]
    if not main:
        return
    last = max(main, key=lambda entry: entry.layers[-1])
    if isinstance(last.result, Skip) or len(last.layers) > 1:
        return
    for entry in reversed(main):
        if isinstance(entry.result, Weight) and entry.result.kind in (Kind.MATMUL, Kind.EXPERTS):
            entry.result = replace(entry.result, is_last_layer=True)
            return
