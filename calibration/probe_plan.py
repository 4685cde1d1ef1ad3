"""Which layers are rounded in which probe, and how far each probe runs.

The layers that write the residual stream, those of the last blocks and those in no block are probed to the model's end,
all others to their block's border; in a model of few blocks, where that costs little, all are probed to the end. A
block with many layers (experts) has those of one shape rounded together, and so are layers in no block where there are
very many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ov_weight_compression.calibration.activation_graph import ActivationGraph, LayerUse, TensorKey
from ov_weight_compression.calibration.blocks import Block, find_blocks

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
