"""A model as calibration sees it: an order to compute its tensors in, and the points where activations are looked at.

Only operations that some wanted activation depends on are kept, so the last MatMul of a language model never runs.
Each operation has a *level*: how many layers (operations that read a weight) lie on the longest way to it.

    level 0   everything before the first layer: masks, positions
    level 1   the embedding, the first norm ────────────────── its output is the tap of q, k, v
    level 2   q, k, v, attention ───────────────────────────── the tap of o
    level 3   o, the residual sum, the second norm ─────────── the tap of gate and up

so the layers that read a tap of level L are themselves of level L + 1, and nothing at one level depends on another
layer of that level. Operations are computed level by level; a cut at any place of this order leaves a prefix that can
be run alone. What depends on constants only belongs to no level and is never computed here: every piece of the model
that needs it takes it along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ov_weight_compression.calibration.model_inputs import input_label
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.file_io import FileMappings
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.patterns import Consumer, Sources, Weight

TensorKey = tuple[int, int]
"""An operation's index in `ActivationGraph.nodes`, and the index of one of its outputs."""

_LARGE = 1 << 12
_NEVER_CONSTANT = frozenset({"Parameter", "RandomUniform", "Multinomial"})


@dataclass(frozen=True, eq=False)
class Tap:
    """A tensor that layers read as their activation, and how they read it."""

    name: str
    """The friendly name of the operation that makes it."""
    key: TensorKey
    reduction: tuple[int, ...]
    """Its dimensions that hold the input channels, counted from the end."""
    width: int
    """Number of input channels."""
    batch: tuple[tuple[int, int], ...]
    """Its dimensions that number experts, where it has them, and how many experts; empty for a plain layer."""
    weights: tuple[str, ...]
    """Names of the weights that are multiplied with it."""
    level: int


class Reading(NamedTuple):
    """A tensor that a layer reads, and how; as in `Tap`."""

    key: TensorKey
    reduction: tuple[int, ...]
    width: int
    batch: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class LayerUse:
    """A layer of the graph that reads a weight."""

    weight: Weight
    consumer: Consumer
    layer: int
    """Its index in `ActivationGraph.nodes`."""
    tap: Reading | None
    """What it multiplies the weight with; None where it multiplies nothing."""


@dataclass(frozen=True, eq=False)
class ActivationGraph:
    """The wanted part of a stateless copy of a model, in computing order."""

    model: ov.Model
    """The stateless copy. It is never changed: pieces are cut out of copies of it."""
    nodes: tuple[ov.Node, ...]
    """All its operations in topological order; positions in this tuple are the indices used everywhere."""
    sources: tuple[tuple[TensorKey, ...], ...]
    constant: tuple[bool, ...]
    order: tuple[int, ...]
    """Indices of the operations to compute, by level, then topologically; without Parameters and constants."""
    place: dict[int, int]
    """The inverse of `order`."""
    level_ends: tuple[int, ...]
    """For each level, the number of operations in `order` up to and including that level."""
    taps: tuple[Tap, ...]
    layers: dict[int, tuple[str, ...]]
    """By place in `order`: the names of the weights that this operation reads."""
    uses: tuple[LayerUse, ...]
    """Those of the layers that have a place in `order`, by it."""
    weight_nodes: dict[str, int]
    """The indices of the weights' constants, by name; only of those that something reads."""
    loads: dict[int, tuple[tuple[int, int], ...]]
    """By place in `order`: the larger constants that the operation needs, as (index, bytes when compiled)."""
    parameters: dict[str, TensorKey]
    """The model's inputs by their labels."""
    last_use: dict[TensorKey, int]
    """The last place in `order` that reads a tensor."""
    outputs: tuple[TensorKey, ...]
    """The tensors of the model's outputs that were asked for."""
    routes: tuple[TensorKey, ...]
    """Outputs of NonZero: a router's choice of the rows that go to an expert. They decide which rows a tap holds, so
    a second stream has to take them from the first for the rows of the two to be pairs."""
    given: Mapping[str, Callable[[], ov.Node]]
    """What makes the Constants of the weights whose constants in the model only keep a place, by the weight's name."""
    given_at: Mapping[int, frozenset[str]]
    """By place in `order`: the names of those weights that the operation needs, in whatever way."""

    mappings: FileMappings = field(default_factory=FileMappings)
    """Of the files that the constants lie in."""

    def give_back(self, begin: int, end: int) -> None:
        """Give back the memory of the larger constants that `[begin, end)` needs, where it is a mapped file's: a
        compiled piece has its own copy of most, and reads the others once more."""
        for index in {index for place in range(begin, end) for index, _ in self.loads.get(place, ())}:
            if self.nodes[index].get_output_element_type(0) != ov.Type.string:
                data = self.nodes[index].get_tensor_view().data
                self.mappings.around(data).advise(data)

    def outputs_of(self, begin: int, end: int) -> list[TensorKey]:
        """Tensors made in `[begin, end)` and read at `end` or later."""
        return [
            (index, port)
            for index in self.order[begin:end]
            for port in range(self.nodes[index].get_output_size())
            if self.last_use.get((index, port), -1) >= end
        ]


def read_graph(
    model: ov.Model, weights: Sequence[Weight], *, values: Sources | None = None, outputs: Sequence[int] = ()
) -> ActivationGraph:
    """Work out levels, order and taps of `model` for `weights`, and of what its `outputs` (by number) depend on.

    Weights inside bodies of If, Loop and TensorIterator have no activation: their layers run somewhere inside one
    operation. `values` says where the weights' values come from, the model's constants by default.

    Raises:
        OptionError: a weight inside such a body has been given another source than the model's constant.
    """
    clone, twins = stateless_copy(model)
    nodes = tuple(clone.get_ordered_ops())
    index = {node.get_name(): number for number, node in enumerate(nodes)}
    sources: tuple[tuple[TensorKey, ...], ...] = tuple(
        tuple((index[value.get_node().get_name()], int(value.get_index())) for value in node.input_values())
        for node in nodes
    )
    twin = {name: index[copied.get_name()] for name, copied in twins.items() if copied.get_name() in index}
    uses = [use for weight in weights if not weight.body for use in _uses_of(weight, twin, nodes, sources)]
    layers = {use.layer for use in uses}
    constant: list[bool] = []  # whether an operation depends on nothing but constants
    levels: list[int] = []
    for number, (node, keys) in enumerate(zip(nodes, sources, strict=True)):
        constant.append(node.get_type_name() not in _NEVER_CONSTANT and all(constant[source] for source, _ in keys))
        below = max((levels[source] for source, _ in keys if not constant[source]), default=0)
        levels.append(below + (number in layers))
    taps = _taps([use for use in uses if use.tap and not constant[use.tap.key[0]]], nodes, levels)
    results = [sources[index[result.get_name()]][0] for result in clone.get_results()]
    ends = tuple(results[number] for number in outputs)

    wanted: set[int] = set()  # everything that the taps and the outputs depend on
    pending = [*(tap.key[0] for tap in taps), *(key[0] for key in ends)]
    while pending:
        number = pending.pop()
        if number not in wanted and not constant[number]:
            wanted.add(number)
            pending.extend(source for source, _ in sources[number])
    computed = [number for number in wanted if nodes[number].get_type_name() != "Parameter"]
    order = tuple(sorted(computed, key=lambda number: (levels[number], number)))
    place = {number: position for position, number in enumerate(order)}
    top = max((levels[number] for number in order), default=0)

    weight_nodes = {
        weight.name: twin[weight.constant.get_name()] for weight in weights if weight.constant.get_name() in twin
    }
    given = {weight.name: weight for weight in weights if values is not None and weight.name in values.given}
    for weight in given.values():
        if weight.body:
            raise OptionError(
                f"sources: {shown(weight.name)} lies inside {shown(weight.body)}, where data meets the constant of the "
                "model alone: compress without data, or put its values into the model"
            )
    owners = {weight_nodes[name]: name for name in given.keys() & weight_nodes.keys()}
    loads, given_at = _constants_of(order, nodes, sources, constant, owners)
    uses = sorted((use for use in uses if use.layer in place), key=lambda use: place[use.layer])
    read: dict[int, tuple[str, ...]] = {}
    for use in uses:
        read[place[use.layer]] = (*read.get(place[use.layer], ()), use.weight.name)
    return ActivationGraph(
        model=clone,
        nodes=nodes,
        sources=sources,
        constant=tuple(constant),
        order=order,
        place=place,
        level_ends=tuple(sum(levels[number] <= level for number in order) for level in range(top + 1)),
        taps=taps,
        layers=read,
        uses=tuple(uses),
        weight_nodes=weight_nodes,
        loads=loads,
        parameters={input_label(node): (index[node.get_name()], 0) for node in clone.get_parameters()},
        last_use={key: position for position, number in enumerate(order) for key in sources[number]},
        outputs=ends,
        routes=tuple((number, 0) for number in order if nodes[number].get_type_name() == "NonZero"),
        given={name: partial(values.constant, weight) for name, weight in given.items() if values is not None},
        given_at=given_at,
    )


def _uses_of(
    weight: Weight, twin: dict[str, int], nodes: Sequence[ov.Node], sources: Sequence[Sequence[TensorKey]]
) -> list[LayerUse]:
    """The layers that read a weight, with the activation where there is one worth looking at."""
    found = []
    for consumer in weight.consumers:
        layer = twin.get(consumer.node.get_name())
        if layer is None:
            continue
        tap, role = None, consumer.role
        in_order = weight.input_axes == weight.reduction_axes  # else what is seen has another order than its columns
        if role.activation is not None and in_order:
            shape = nodes[layer].get_input_partial_shape(consumer.port)
            sizes = [shape[dim].get_length() for dim in role.batch]
            batch = tuple(zip(role.activation.batch, sizes, strict=True)) if prod(sizes) > 1 else ()
            tap = Reading(sources[layer][role.activation.port], role.activation.reduction, weight.columns, batch)
        found.append(LayerUse(weight, consumer, layer, tap))
    return found


def _taps(uses: Sequence[LayerUse], nodes: Sequence[ov.Node], levels: Sequence[int]) -> tuple[Tap, ...]:
    """One tap for all layers that read the same tensor in the same way."""
    readers: dict[Reading, list[str]] = {}
    for use in uses:
        if use.tap is not None:
            names = readers.setdefault(use.tap, [])
            if use.weight.name not in names:
                names.append(use.weight.name)
    taps = [
        Tap(str(nodes[key[0]].get_friendly_name()), key, reduction, width, batch, tuple(names), levels[key[0]])
        for (key, reduction, width, batch), names in readers.items()
    ]
    return tuple(sorted(taps, key=lambda tap: (tap.level, tap.key)))


def _constants_of(
    order: Sequence[int],
    nodes: Sequence[ov.Node],
    sources: Sequence[Sequence[TensorKey]],
    constant: Sequence[bool],
    owners: Mapping[int, str],
) -> tuple[dict[int, tuple[tuple[int, int], ...]], dict[int, frozenset[str]]]:
    """By place in `order`, of the constants that the operation there reads, through others or not: the larger ones,
    with the memory that they take in a piece (f32, but as stored for a Gather); and the names of those that have
    `owners`."""
    loads: dict[int, tuple[tuple[int, int], ...]] = {}
    named: dict[int, frozenset[str]] = {}
    for place, number in enumerate(order):
        pending = [source for source, _ in sources[number] if constant[source]]
        large: dict[int, int] = {}
        names: set[str] = set()
        while pending:
            source = pending.pop()
            pending.extend(below for below, _ in sources[source])
            if source in owners:
                names.add(owners[source])
            if nodes[source].get_type_name() == "Constant" and nodes[source].get_byte_size() >= _LARGE:
                stored = int(nodes[source].get_byte_size())
                real = nodes[source].get_output_element_type(0).is_real()
                wide = real and nodes[number].get_type_name() != "Gather"
                large[source] = max(stored, 4 * prod(nodes[source].get_output_shape(0))) if wide else stored
        if large:
            loads[place] = tuple(large.items())
        if names:
            named[place] = frozenset(names)
    return loads, named


def filled_copy(model: ov.Model, weights: Iterable[Weight], sources: Sources) -> ov.Model:
    """A clone in which the weights' constants that only keep a place have their values; the model where none does."""
    if not sources.given:
        return model
    clone = model.clone()
    twins = dict(zip((one.get_name() for one in model.get_ordered_ops()), clone.get_ordered_ops(), strict=True))
    for weight in weights:
        twin = twins.get(weight.constant.get_name())
        if weight.name in sources.given and twin is not None:
            values = sources.constant(weight)
            values.set_friendly_name(twin.get_friendly_name())
            _bypass(twin, values.output(0))
    return clone


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
        if node.get_type_name() == "Assign" or (node.get_type_name() == "ReadValue" and node.get_input_size()):
            _bypass(node, node.input_value(0))
        elif node.get_type_name() == "ReadValue":  # zeros, and none along a dynamic dimension
            shape = [dim.get_length() if dim.is_static else 0 for dim in node.get_output_partial_shape(0)]
            zeros = ops.constant(np.zeros(shape, np.float32))
            _bypass(node, ops.convert(zeros, node.get_output_element_type(0).to_string()).output(0))
    for sink in list(clone.get_sinks()):
        if sink.get_type_name() == "Assign":
            clone.remove_sink(sink)
    for variable in list(clone.get_variables()):
        clone.remove_variable(variable)
    clone.validate_nodes_and_infer_types()
    for node in clone.get_ordered_ops():
        if node.get_type_name() == "Concat":  # of which all parts but one are known to be empty
            axis, parts = node.get_attributes()["axis"], []
            for value in node.input_values():
                shape = value.get_partial_shape()
                if shape.rank.is_dynamic or shape[axis].is_dynamic or shape[axis].get_length():
                    parts.append(value)
            if len(parts) == 1 < node.get_input_size():
                _bypass(node, parts[0])
    return clone, twins


def _bypass(node: ov.Node, value: ov.Output) -> None:
    """Let everything that reads `node` read `value` instead."""
    for target in list(node.output(0).get_target_inputs()):
        target.replace_source_output(value)
