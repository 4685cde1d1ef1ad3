"""Which layers are rounded in which probe, and how far each probe runs: by the blocks of a model.

**Rounded together** are the layers of one shape in a block with many (experts), and layers in no block where there are
very many. In a model of few blocks, where that costs little, all are probed to the end.

**The blocks** of a model are found in its graph: where its residual stream passes, whatever its exporter called things.
An operation *post-dominates* another where every way from that one to the outputs passes it. From a model's input on,
the chain of immediate post-dominators is the main line. Where a tensor of it has several readers, the chain goes on at
the place where all ways from there have met again:

    h ─┬─ norm ─ q, k, v ─ attention ─ o ─┬─ Add = h′ ─┬─ norm ─ gate, up ─ down ─┬─ Add = h″ ─ …
       └──────────────────────────────────┘            └──────────────────────────┘

The layers between two tensors of the main line are a segment. In a transformer segments of two sorts take turns (three
in a decoder that reads an encoder, one where attention and MLP stand side by side): a *block* is one period of that
sequence, and its *border* the tensor behind its last segment. Layers that lie on the main line themselves (embeddings,
the head, models that are a plain chain) are in no block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ov_weight_compression.calibration.activation_graph import ActivationGraph, LayerUse, TensorKey

_LONGEST_PERIOD = 8
_MOSTLY = 0.6


@dataclass(frozen=True)
class Block:
    """Layers between two tensors of the residual stream."""

    layers: tuple[int, ...]
    """Their places in the graph's order, rising."""
    border: TensorKey
    """The tensor at its end."""
    writers: frozenset[int]
    """Those of the layers with no other layer between them and the border: they write the residual stream."""


def find_blocks(graph: ActivationGraph) -> list[Block]:
    """The blocks of a graph that was read with its outputs, in their order; none where nothing branches and meets."""
    readers = _readers(graph)
    line, above = _main_line(graph, readers)
    segments: dict[int, list[int]] = {}
    for place in sorted(graph.layers):
        number = graph.order[place]
        while number not in line and number in above:
            number = above[number]
        if number in line and number != graph.order[place]:
            segments.setdefault(number, []).append(place)
    ends = sorted(segments, key=graph.place.__getitem__)
    blocks = []
    for group in _periods([_signature(graph, segments[end]) for end in ends]):
        layers = tuple(sorted(place for which in group for place in segments[ends[which]]))
        end = ends[group[-1]]
        blocks.append(Block(layers, (end, 0), _writers(graph, layers, end, readers)))
    return blocks


def _readers(graph: ActivationGraph) -> dict[int, list[int]]:
    """The operations of the order that read an operation's values, but not only its shape."""
    found: dict[int, list[int]] = {}
    for number in graph.order:
        if graph.nodes[number].get_type_name() != "ShapeOf":
            for source in dict.fromkeys(key[0] for key in graph.sources[number]):
                found.setdefault(source, []).append(number)
    return found


_END = -1


def _main_line(graph: ActivationGraph, readers: dict[int, list[int]]) -> tuple[set[int], dict[int, int]]:
    """The operations on the chains of post-dominators of the model's inputs, and every operation's immediate one."""
    above: dict[int, int] = {}
    depth = {_END: 0}
    ends = {key[0] for key in graph.outputs}
    inputs = [key[0] for key in graph.parameters.values()]
    for number in (*reversed(graph.order), *inputs):
        found = [reader for reader in readers.get(number, ()) if reader in depth]
        if number in ends:
            found.append(_END)
        if found:
            meeting = found[0]
            for other in found[1:]:
                meeting = _meeting(meeting, other, above, depth)
            above[number], depth[number] = meeting, depth[meeting] + 1
    line: set[int] = set()
    for number in inputs:
        while number != _END and number in above:
            number = above[number]
            line.add(number)
    return line - {_END}, above


def _meeting(one: int, other: int, above: dict[int, int], depth: dict[int, int]) -> int:
    while one != other:
        if depth[one] >= depth[other]:
            one = above[one]
        else:
            other = above[other]
    return one


def _signature(graph: ActivationGraph, places: Iterable[int]) -> tuple[object, ...]:
    """Equal for segments with layers of the same sorts and sizes."""
    return tuple(
        sorted(
            (graph.nodes[graph.order[place]].get_type_name(), tuple(graph.nodes[weight].get_output_shape(0)))
            for place in places
            for weight in (graph.weight_nodes[name] for name in graph.layers[place])
        )
    )


def _periods(signatures: Sequence[object]) -> list[list[int]]:
    """The numbers of the segments, in groups of one period each; by themselves where they do not repeat."""
    count = len(signatures)
    for period in range(1, min(_LONGEST_PERIOD, count // 2) + 1):
        same = [signatures[number] == signatures[number + period] for number in range(count - period)]
        if sum(same) >= _MOSTLY * (count - period):
            first = same.index(True)
            starts = range(first, count, period)
            return [[number] for number in range(first)] + [
                list(range(start, min(start + period, count))) for start in starts
            ]
    return [[number] for number in range(count)]


def _writers(graph: ActivationGraph, layers: Sequence[int], end: int, readers: dict[int, list[int]]) -> frozenset[int]:
    others = {graph.order[place] for place in layers}
    return frozenset(place for place in layers if not _passes(graph.order[place], others, end, readers))


def _passes(begin: int, others: set[int], end: int, readers: dict[int, list[int]]) -> bool:
    """Whether one of the others lies on a way from `begin` to `end`."""
    seen: set[int] = set()
    pending = list(readers.get(begin, ()))
    while pending:
        number = pending.pop()
        if number in others:
            return True
        if number != end and number not in seen:
            seen.add(number)
            pending.extend(readers.get(number, ()))
    return False


_LAST_BLOCKS = 2
PASSES = 30
"""Through the whole model, for each window: what probing every layer to the end may cost."""
_ONE_BY_ONE = 16
"""Layers of a block that are probed one by one."""
_FREE = 64
"""Layers outside of blocks that are probed one by one."""


@dataclass(frozen=True, eq=False)
class Probe:
    """Some uses of weights, most often one, that are rounded together."""

    uses: tuple[LayerUse, ...]
    begin: int
    """The first place in the graph's order at which one of them is."""
    end: int
    """The place before which the probe is over."""
    border: TensorKey | None
    """The end of their block."""
    to_the_end: bool
    """It runs to the model's outputs."""
    gauges: bool
    """What it shows there tells what an error at a border means to the outputs."""


def plan_probes(graph: ActivationGraph, most_passes: int = PASSES) -> list[Probe]:
    """Probes of all layers of a graph that was read with its outputs, by where they begin.

    Args:
        graph: the model's.
        most_passes: through the whole model, that probing every layer to the end may cost.
    """
    blocks = find_blocks(graph)
    inside = {place for block in blocks for place in block.layers}
    uses = {place: [use for use in graph.uses if graph.place[use.layer] == place] for place in graph.layers}
    probes = []
    groups = [list(_groups([use for place in block.layers for use in uses[place]], graph, block)) for block in blocks]
    passes = sum(len(found) * (len(blocks) - number) / len(blocks) for number, found in enumerate(groups))
    for number, block in enumerate(blocks):
        late = number >= len(blocks) - _LAST_BLOCKS or passes <= most_passes
        for group in groups[number]:
            writes = graph.place[group[0].layer] in block.writers
            end = len(graph.order) if late or writes else graph.place[block.border[0]] + 1
            begin = min(graph.place[use.layer] for use in group)
            probes.append(Probe(tuple(group), begin, end, block.border, late or writes, writes and not late))
    free = [use for use in graph.uses if graph.place[use.layer] not in inside]
    size = max(1, -(-len(free) // _FREE))
    for first in range(0, len(free), size):
        group = free[first : first + size]
        probes.append(Probe(tuple(group), graph.place[group[0].layer], len(graph.order), None, True, False))
    return sorted(probes, key=lambda probe: probe.begin)


def _groups(uses: Sequence[LayerUse], graph: ActivationGraph, block: Block) -> Iterable[list[LayerUse]]:
    """The layers of a block one by one; where there are many, those of one shape together."""
    if len(uses) <= _ONE_BY_ONE:
        return ([use] for use in uses)
    alike: dict[object, list[LayerUse]] = {}
    for use in uses:
        alike.setdefault((use.weight.shape, graph.place[use.layer] in block.writers), []).append(use)
    return alike.values()
