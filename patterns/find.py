"""Find every weight of a model, and a reason for every constant that is none.

Three steps for each floating-point constant, none of which looks at its values:

    follow   from the constant through Convert, Reshape, Transpose and FakeConvert to the operations that read it
    judge    what each of them makes of it, in the constant's own axes; one weight if they agree, else why not
    settle   names made unique, and the last layer marked, once all are known
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import openvino as ov

from ov_weight_compression.patterns.compressed import compressed_in
from ov_weight_compression.patterns.graphs import Graph, bytes_of, graphs_of, is_postponed
from ov_weight_compression.patterns.ignored import IgnoredScope
from ov_weight_compression.patterns.judge import Candidate, judge
from ov_weight_compression.patterns.sources import has_sources, settle_source
from ov_weight_compression.patterns.weight import FLOAT_TYPES, Kind, Skip, Weight

__all__ = ["REPORTED_ELEMENTS", "find_weights"]

REPORTED_ELEMENTS = 1024
"""From this many elements on, a constant that no layer uses is reported too."""

_POSTPONED = "its value is computed only when the model is saved or compiled"


def find_weights(model: ov.Model, ignored: object = None) -> tuple[list[Weight], list[Skip]]:
    """Every weight of `model` and of the bodies inside it, in graph order, and every constant that is left alone.

    The fp8 weights of a checkpoint count as weights (see `sources`), unless the model says that it was compressed. A
    skip is made for each weight that is compressed already, each constant that a layer reads but that cannot be
    compressed, and every other floating-point constant of `REPORTED_ELEMENTS` or more. Values are not read and the
    model is not changed.

    Args:
        model: any model; compressed ones too.
        ignored: what to leave alone: an `IgnoredScope`, one of NNCF's, a dict of its fields, or a list of names.

    Raises:
        OptionError: the ignored scope names something that is not in the model, or cannot be read.
    """
    graphs = graphs_of(model)
    scope = IgnoredScope.of(ignored)
    later = _ambiguous(scope.names, graphs) if scope else {}
    rules = scope.resolve(graphs, later) if scope else {}
    sources = has_sources(model)
    found = [entry for graph in graphs for entry in _settle(graph, rules, sources)]
    found.sort(key=lambda entry: entry.place)
    _name(found)
    if scope:
        scope.check_found(_ignore(found, later))
    _mark_last_layer(found)
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
                reason = f"ignored: name '{name}'"
                entry.result = Skip(one.name, one.consumers[0].name, one.shape, one.element_type, reason, one.bytes)
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


def _settle(graph: Graph, rules: dict[str, str], sources: bool) -> Iterator[_Found]:
    """What becomes of every constant of one level that needs a mention."""
    parts: dict[ov.Node, str] = {}
    told: set[ov.Node] = set()
    for one in compressed_in(graph):
        consumer = one.consumers[0]
        layers = [graph.place(other.node) for other in one.consumers]
        if sources and one.is_fp8_source:
            yield _Found(layers[0], layers, settle_source(graph, one, rules))
            told.update(one.constants)
            continue
        reason = f"already compressed ({one.format})"
        skip = Skip(one.name, consumer.name, one.shape, one.storage, reason, bytes_of(one.codes))
        yield _Found(graph.place(one.chain[0]), layers, skip)
        parts.update((part, f"belongs to '{one.name}', which is already compressed") for part in one.constants)
    for constant, element_type in graph.constants:
        if element_type not in FLOAT_TYPES or not constant.shape or constant in told:
            continue
        candidate = Candidate.of(graph, constant, element_type)
        if candidate.layers or candidate.elements >= REPORTED_ELEMENTS:
            known = parts.get(constant) or (_POSTPONED if is_postponed(constant) else None)
            result = known or judge(candidate, rules)
            first = candidate.first
            yield _Found(
                place=graph.place(first.node if first else constant),
                layers=[graph.place(use.node) for use in candidate.layers],
                result=result if isinstance(result, Weight) else candidate.skip(result),
            )


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
