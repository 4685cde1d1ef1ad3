"""Layers whose few numbers decide much: a router's choice among experts, and what a recurrence forgets at each step.

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

from collections.abc import Iterable, Iterator

import openvino as ov

from ov_weight_compression.patterns.graphs import Graph

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
