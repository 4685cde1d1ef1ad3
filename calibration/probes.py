"""What an error in each layer does to a model's outputs, measured: a few probes in place of one run a layer.

A probe rounds one weight and sees what comes of it. To see the end of it costs all blocks that come after. But for
nearly all weights what the outputs feel is, up to one constant, the error where the weight's block ends, relative to
the residual stream there: the mean over positions of |Δh|² / |h|². The exceptions are those that write the residual
stream themselves (some write activations a thousand times the usual, and everything after depends on these), and the
last blocks, behind which nothing evens out. So

    the layers that write the stream, those of the last two blocks, those in no block     are probed to the end
    all others, unless the model has few blocks                                           to their block's border

and the constant is the median of what the first show, behind all but the last two blocks. On a model of thirty blocks
that is a fifth of what probing everything to the end costs, and tells the same.

All probes travel in one pass. What rounding adds to a layer's output, d = x (Ŵ − W)ᵀ, is computed from the exact
activations and added there; from then on the probe is a stream of its own, which shares the pieces of the model with
all others: a piece is compiled once, and runs on the exact activations, then on those of each probe that has begun.
What layers cost that are rounded together is shared out by |d|².

**What rounding adds** to the output of a layer that reads a weight: a layer is linear in its weight.

    y = f(x, W)        d = f(x, Ŵ) − f(x, W) = f(x, Ŵ − W)

Of a plain MatMul, and of a table whose rows are picked, that is computed from a few rows of the weight at a time; of
everything else by the operation itself, compiled for the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TypeAlias

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from ov_weight_compression.calibration.activation_graph import ActivationGraph, LayerUse, TensorKey, read_graph
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY
from ov_weight_compression.calibration.divergence import DivergenceSum, scored_outputs
from ov_weight_compression.calibration.grams import add_gram, mirror, rows_by_expert, unfit
from ov_weight_compression.calibration.probe_plan import PASSES, Probe, plan_probes
from ov_weight_compression.calibration.runner import CompiledPiece, Pool, Store, feed, split
from ov_weight_compression.ir_utils.printing import progress_bar
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.patterns import Kind, Sources, Weight


@dataclass(frozen=True, eq=False)
class Rounding:
    """How one weight is rounded, now that its input is known."""

    energy: Float32 | None
    """[in], or [experts, in]: what an error in each of the weight's columns weighs; None for all alike."""
    values: Callable[[Float32, int], Float32]
    """`(rows [n, in], number of their expert) → rows as rounded`."""


Rounder: TypeAlias = Callable[[str, Float32 | None], Rounding]
"""`(weight's name, what was seen of its input) → Rounding`: the quantiser whose errors are probed. It is given E[x²],
[in] or [experts, in], or Σ x xᵀ, [in, in] or [experts, in, in]; None where the weight meets no activation."""

_PIECE_ELEMENTS = 1 << 22
_Piece = tuple[int, Float32]
"""The first of some rows, and what rounding adds to them."""


def shift_of(
    graph: ActivationGraph,
    nodes: Sequence[ov.Node],
    use: LayerUse,
    source: WeightSource,
    rounding: Rounding,
    store: Store,
    windows: int,
    blank: Callable[[tuple[int, ...]], Float32],
) -> list[Array]:
    """What rounding adds to the layer's output, for each of the first `windows` windows.

    Args:
        graph: that the layer is in.
        nodes: as in `CompiledPiece`.
        use: the layer.
        source: the weight's values.
        rounding: how the weight is rounded.
        store: where the layer's inputs are.
        windows: how many.
        blank: makes the arrays of zeros that are filled: those of a head are large.
    """
    experts = 1 if rounding.energy is None or rounding.energy.ndim == 1 else len(rounding.energy)
    block = source.layout.rows // experts if experts > 1 else 0
    pieces = (
        (slab.start, rounding.values(np.asarray(rows, np.float32), slab.start // block if block else 0) - rows)
        for slab, rows in source.pieces(_PIECE_ELEMENTS, block)
    )
    role = use.consumer.role
    if not role.batch:
        meets = role.activation
        if meets is not None and len(meets.reduction) == len(meets.output) == 1 and len(use.weight.channel_axes) == 1:
            key = graph.sources[use.layer][meets.port]
            return _products(
                pieces,
                source,
                [store.get(key, window) for window in range(windows)],
                meets.reduction[0],
                meets.output[0],
                blank,
            )
        if meets is None and role.kind is Kind.GATHER and _picks_rows(graph, use):
            key = graph.sources[use.layer][1]
            return _picked(pieces, source, [store.get(key, window) for window in range(windows)], blank)
    whole = np.empty((source.layout.rows, source.layout.columns), np.float32)
    for start, difference in pieces:
        whole[start : start + len(difference)] = difference
    return _computed(graph, nodes, use, source.layout.from_matrix(whole), store, windows)


def _picks_rows(graph: ActivationGraph, use: LayerUse) -> bool:
    """Whether a Gather picks along the first axis of a table of two."""
    axis = graph.nodes[use.layer].input_value(2).get_node()
    plain = graph.nodes[use.layer].get_attributes().get("batch_dims", 0) == 0
    return bool(
        plain
        and len(use.weight.shape) == 2
        and use.weight.reduction_axes == (1,)
        and axis.get_type_name() == "Constant"
        and int(axis.data.reshape(-1)[0]) == 0
        and not graph.constant[graph.sources[use.layer][1][0]]
    )


def _products(
    pieces: Iterable[_Piece],
    source: WeightSource,
    inputs: list[Array],
    reduction: int,
    output: int,
    blank: Callable[[tuple[int, ...]], Float32],
) -> list[Array]:
    moved = [np.moveaxis(np.asarray(x, np.float32), reduction, -1) for x in inputs]
    found = [blank((*x.shape[:-1], source.layout.rows)) for x in moved]
    for start, difference in pieces:
        for x, shift in zip(moved, found, strict=True):
            shift[..., start : start + len(difference)] = x @ difference.T
    return [np.ascontiguousarray(np.moveaxis(shift, -1, output)) for shift in found]


def _picked(
    pieces: Iterable[_Piece],
    source: WeightSource,
    indices: list[Array],
    blank: Callable[[tuple[int, ...]], Float32],
) -> list[Array]:
    rows = source.layout.rows
    wanted = [np.where(one < 0, one + rows, one).astype(np.int64) for one in indices]
    found = [blank((*one.shape, source.layout.columns)) for one in wanted]
    for start, difference in pieces:
        for one, shift in zip(wanted, found, strict=True):
            here = (one >= start) & (one < start + len(difference))
            shift[here] = difference[one[here] - start]
    return found


def _computed(
    graph: ActivationGraph, nodes: Sequence[ov.Node], use: LayerUse, difference: Array, store: Store, windows: int
) -> list[Array]:
    """By the operation, with the difference in place of the weight."""
    place, replaced = graph.place[use.layer], {use.weight.name: ops.constant(difference)}
    piece = CompiledPiece(graph, nodes, place, place + 1, store, [(use.layer, 0)], replaced=replaced)
    return [np.array(output) for _, outputs in piece.run(store, windows) for output in outputs.values()]


_LARGE_SHARE = 4


@dataclass(frozen=True, eq=False)
class Influence:
    """What one use of a weight showed when the weight was rounded."""

    loss: float
    """How far the outputs moved: nats, or squared relative L2; adds up over weights."""
    energy: Float32 | None
    """[in], or [experts, in]: what an error in each of the weight's columns weighs there; None for all alike."""


@dataclass(frozen=True, eq=False)
class ProbeShown:
    """What one probe has shown: numbers and arrays only, so that processes may hand it on."""

    to_the_end: bool
    gauges: bool
    """As in `Probe`."""
    at_outputs: float
    """How far the outputs moved, where it ran to the end."""
    at_border: float
    """The mean of |Δh|² / |h|²; 0 where it has none."""
    uses: tuple[tuple[str, float, Float32 | None], ...]
    """Of each of its uses: the weight's name, |d|², and what an error in each column weighs."""


def run_probes(
    model: ov.Model,
    weights: Sequence[Weight],
    rounder: Rounder,
    samples: Iterable[Mapping[str, Array]],
    more: Iterable[Mapping[str, Array]] = (),
    *,
    grams: bool = False,
    sources: Sources,
    calibration_memory: int = DEFAULT_MEMORY,
    quiet: bool = False,
    share: tuple[int, int] = (0, 1),
    most_passes: int = PASSES,
) -> list[ProbeShown]:
    """What the probes show, of each use of each weight (see `influences_of`).

    Args:
        model: not changed.
        weights: those to be probed.
        rounder: how.
        samples: what the probes run on: a few hundred tokens.
        grams: give the rounder Gram matrices, and not only their diagonal.
        more: windows of which only the inputs of the layers are looked at, for what the rounder wants to know.
        sources: the weights' values.
        calibration_memory: bytes that running may hold.
        quiet: show no progress.
        share: all of the probes, or the first of two, (0, 2), every other one. Each share runs the exact stream for
            itself.
        most_passes: see `plan_probes`.

    Raises:
        WorkError: the model cannot be run on the samples.
    """
    outputs = scored_outputs(model)
    graph = read_graph(model, weights, values=sources, outputs=outputs.numbers)
    every = plan_probes(graph, most_passes)
    probes = every[share[0] :: share[1]]
    with closing(Pool(calibration_memory // 4)) as pool, progress_bar(quiet=quiet) as bar:
        exact = Store(pool)
        windows = list(samples)
        total = feed(graph, exact, [*windows, *more])
        seen = [_Seen(probe, Store(pool, exact), DivergenceSum(outputs)) for probe in probes]
        pieces = _pieces(graph, every, calibration_memory // 6)
        runs = sum(probe.begin < end and begin < probe.end for begin, end in pieces for probe in probes)
        tick = bar.start("Probing", len(pieces) * total + runs * len(windows))
        run = _Run(graph, rounder, grams, sources, exact, pool, len(windows), total, tick)
        for begin, end in pieces:
            run.piece(begin, end, seen)
    return [one.shown() for one in seen]


def _pieces(graph: ActivationGraph, probes: Sequence[Probe], limit: int) -> list[tuple[int, int]]:
    """Pieces of the model that end with the blocks, and where their weights exceed the limit."""
    borders = {graph.place[probe.border[0]] + 1 for probe in probes if probe.border} | {len(graph.order)}
    found, begin = [], 0
    for end in sorted(borders):
        found += split(graph, begin, end, limit)
        begin = end
    return found


@dataclass(eq=False)
class _Seen:
    """A probe on its way, and what it has shown."""

    probe: Probe
    store: Store
    at_outputs: DivergenceSum
    at_border: list[float] = field(default_factory=list)
    """|Δh|² / |h|² for each row."""
    moved: dict[LayerUse, float] = field(default_factory=dict)
    """|d|²."""
    energies: dict[LayerUse, Float32 | None] = field(default_factory=dict)
    """What an error in each column weighs."""

    def shown(self) -> ProbeShown:
        """All of that in numbers."""
        return ProbeShown(
            self.probe.to_the_end,
            self.probe.gauges,
            self.at_outputs.total,
            float(np.mean(self.at_border)) if self.at_border else 0.0,
            tuple((use.weight.name, moved, self.energies[use]) for use, moved in self.moved.items()),
        )


@dataclass(frozen=True, eq=False)
class _Run:
    """The exact stream, and what it takes to run a piece of it."""

    graph: ActivationGraph
    rounder: Rounder
    grams: bool
    sources: Sources
    exact: Store
    pool: Pool
    probed: int
    """Windows that probes run on: the first ones."""
    windows: int
    tick: Callable[[int], None]

    @cached_property
    def nodes(self) -> Sequence[ov.Node]:
        """A copy that pieces and single layers are cut out of."""
        return tuple(self.graph.model.clone().get_ordered_ops())

    def piece(self, begin: int, end: int, every: Sequence[_Seen]) -> None:
        """Run one piece on the exact activations, then on those of every probe that has begun."""
        graph = self.graph
        here = [use for use in graph.uses if begin <= graph.place[use.layer] < end]
        cut = _Cut.of(graph, begin, end, here, {one.probe.border for one in every if one.probe.border})
        compiled = CompiledPiece(
            graph,
            self.nodes,
            begin,
            end,
            self.exact,
            sorted(cut.wanted),
            replaced={name: graph.given[name]() for name in sorted(cut.given)},
            shifted=tuple(dict.fromkeys((use.layer, 0) for use in here)),
        )
        for window, outputs in compiled.run(self.exact, self.windows):
            for key, array in outputs.items():
                if key in cut.crossing or key in cut.inputs or window < self.probed:
                    self.exact.put(key, window, array)
            self.tick(1)
        for one in every:
            if one.probe.begin < end and begin < one.probe.end:
                self._advance(one, compiled, self._shifts(one, begin, end), cut)
                _drop(one.store, graph, len(graph.order) + 1 if one.probe.end <= end else end)
        _drop(self.exact, graph, end)

    def _shifts(self, one: _Seen, begin: int, end: int) -> dict[TensorKey, list[Array]]:
        """What rounding adds to the outputs of the probe's layers in the piece, window by window."""
        found: dict[TensorKey, list[Array]] = {}
        for use in one.probe.uses:
            if not begin <= self.graph.place[use.layer] < end:
                continue
            rounding = self._rounding(use)
            shift = shift_of(
                self.graph,
                self.nodes,
                use,
                self.sources[use.weight],
                rounding,
                self.exact,
                self.probed,
                self._blank,
            )
            one.energies[use] = rounding.energy
            one.moved[use] = sum(float(np.square(part, dtype=np.float64).sum()) for part in shift)
            key = (use.layer, 0)
            found[key] = shift if key not in found else [a + b for a, b in zip(found[key], shift, strict=True)]
        return found

    def _blank(self, shape: tuple[int, ...]) -> Float32:
        """Zeros for a window's part of a shift: a file where all windows' are a large part of the pool's memory."""
        if 4 * prod(shape) * self.probed <= self.pool.limit // _LARGE_SHARE:
            return np.zeros(shape, np.float32)
        return np.memmap(self.pool.new_file(), np.float32, "w+", shape=shape)

    def _rounding(self, use: LayerUse) -> Rounding:
        seen = None
        if use.tap is not None:
            key, reduction, _, batch = use.tap
            rows = (rows_by_expert(self.exact.get(key, window), reduction, batch) for window in range(self.windows))
            seen = _gram(rows) if self.grams else _energy(rows)
        return self.rounder(use.weight.name, seen)

    def _advance(self, one: _Seen, compiled: CompiledPiece, shifts: dict[TensorKey, list[Array]], cut: _Cut) -> None:
        for window, outputs in compiled.run(one.store, self.probed, shifts):
            for key, array in outputs.items():
                if key == one.probe.border:
                    one.at_border += _relative(self.exact.get(key, window), array)
                if key in cut.ends:
                    one.at_outputs.add(cut.ends[key], self.exact.get(key, window), array)
                if key in cut.crossing:
                    one.store.put(key, window, array)
            self.tick(1)


@dataclass(frozen=True)
class _Cut:
    """The tensors that are made in one piece of the model, and what each is wanted for."""

    crossing: frozenset[TensorKey]
    """Read after the piece."""
    inputs: frozenset[TensorKey]
    """Layers of the piece read them."""
    borders: frozenset[TensorKey]
    """A block ends with them."""
    ends: dict[TensorKey, int]
    """Outputs of the model, and their position among those that are scored."""
    given: frozenset[str]
    """Weights that the piece needs whose values come from elsewhere."""

    @staticmethod
    def of(
        graph: ActivationGraph, begin: int, end: int, uses: Sequence[LayerUse], borders: Collection[TensorKey]
    ) -> _Cut:
        """Of the piece from one place to another, with these layers."""
        within = set(graph.order[begin:end])
        return _Cut(
            frozenset(graph.outputs_of(begin, end)),
            frozenset(key for use in uses for key in graph.sources[use.layer] if key[0] in within),
            frozenset(key for key in borders if key[0] in within),
            {key: which for which, key in enumerate(graph.outputs) if key[0] in within},
            frozenset(name for place in range(begin, end) for name in graph.given_at.get(place, ())),
        )

    @property
    def wanted(self) -> set[TensorKey]:
        """Everything that the piece has to give."""
        return {*self.crossing, *self.borders, *self.ends, *self.inputs}


def _drop(store: Store, graph: ActivationGraph, end: int) -> None:
    """Forget what nothing from a place on reads."""
    for key in list(store.entries):
        if graph.last_use.get(key, -1) < end:
            store.drop(key)


def _energy(windows: Iterator[Float32]) -> Float32:
    """E[x²], [in] or [experts, in]."""
    total, count = None, 0
    for x in windows:
        rows = x.reshape(len(x), -1, x.shape[-1])
        bad = unfit(rows)
        rows = rows if bad is None else rows[:, ~bad.any(axis=0)]
        squares = np.einsum("erc,erc->ec", rows, rows).astype(np.float64)
        total = squares if total is None else total + squares
        count += rows.shape[1]
    assert total is not None
    mean = (total / max(count, 1)).astype(np.float32)
    return np.asarray(mean[0] if len(mean) == 1 else mean)


def _gram(windows: Iterator[Float32]) -> Float32:
    """Σ x xᵀ, [in, in] or [experts, in, in]."""
    total: Float32 | None = None
    for x in windows:
        rows = x.reshape(len(x), -1, x.shape[-1])
        bad = unfit(rows)
        rows = rows if bad is None else rows[:, ~bad.any(axis=0)]
        if total is None:
            total = np.zeros((len(rows), rows.shape[2], rows.shape[2]), np.float32)
        for expert in range(len(rows)):
            add_gram(total[expert], rows[expert])
    assert total is not None
    for one in total:
        mirror(one)
    return np.asarray(total[0] if len(total) == 1 else total)


def _relative(base: Array, changed: Array) -> list[float]:
    """|b − a|² / |a|² of each row: of each vector along the last axis, or of each feature map."""
    width = base.shape[-1] if base.ndim <= 3 else int(np.prod(base.shape[1:]))
    a, b = (one.reshape(-1, width).astype(np.float64) for one in (base, changed))
    size, moved = np.square(a).sum(axis=1), np.square(b - a).sum(axis=1)
    good = np.isfinite(size) & np.isfinite(moved) & (size > 0)
    return list(moved[good] / size[good])


def influences_of(shown: Iterable[ProbeShown]) -> dict[str, tuple[Influence, ...]]:
    """What the probes have shown together, by the weight's name, in the order of their names."""
    every = [one for one in shown if any(moved for _, moved, _ in one.uses)]
    constant = _constant(every)
    found: dict[str, list[Influence]] = {}
    for one in every:
        loss = one.at_outputs if one.to_the_end else constant * one.at_border
        whole = sum(moved for _, moved, _ in one.uses)
        for name, moved, energy in one.uses:
            if moved > 0:
                found.setdefault(name, []).append(Influence(loss * moved / whole, energy))
    return {name: tuple(found[name]) for name in sorted(found)}


def _constant(every: Sequence[ProbeShown]) -> float:
    """What the outputs feel of an error at a block's border, for each unit of it: the median of what is known."""
    known = [one for one in every if one.to_the_end and one.at_border > 0]
    found = [one.at_outputs / one.at_border for one in [one for one in known if one.gauges] or known]
    return float(np.median(found)) if found else 1.0
