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

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ov_weight_compression.calibration.model_inputs import input_label
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.file_mappings import FileMappings
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


_Reading = tuple[TensorKey, tuple[int, ...], int, tuple[tuple[int, int], ...]]
"""A tensor that a layer reads, and how: a tap's `key`, `reduction`, `width` and `batch`."""


@dataclass(frozen=True, eq=False)
class LayerUse:
    """A layer of the graph that reads a weight."""

    weight: Weight
    consumer: Consumer
    layer: int
    """Its index in `ActivationGraph.nodes`."""
    tap: _Reading | None
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
                self.mappings.drop(self.nodes[index].get_tensor_view().data)

    def inputs_of(self, begin: int, end: int) -> list[TensorKey]:
        """Tensors made before place `begin` and read in `[begin, end)`."""
        found: dict[TensorKey, None] = {}
        for place in range(begin, end):
            for key in self.sources[self.order[place]]:
                if not self.constant[key[0]] and self.place.get(key[0], -1) < begin:
                    found[key] = None
        return list(found)

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
    sources = tuple(tuple(_key(value, index) for value in node.input_values()) for node in nodes)
    constant = _constants(nodes, sources)
    twin = {name: index[copied.get_name()] for name, copied in twins.items() if copied.get_name() in index}
    uses = [use for weight in weights if not weight.body for use in _uses_of(weight, twin, nodes, sources)]
    levels = _levels(sources, constant, {use.layer for use in uses})
    taps = _taps([use for use in uses if use.tap and not constant[use.tap[0][0]]], nodes, levels)
    results = [result.input_value(0) for result in clone.get_results()]
    wanted = tuple(_key(results[number], index) for number in outputs)
    order = _order([*(tap.key for tap in taps), *wanted], sources, constant, levels, nodes)
    place = {number: position for position, number in enumerate(order)}
    layers: dict[int, tuple[str, ...]] = {}
    for use in uses:
        if use.layer in place:
            layers[place[use.layer]] = (*layers.get(place[use.layer], ()), use.weight.name)
    top = max((levels[number] for number in order), default=0)
    weight_nodes = {
        weight.name: twin[weight.constant.get_name()] for weight in weights if weight.constant.get_name() in twin
    }
    given = _given(weights, values)
    return ActivationGraph(
        model=clone,
        nodes=nodes,
        sources=sources,
        constant=constant,
        order=order,
        place=place,
        level_ends=tuple(sum(levels[number] <= level for number in order) for level in range(top + 1)),
        taps=taps,
        layers=layers,
        uses=tuple(sorted((use for use in uses if use.layer in place), key=lambda use: place[use.layer])),
        weight_nodes=weight_nodes,
        loads=_loads(order, nodes, sources, constant),
        parameters={input_label(node): (index[node.get_name()], 0) for node in clone.get_parameters()},
        last_use={key: position for position, number in enumerate(order) for key in sources[number]},
        outputs=wanted,
        routes=tuple((number, 0) for number in order if nodes[number].get_type_name() == "NonZero"),
        given=given,
        given_at=_needed(given.keys() & weight_nodes.keys(), weight_nodes, order, sources, constant),
    )


def _given(weights: Iterable[Weight], values: Sources | None) -> dict[str, Callable[[], ov.Node]]:
    if values is None:
        return {}
    found = [weight for weight in weights if weight.name in values.given]
    for weight in found:
        if weight.body:
            raise OptionError(
                f"sources: {shown(weight.name)} lies inside {shown(weight.body)}, where data meets the constant of the "
                "model alone: compress without data, or put its values into the model"
            )
    return {weight.name: partial(values.constant, weight) for weight in found}


def _needed(
    names: Iterable[str],
    weight_nodes: Mapping[str, int],
    order: Sequence[int],
    sources: Sequence[Sequence[TensorKey]],
    constant: Sequence[bool],
) -> dict[int, frozenset[str]]:
    """By place in `order`: those of the named weights that the operation there reads, through constants or not."""
    owners = {weight_nodes[name]: name for name in names}
    needed: dict[int, frozenset[str]] = {}
    for place, number in enumerate(order if owners else ()):
        pending, found = [source for source, _ in sources[number] if constant[source]], set()
        while pending:
            source = pending.pop()
            if source in owners:
                found.add(owners[source])
            else:
                pending.extend(below for below, _ in sources[source])
        if found:
            needed[place] = frozenset(found)
    return needed


def _key(value: ov.Output, index: dict[str, int]) -> TensorKey:
    return index[value.get_node().get_name()], int(value.get_index())


def _constants(nodes: Sequence[ov.Node], sources: Sequence[Sequence[TensorKey]]) -> tuple[bool, ...]:
    """Which operations depend on nothing but constants."""
    constant: list[bool] = []
    for node, keys in zip(nodes, sources, strict=True):
        constant.append(node.get_type_name() not in _NEVER_CONSTANT and all(constant[source] for source, _ in keys))
    return tuple(constant)


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
        if role is not None and role.activation is not None and in_order:
            shape = nodes[layer].get_input_partial_shape(consumer.port)
            sizes = [shape[dim].get_length() for dim in role.batch]
            batch = tuple(zip(role.activation.batch, sizes, strict=True)) if prod(sizes) > 1 else ()
            tap = (sources[layer][role.activation.port], role.activation.reduction, weight.columns, batch)
        found.append(LayerUse(weight, consumer, layer, tap))
    return found


def _levels(sources: Sequence[Sequence[TensorKey]], constant: Sequence[bool], layers: set[int]) -> list[int]:
    levels: list[int] = []
    for number, keys in enumerate(sources):
        below = max((levels[source] for source, _ in keys if not constant[source]), default=0)
        levels.append(below + (number in layers))
    return levels


def _taps(uses: Sequence[LayerUse], nodes: Sequence[ov.Node], levels: Sequence[int]) -> tuple[Tap, ...]:
    """One tap for all layers that read the same tensor in the same way."""
    readers: dict[_Reading, list[str]] = {}
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


def _order(
    ends: Sequence[TensorKey],
    sources: Sequence[Sequence[TensorKey]],
    constant: Sequence[bool],
    levels: Sequence[int],
    nodes: Sequence[ov.Node],
) -> tuple[int, ...]:
    """Everything that the tensors at the `ends` depend on, by level."""
    wanted: set[int] = set()
    pending = [key[0] for key in ends]
    while pending:
        number = pending.pop()
        if number not in wanted and not constant[number]:
            wanted.add(number)
            pending.extend(source for source, _ in sources[number])
    found = [number for number in sorted(wanted) if nodes[number].get_type_name() != "Parameter"]
    return tuple(sorted(found, key=lambda number: (levels[number], number)))


def _loads(
    order: Sequence[int],
    nodes: Sequence[ov.Node],
    sources: Sequence[Sequence[TensorKey]],
    constant: Sequence[bool],
) -> dict[int, tuple[tuple[int, int], ...]]:
    """The memory that constants take in a piece that holds an operation: f32, but as stored for a Gather."""
    loads: dict[int, tuple[tuple[int, int], ...]] = {}
    for place, number in enumerate(order):
        pending = [source for source, _ in sources[number] if constant[source]]
        found: dict[int, int] = {}
        while pending:
            source = pending.pop()
            pending.extend(below for below, _ in sources[source])
            if nodes[source].get_type_name() == "Constant" and nodes[source].get_byte_size() >= _LARGE:
                stored = int(nodes[source].get_byte_size())
                real = nodes[source].get_output_element_type(0).is_real()
                wide = real and nodes[number].get_type_name() != "Gather"
                found[source] = max(stored, 4 * prod(nodes[source].get_output_shape(0))) if wide else stored
        if found:
            loads[place] = tuple(found.items())
    return loads


def filled_copy(model: ov.Model, weights: Iterable[Weight], sources: Sources) -> ov.Model:
    """A clone in which the weights' constants that only keep a place have their values; the model where none does."""
    if not sources.given:
        return model
    clone = model.clone()
    twins = dict(zip((one.get_name() for one in model.get_ordered_ops()), clone.get_ordered_ops(), strict=True))
    for weight in weights:
        twin = twins.get(weight.constant.get_name())
        if weight.name in sources.given and twin is not None:
            _bypass(twin, sources.constant(weight).output(0))
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
