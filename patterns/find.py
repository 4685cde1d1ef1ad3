"""Find every weight of a model, and a reason for every constant that is none.

Three steps for each floating-point constant, none of which looks at its values:

    follow   from the constant through Convert, Reshape, Transpose and FakeConvert to the operations that read it
    judge    what each of them makes of it, in the constant's own axes; one weight if they agree, else why not
    name     each by a name of its own, and mark the last layer, once all are known

The weights of fp8 checkpoints are stored in eight bits already, and meant to be compressed further:

    Constant f8e4m3 ─ Convert ─ [Multiply(scale)] ─ [Reshape] ─▸ layer

The scale is one for all, one per channel or one per block. What a compressor makes can look the same (fp8 with a scale
per channel), but leaves a recipe in the model's rt_info: in a model with such a recipe nothing is such a source, so
that compressing twice changes nothing.

**Fragile layers** are those whose few numbers decide much: a router's choice among experts, and what a recurrence
forgets at each step.

    MatMul → [Add, Softmax, Sigmoid, …] → TopK → experts                          a router
    MatMul → [Split, Add, …] → SoftPlus, Exp or Sigmoid → … → the recurrence      a gate: it decides the decay
    MatMul → [Split, Add, …] → SoftPlus, Exp or Sigmoid → … → Exp                 a decay, whatever it is for
    MatMul → [Split] → MatMul → SoftPlus …                                        its low-rank factor

A router that is wrong by a little runs other experts; a decay's error is multiplied with itself at every position. Both
are small beside the rest. They are found by what they feed, not by their names: routers from each TopK whose places
somebody reads, gates from each operation that carries something from one position to the next (CumSum of a scan, Loop,
TensorIterator, GatedDeltaNet), from each product with what was carried (a state of the model, or of a loop), and from
the form that decays have, an exponential of something that has a sign, where a loop was unrolled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import openvino as ov

from ov_weight_compression.ir_utils.types import FLOAT_TYPES, sizes_of
from ov_weight_compression.ir_utils.weight_source import is_widened
from ov_weight_compression.patterns.compressed import compressed_in, is_compressed
from ov_weight_compression.patterns.graphs import BODY_OPERATIONS, Graph, bytes_of, graphs_of, is_postponed
from ov_weight_compression.patterns.ignored_scope import IgnoredScope
from ov_weight_compression.patterns.roles import (
    RECURRENT,
    ROLES,
    Consumer,
    Kind,
    Refusal,
    Role,
    Roles,
    Use,
    follow,
    pieces_of,
    reshaped,
)
from ov_weight_compression.patterns.weight import Skip, Weight

REPORTED_ELEMENTS = 1024
"""From this many elements on, a constant that no layer uses is reported too."""

_POSTPONED = "its value is computed only when the model is saved or compiled"
_PART = "scale, zero point or table of a weight that is already compressed"
_TINY_ELEMENTS = 64
"""Below this many elements a weight is left alone: three more nodes in the graph to save a few dozen bytes."""

_INT8_OVERHEAD = 3  # bytes per row: an f16 scale and a u8 zero point


def find_weights(
    model: ov.Model, ignored: object = None, roles: Roles | None = None
) -> tuple[list[Weight], list[Skip]]:
    """Every weight of `model` and of the bodies inside it, in graph order, and every constant that is left alone.

    The fp8 weights of a checkpoint count as weights, unless the model says that it was compressed. A
    skip is made for each weight that is compressed already, each constant that a layer reads but that cannot be
    compressed, and every other floating-point constant of `REPORTED_ELEMENTS` or more. Values are not read and the
    model is not changed.

    Args:
        model: any model; compressed ones too.
        ignored: what to leave alone: an `IgnoredScope`, one of NNCF's, a dict of its fields, or a list of names.
        roles: rows for operations that `ROLES` does not know, or not so.

    Raises:
        OptionError: the ignored scope names something that is not in the model, or cannot be read.
    """
    graphs = graphs_of(model)
    scope = None if ignored is None else IgnoredScope.of(ignored)
    later = _ambiguous(scope.names, graphs) if scope else {}
    rules = scope.resolve(graphs, later) if scope else {}
    fp8_sources, table = not is_compressed(model), {**ROLES, **(roles or {})}
    found = [entry for graph in graphs for entry in _found_in(graph, rules, fp8_sources, table)]
    found.sort(key=lambda entry: entry.place)
    taken: set[str] = set()
    for entry in found:  # the second constant called `name` becomes `name#2`
        own = name = entry.result.name
        number = 1
        while name in taken:
            number += 1
            name = f"{own}#{number}"
        taken.add(name)
        if number > 1:
            entry.result = replace(entry.result, name=name)
    if scope:
        scope.check_found(_ignore(found, later))
    main = [entry for entry in found if entry.layers and len(entry.place) == 1]
    last = max(main, key=lambda entry: entry.layers[-1], default=None)
    # NNCF keeps no MatMul back where the model's last layer is skipped, or shares its weight with an earlier one.
    if last is not None and isinstance(last.result, Weight) and len(last.layers) == 1:
        for entry in reversed(main):
            if isinstance(entry.result, Weight) and entry.result.kind in (Kind.MATMUL, Kind.EXPERTS):
                entry.result = replace(entry.result, is_last_layer=True)
                break
    fragile = {node: what for graph in graphs for node, what in fragile_layers(graph).items()}
    for entry in found if fragile else ():
        if isinstance(entry.result, Weight):
            reasons = [fragile[layer.node] for layer in entry.result.consumers if layer.node in fragile]
            entry.result = replace(entry.result, fragile=reasons[0]) if reasons else entry.result
    results = [entry.result for entry in found]
    return [one for one in results if isinstance(one, Weight)], [one for one in results if isinstance(one, Skip)]


def _ambiguous(names: Sequence[str], graphs: Sequence[Graph]) -> dict[str, bool]:
    """Those of the ignored names that can only be understood once names are unique: those that no operation has, or
    several constants; and whether it is one of the latter."""
    if not names:
        return {}
    every = {str(node.get_friendly_name()) for graph in graphs for node in graph.operations}
    constants = Counter(str(node.get_friendly_name()) for graph in graphs for node, _ in graph.constants)
    return {name: name in every for name in names if name not in every or constants[name] > 1}


def _ignore(found: list[_Found], names: Mapping[str, bool]) -> list[str]:
    """Leave alone the weights that have one of these names, or a layer of that name; returns the rules that match
    nothing."""
    missing = []
    for name, exists in names.items():
        own = [entry for entry in found if entry.result.name == name]
        for entry in found:
            one = entry.result
            if isinstance(one, Weight) and (entry in own or any(layer.name == name for layer in one.consumers)):
                entry.result = one.skipped(f"ignored: name '{name}'")
        if not own and not exists:
            missing.append(f"name '{name}'")
    return missing


@dataclass(eq=False)
class _Found:
    """What became of one constant, while names and the last layer are still to be settled."""

    place: tuple[int, ...]
    """Where the first operation that reads it lies."""
    layers: list[tuple[int, ...]]
    """Where the layers that read it lie, in order."""
    result: Weight | Skip


def _found_in(graph: Graph, rules: dict[str, str], fp8_sources: bool, roles: Roles) -> Iterator[_Found]:
    """What becomes of every constant of one level that needs a mention; with `fp8_sources`, what looks like the weight
    of an fp8 checkpoint is one.

    `rules` are the ignored names and what ignores them, as `IgnoredScope.resolve` gives them.
    """
    known: dict[ov.Node, str] = {}
    told: set[ov.Node] = set()
    found: list[_Found | None] = []
    for one in compressed_in(graph, roles):
        if fp8_sources and one.is_fp8_source:
            found.append(_judged(graph, one.end, one.name, one.storage, one.constants, roles, rules))
            told.update(one.constants)
            continue
        reason = f"already compressed ({one.format})"
        skip = Skip(one.name, one.consumers[0].name, one.shape, one.storage, reason, bytes_of(one.codes))
        places = [graph.position[layer.node] for layer in one.consumers]
        found.append(_Found(graph.position[one.chain[0]], places, skip))
        known.update((part, _PART) for part in one.constants)
    for constant, element_type in graph.constants:
        if element_type in FLOAT_TYPES and constant.shape and constant not in told:
            name, readers = constant.get_friendly_name(), constant.output(0).get_target_inputs()
            kind = "f32" if any(is_widened(target.get_node()) for target in readers) else element_type
            reason = known.get(constant, _POSTPONED if is_postponed(constant) else "")
            found.append(_judged(graph, constant, name, kind, (constant,), roles, rules, reason))
    return (one for one in found if one is not None)


def _judged(
    graph: Graph,
    start: ov.Node,
    name: str,
    element_type: str,
    parts: tuple[ov.Node, ...],
    roles: Roles,
    rules: dict[str, str],
    known: str = "",
) -> _Found | None:
    """The weight that a constant is, or why it is left alone; None where that needs no mention.

    Args:
        graph: the level that it is in.
        start: a floating-point constant, or the end of a chain that decompresses one.
        name: its name, not yet unique.
        element_type: of its values, or of the codes.
        parts: the constants that it is stored as.
        roles, rules: what operations make of weights; what is ignored.
        known: a reason to leave it alone that was found already.
    """
    end = reshaped(start, graph.position)  # whose output stands for its values
    uses, shape = follow(graph, end, roles), sizes_of(end.shape)
    layers = [use for use in uses if use.role is not None]
    if not layers and prod(shape) < REPORTED_ELEMENTS:
        return None
    readers = [use.node for use in layers or uses]
    size = 4 if element_type == "f32" else start.get_output_element_type(0).size
    called = (name, *(node.get_friendly_name() for node in (start, *(use.node for use in layers)))) if rules else ()
    ignored = next((f"ignored: {rules[one]}" for one in called if one in rules), "") if layers else ""
    axes = known or ignored or _axes(graph, uses, layers, shape, size)
    result: Weight | Skip
    if isinstance(axes, str):
        reader = str(readers[0].get_friendly_name()) if readers else ""
        result = Skip(name, reader, sizes_of(start.shape), element_type, axes, sum(map(bytes_of, parts)))
    else:
        consumers = [
            Consumer(use.node, use.port, use.node.get_friendly_name(), use.role)
            for use in layers
            if isinstance(use.role, Role)
        ]
        kinds = {consumer.role.kind for consumer in consumers}
        result = Weight(
            name=name,
            constant=end,
            kind=next(kind for kind in reversed(Kind) if kind in kinds),
            consumers=tuple(consumers),
            shape=shape,
            element_type=element_type,
            reduction_axes=axes.reduction,
            channel_axes=axes.channel,
            batch_axes=axes.batch,
            input_axes=axes.inputs,
            is_embedding=Kind.GATHER in kinds,
            other_uses=tuple(use.node.get_friendly_name() for use in uses if use.role is None),
            body=graph.path,
            parts=() if parts[0] is end else parts,
        )
    place = graph.position[readers[0] if readers else start]
    return _Found(place, [graph.position[use.node] for use in layers], result)


@dataclass(frozen=True)
class _Axes:
    """A role in the constant's own axes; `inputs` are the reduction axes in the layer's order."""

    reduction: tuple[int, ...]
    inputs: tuple[int, ...]
    channel: tuple[int, ...]
    batch: tuple[int, ...]


def _axes(graph: Graph, uses: Sequence[Use], layers: Sequence[Use], shape: tuple[int, ...], size: int) -> _Axes | str:
    """What the axes of a constant, with elements of `size` bytes, mean to all layers that read it, or why it is no
    weight to compress.

    A layer that reads nothing else that depends on the model's inputs OpenVINO computes while it compiles the model:
    there is nothing to gain, and what it computes from a decompression chain is not always right.
    """
    for use in uses:
        kind = use.node.get_type_name()
        if kind in RECURRENT:
            return f"a recurrent layer ({kind}) takes its weights only as they are"
        if kind in BODY_OPERATIONS:
            name = use.node.get_friendly_name()
            return f"enters the body of {kind} '{name}' as an input, which cannot be compressed"
    if not layers:
        return _no_layer(uses, shape)
    agreed: _Axes | None = None
    for use in layers:
        if isinstance(use.role, Refusal):
            return use.role.reason
        assert isinstance(use.role, Role)
        assert not isinstance(use.view, Refusal)
        others = (value for port, value in enumerate(use.node.input_values()) if port != use.port)
        if not any(value.get_node() in graph.varying for value in others):
            reads = f"'{use.node.get_friendly_name()}' reads constants alone"
            return f"{reads}: it is computed once, when the model is compiled"
        inputs = pieces_of(use.view, use.role.reduction)
        for piece in inputs:
            if piece.size != shape[piece.axis]:
                return f"a Reshape cuts axis {piece.axis}: the layer sums over a part of it, or over its parts shuffled"
        if not inputs:
            return "the layer sums over a single element"
        reduction = {piece.axis for piece in inputs}
        outer = {piece.axis for dimension in use.role.channel for piece in use.view[dimension]}
        batch = {piece.axis for dimension in use.role.batch for piece in use.view[dimension]} - outer
        axes = _Axes(
            reduction=tuple(sorted(reduction)),
            inputs=tuple(piece.axis for piece in inputs),
            channel=tuple(axis for axis in range(len(shape)) if axis not in reduction | batch),
            batch=tuple(sorted(batch)),
        )
        agreed = agreed or axes
        if axes.reduction != agreed.reduction:
            first, other = (one.node.get_friendly_name() for one in (layers[0], use))
            return (
                f"its consumers disagree about its axes: '{first}' reduces over {_text(agreed.reduction)}, '{other}' "
                f"over {_text(axes.reduction)}"
            )
    assert agreed is not None
    elements, columns = prod(shape), prod(shape[axis] for axis in agreed.reduction)
    if elements < _TINY_ELEMENTS:
        return f"tiny: {elements} elements, fewer than {_TINY_ELEMENTS}"
    if columns * size <= columns + _INT8_OVERHEAD:
        return f"nothing to gain: with {columns} elements a channel, the scales would take what the codes save"
    return agreed


def _no_layer(uses: Sequence[Use], shape: tuple[int, ...]) -> str:
    """Why a constant that no layer reads is none of our business."""
    if not uses:
        return "only its shape is read"
    kinds = sorted({use.node.get_type_name() for use in uses})
    sort = "one-dimensional, " if max(shape) == prod(shape) else ""
    if kinds == ["FakeQuantize"]:
        return "behind a FakeQuantize: its values are quantised already"
    takes = "which takes no" if len(kinds) == 1 else "none of which takes"
    return f"{sort}feeds only {', '.join(kinds)}, {takes} compressed weights"


def _text(axes: tuple[int, ...]) -> str:
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


ROUTER = "router: it chooses the experts"
GATE = "gate of a recurrence: it decides what is forgotten"

_ELEMENTWISE = frozenset(
    {"Add", "Subtract", "Multiply", "Divide", "Negative", "Abs", "Clamp", "Minimum", "Maximum", "Power", "Sqrt", "Log"}
)
_SHAPE = frozenset(
    {
        *("Convert", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "StridedSlice", "Split", "VariadicSplit"),
        *("Concat", "Pad", "Broadcast", "Tile", "Reverse", "ReverseSequence", "Roll", "Select"),
    }
)
_MOVING = _SHAPE - {"Concat", "Select"} | {"Gather"}
"""What a state goes through on its way to the product with its decay."""
_SCORES = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "HSigmoid", "SoftPlus"})
_SQUASHES = frozenset({"SoftPlus", "Exp", "Sigmoid"})
_LOOPS = frozenset({"Loop", "TensorIterator"})
_LOW_RANK = 4
"""A factor of a gate has at most this part of its reduction as output channels."""


def fragile_layers(graph: Graph) -> dict[ov.Node, str]:
    """The MatMuls of one level of a model that choose experts or decide a decay, each with which of the two it does."""
    found: dict[ov.Node, str] = {}
    for node, kind in zip(graph.operations, graph.types, strict=True):
        if kind == "TopK" and _is_read(node.output(1)):
            found.update(
                (one, ROUTER) for one in _behind([(node.input_value(0), True)], _ELEMENTWISE | _SHAPE | _SCORES)
            )
        elif kind in ("CumSum", "ReadValue", "Exp") or kind in _LOOPS or "GatedDeltaNet" in kind:
            gates = list(_behind(_carried(node, kind), _ELEMENTWISE | _SHAPE | _SQUASHES | {"CumSum"}))
            found.update((one, GATE) for one in gates)
            found.update((one, GATE) for one in _factors(gates))
    return found


def _is_read(output: ov.Output) -> bool:
    """Whether something other than the model's own outputs reads it: a TopK at the end is a choice of tokens."""
    readers = [target.get_node() for target in output.get_target_inputs()]
    while readers and all(reader.get_type_name() == "Convert" for reader in readers):
        readers = [target.get_node() for reader in readers for target in reader.output(0).get_target_inputs()]
    return any(reader.get_type_name() not in ("Result", "Convert") for reader in readers)


def _carried(node: ov.Node, kind: str) -> Iterator[tuple[ov.Output, bool]]:
    """The inputs of an operation that goes from position to position, and whether something squashes them after it."""
    if kind in _LOOPS:
        squashed = _squashed_inside(node)
        yield from ((node.input_value(port), port in squashed) for port in range(node.get_input_size()))
        yield from _multiplied_with(_merged_parameters(node))
    elif kind == "Exp":
        yield node.input_value(0), False
    elif kind == "ReadValue":
        yield from _multiplied_with([node])
    elif kind == "CumSum":  # exp(cumsum(a)): what is summed up is a logarithm
        readers = [target.get_node().get_type_name() for target in node.output(0).get_target_inputs()]
        yield node.input_value(0), "Exp" in readers
    else:
        yield from ((node.input_value(port), False) for port in range(node.get_input_size()))


def _merged_parameters(loop: ov.Node) -> list[ov.Node]:
    """The parameters of a loop's body that hold what its last iteration left."""
    parameters = loop.get_function().get_parameters()
    inputs = loop.get_input_descriptions()
    return [parameters[one.body_parameter_index] for one in inputs if type(one).__name__ == "MergedInputDescription"]


def _multiplied_with(states: Iterable[ov.Node]) -> Iterator[tuple[ov.Output, bool]]:
    """What states are multiplied with."""
    waiting = list(states)
    while waiting:
        for target in waiting.pop().output(0).get_target_inputs():
            reader, port = target.get_node(), target.get_index()
            kind = reader.get_type_name()
            if kind == "Multiply":
                yield reader.input_value(1 - port), False
            elif kind in _MOVING and port == 0:
                waiting.append(reader)


def _squashed_inside(node: ov.Node) -> set[int]:
    """The input ports whose values a body squashes itself."""
    parameters = node.get_function().get_parameters()
    found = set()
    for one in node.get_input_descriptions():
        waiting, seen = [parameters[one.body_parameter_index]], set()
        while waiting:
            current = waiting.pop()
            for target in (target for output in current.outputs() for target in output.get_target_inputs()):
                reader = target.get_node()
                kind = reader.get_type_name()
                if kind in _SQUASHES:
                    found.add(one.input_index)
                elif kind in _ELEMENTWISE | _SHAPE and reader not in seen:
                    seen.add(reader)
                    waiting.append(reader)
    return found


def _behind(starts: Iterable[tuple[ov.Output, bool]], through: frozenset[str]) -> Iterator[ov.Node]:
    """The MatMuls behind values, going back through operations of these types; of those that start as False only where
    something squashes what the MatMul gives."""
    waiting = [(value.get_node(), squashed) for value, squashed in starts]
    seen = set()
    while waiting:
        node, squashed = waiting.pop()
        if (node, squashed) in seen:
            continue
        seen.add((node, squashed))
        kind = node.get_type_name()
        if kind == "MatMul":
            if squashed:
                yield node
        elif kind in through:
            squashed = squashed or kind in _SQUASHES
            waiting += [(value.get_node(), squashed) for value in node.input_values()]


def _factors(gates: Iterable[ov.Node]) -> Iterator[ov.Node]:
    """The thin MatMuls whose result a gate's MatMul multiplies."""
    for gate in gates:
        for factor in _behind([(gate.input_value(0), True)], _ELEMENTWISE | _SHAPE | {"Tanh"}):
            weight = factor.input_value(1).get_partial_shape()
            if weight.is_static and len(weight) == 2:
                channels, reduction = sorted(int(size.get_length()) for size in weight)
                if channels * _LOW_RANK <= reduction:
                    yield factor
