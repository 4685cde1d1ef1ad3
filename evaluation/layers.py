"""Where the loss comes from: every compressed weight beside the weight it was made from.

    weight SNR    10 log10(sum w² / sum (w - ŵ)²) dB, w the base model's weight and ŵ what the compressed chain comes
                  to, both in f32 at the layer's input. 6 dB are one bit.
    output SNR    the same of the layer's output y in both models on the same data: the error of everything before the
                  layer is in it, so it shows how the loss builds up.
    own SNR       the same of the compressed layer's output when it is given the base model's input: what this layer
                  alone does to what passes through it, with real activations instead of weights counted equal.

Layers are paired by their friendly names, which compression leaves as they are; where a name is not found, weights are
paired by the constant's name. One weight is read at a time, in pieces.

Weights whose channels were scaled before they were rounded, as AWQ does, are compared in the base model's units. Where
factors are folded into norms and other weights, a layer's weight is no longer near the base model's, though the model
computes the same. Up to a factor for each row and each column it is near, and these factors are found by least squares,
rows and columns in turn:

    c_j = Σ_i w_ij (r_i ŵ_ij) / Σ_i (r_i ŵ_ij)²        r_i = Σ_j w_ij (ŵ_ij c_j) / Σ_j (ŵ_ij c_j)²

Rounding alone makes hardly any of it better that way, so a weight counts as scaled only where it gains decibels.

Outputs are measured a few layers at a time. For each of them the base model, cloned, is given two more outputs:

    y       the layer's own output
    y own   the output of the layer taken out of a clone of the compressed model, with its codes, scales and all, fed by
            what feeds the base model's layer

and the compressed model, cloned, one: the layer's output there. Layers are taken in graph order, as many at a time as
their outputs fit into a budget; every such chunk compiles both models once more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.evaluation.inspection import mode_of
from ov_weight_compression.evaluation.models import OnProgress, Pair, Runner
from ov_weight_compression.evaluation.outputs import SignalNoise
from ov_weight_compression.evaluation.samples import CompareRequest
from ov_weight_compression.ir_utils.constant_values import depends_on_constants
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.ir_utils.weight_source import WeightSource, source_at
from ov_weight_compression.patterns import CompressedWeight, Role, Roles, find_compressed
from ov_weight_compression.patterns.graphs import graphs_of

if TYPE_CHECKING:
    from ov_weight_compression.evaluation.samples import Inputs

_GAIN_DB = 2.0
"""What factors must gain at least: rounding to any format, two bits included, leaves them less to find."""
_ROUNDS = 4
_BUDGET = 128 << 20
"""Bytes of outputs that are kept at a time."""
_UNKNOWN_WIDTH = 4096
"""Elements that a layer without a known last axis puts out for a row."""
_PIECE = 1 << 21
"""Elements of a weight that are read at a time."""
_SAMPLE = 512
"""Rows that show whether a weight is scaled."""


@dataclass(frozen=True, eq=False)
class ChannelFactors:
    """What the compressed weight `[rows, columns]` is multiplied with to be in the base model's units.

    Only their product is known: what a common factor of all columns gives, one of all rows takes.
    """

    rows: Float32
    """[rows, 1]"""
    columns: Float32
    """[1, columns]"""

    def apply(self, values: Float32, start: int) -> Float32:
        """Rows of the compressed weight, from row `start` on, in the base model's units."""
        return values * self.columns * self.rows[start : start + len(values)]


def factors_between(base: WeightSource, compressed: WeightSource) -> ChannelFactors | None:
    """The factors between two weights of one shape; None where they are not scaled or not 2-D."""
    shape = base.layout.shape
    if len(shape) != 2 or min(shape) < 2:
        return None
    if not _gains(*(next(source.pieces())[1][:_SAMPLE] for source in (base, compressed))):
        return None
    columns = np.ones((1, shape[1]))
    rows = np.ones((shape[0], 1))
    for _ in range(_ROUNDS):
        above, below = np.zeros(shape[1]), np.zeros(shape[1])
        for (slab, left), (_, right) in zip(base.pieces(_PIECE), compressed.pieces(_PIECE), strict=True):
            w, q = left.astype(np.float64), right.astype(np.float64)
            span = slice(slab.start, slab.stop)
            rows[span] = _fit((w * (q * columns)).sum(1), np.square(q * columns).sum(1))[:, None]
            q *= rows[span]
            above, below = above + (w * q).sum(0), below + (q * q).sum(0)
        columns = _fit(above, below)[None]
    return ChannelFactors(rows.astype(np.float32), columns.astype(np.float32))


def _gains(w: Float32, q: Float32) -> bool:
    """Whether factors bring these rows together."""
    plain, scaled = SignalNoise(), SignalNoise()
    plain.add(w, q)
    columns = np.ones((1, w.shape[1]), np.float32)
    for _ in range(2):
        rows = _fit((w * (q * columns)).sum(1), np.square(q * columns).sum(1))[:, None]
        columns = _fit((w * (q * rows)).sum(0), np.square(q * rows).sum(0))[None]
    scaled.add(w, q * rows * columns)
    return scaled.snr_db > plain.snr_db + _GAIN_DB


def _fit(above: Any, below: Any) -> Any:
    """`above / below`, 1 where there is nothing."""
    usable = (below > 0) & (above > 0)
    return np.where(usable, above / np.where(usable, below, 1), 1)


_SCALED = "channels scaled (AWQ), compared as if they were not"


@dataclass(frozen=True, eq=False)
class PairedLayer:
    """A compressed weight and the layer that reads its original."""

    weight: CompressedWeight
    base: ov.Node | None
    """The same layer in the base model; None where it is not found."""
    base_port: int
    note: str = ""
    """Why something cannot be measured."""
    factors: ChannelFactors | None = None
    """Of a weight whose channels were scaled."""


@dataclass(frozen=True)
class LayerFigures:
    """One compressed weight."""

    name: str
    """Friendly name of the constant that holds its codes."""
    layer: str
    """Friendly name of the first layer that reads it."""
    kind: str
    mode: str
    """Name of the format, as the options of compression call it."""
    group_size: int
    """-1: one scale per channel."""
    shape: tuple[int, ...]
    elements: int
    bytes: int
    """As stored: codes, scales, zero points, table."""
    weight_snr_db: float | None
    output_snr_db: float | None = None
    own_snr_db: float | None = None
    note: str = ""


@dataclass(frozen=True)
class FormatFigures:
    """All constants that are stored alike."""

    mode: str
    group_size: int | None
    """None for what is not compressed."""
    weights: int
    elements: int
    bytes: int
    bits_per_weight: float
    weight_snr_db: float | None
    """Of all their weights together."""
    weight_snr_db_min: float | None


def compare_layers(
    pair: Pair, samples: Sequence[Inputs], request: CompareRequest, progress: OnProgress
) -> tuple[tuple[LayerFigures, ...], tuple[FormatFigures, ...]]:
    """Every compressed weight, and all constants by format; the layers' outputs on `samples`, where there are any."""
    pairs = pair_layers(pair.base.model, pair.compressed.model, request.roles)
    figures, energies = [], []
    for number, one in enumerate(pairs):
        progress("weights", number, len(pairs))
        pairs[number], found, energy = weigh(one, request.layers)
        figures.append(found)
        energies.append(energy)
    progress("weights", len(pairs), len(pairs))
    formats = formats_of(pair.compressed.model, figures, energies, [one.weight for one in pairs])
    if samples:
        figures = _measure_outputs(pair, pairs, figures, samples, progress)
    return tuple(figures), formats


def pair_layers(base: ov.Model, compressed: ov.Model, roles: Roles | None = None) -> list[PairedLayer]:
    """Every compressed weight, in graph order, with its original; `roles` as `find_compressed` takes them."""
    nodes: dict[tuple[str, str], ov.Node] = {}
    constants: dict[str, ov.Node] = {one.name: one.end for one in find_compressed(base, roles)}
    for graph in graphs_of(base):
        for node, kind in zip(graph.operations, graph.types, strict=True):
            nodes.setdefault((graph.path, node.get_friendly_name()), node)
            if kind == "Constant":
                constants.setdefault(node.get_friendly_name(), node)
    return [_pair(weight, nodes, constants) for weight in find_compressed(compressed, roles)]


def _pair(
    weight: CompressedWeight, nodes: dict[tuple[str, str], ov.Node], constants: dict[str, ov.Node]
) -> PairedLayer:
    consumer = weight.consumers[0]
    node = nodes.get((weight.body, consumer.name))
    if node is not None and node.get_type_name() == consumer.node.get_type_name():
        value = node.input_value(consumer.port)
        if not depends_on_constants(value.get_node()):
            return PairedLayer(weight, None, 0, "in the base model its weight is not a constant")
        theirs = consumer.node.input_value(consumer.port)
        if value.get_partial_shape() == theirs.get_partial_shape():
            return PairedLayer(weight, node, consumer.port)
    for name in (weight.name, weight.name.removesuffix("_compressed")):
        constant = constants.get(name)
        if constant is not None and tuple(constant.get_output_shape(0)) == weight.shape:
            return PairedLayer(weight, constant, -1, "paired by the constant's name: its layer is called otherwise")
    return PairedLayer(weight, None, 0, "not found in the base model")


def weigh(pair: PairedLayer, measured: bool = True) -> tuple[PairedLayer, LayerFigures, SignalNoise | None]:
    """A pair, now with the factors of channels that were scaled, its figures without any data, and its energies, to be
    summed by format; with `measured=False` only what the weight is stored as."""
    weight, energy = pair.weight, None
    if measured and pair.base is not None:
        ends = pair.base, weight.last
        if pair.base_port >= 0:  # as their layers read them
            consumer, value = weight.consumers[0], pair.base.input_value(pair.base_port)
            ends = value.get_node(), consumer.node.input_value(consumer.port).get_node()
        base, compressed = map(source_at, ends)
        factors, energy = factors_between(base, compressed), SignalNoise()
        if factors is not None:
            pair = replace(pair, factors=factors, note=pair.note or _SCALED)
        for (slab, left), (_, right) in zip(base.pieces(_PIECE), compressed.pieces(_PIECE), strict=True):
            energy.add(left, right if factors is None else factors.apply(right, slab.start))
    figures = LayerFigures(
        name=weight.name,
        layer=weight.consumers[0].name,
        kind=weight.kind.value,
        mode=mode_of(weight),
        group_size=weight.group_size,
        shape=weight.shape,
        elements=weight.elements,
        bytes=weight.bytes,
        weight_snr_db=energy.known_db if energy else None,
        note=pair.note,
    )
    return pair, figures, energy


def formats_of(
    model: ov.Model, layers: list[LayerFigures], energies: list[SignalNoise | None], weights: list[CompressedWeight]
) -> tuple[FormatFigures, ...]:
    """Constants summed by format, the most elements first; those that are not compressed by element type."""
    rows = []
    for mode, group in sorted({(layer.mode, layer.group_size) for layer in layers}):
        chosen = [place for place, layer in enumerate(layers) if (layer.mode, layer.group_size) == (mode, group)]
        total = SignalNoise()
        for energy in (energies[place] for place in chosen):
            if energy is not None:
                total.signal, total.noise = total.signal + energy.signal, total.noise + energy.noise
        known = [snr for snr in (layers[place].weight_snr_db for place in chosen) if snr is not None]
        elements, size = (sum(getattr(layers[place], field) for place in chosen) for field in ("elements", "bytes"))
        bits, worst = 8 * size / elements, min(known, default=None)
        rows.append(FormatFigures(mode, group, len(chosen), elements, size, bits, total.known_db, worst))
    stored = {part for weight in weights for part in weight.constants}
    plain: dict[str, list[int]] = {}
    for graph in graphs_of(model):
        for node, kind in graph.constants:
            if node not in stored and kind in ("f16", "bf16", "f32", "f64"):
                count = math.prod(node.get_output_shape(0))
                row = plain.setdefault(kind, [0, 0, 0])
                row[0], row[1], row[2] = row[0] + 1, row[1] + count, row[2] + int(node.get_byte_size())
    for kind, (count, elements, size) in plain.items():
        rows.append(FormatFigures(kind, None, count, elements, size, 8 * size / max(elements, 1), None, None))
    return tuple(sorted(rows, key=lambda row: -row.elements))


@dataclass
class _Tap:
    """What is measured of one layer."""

    place: int
    name: str
    output: SignalNoise = field(default_factory=SignalNoise)
    own: SignalNoise = field(default_factory=SignalNoise)
    across: float = 0.0
    """Base times compressed output, and the latter's square, where the layer is scaled."""
    square: float = 0.0
    comparable: bool = True
    """False once the layer has put out other shapes in the two models, as an expert does that got other tokens."""

    def figures(self, known: LayerFigures) -> LayerFigures:
        """The layer's figures with what was measured; nothing where nothing passed through it."""
        note = known.note if self.comparable else "the two models gave it different rows: its output is not compared"
        if self.square > 0:  # the common factor that the weights do not tell: the one that fits best
            self.output.noise = max(self.output.signal - self.across**2 / self.square, 0.0)
        output = self.output.known_db if self.comparable else None
        return replace(known, output_snr_db=output, own_snr_db=self.own.known_db, note=note)


def _measure_outputs(
    pair: Pair,
    layers: Sequence[PairedLayer],
    figures: list[LayerFigures],
    samples: Sequence[Inputs],
    progress: OnProgress,
) -> list[LayerFigures]:
    """The same figures with `output_snr_db` and `own_snr_db`.

    Args:
        pair: the models, of which neither is changed, and what both are compiled with.
        layers: all compressed weights, `figures` theirs.
        samples: sets of inputs to run, as few as will do.
        progress: called after each chunk of layers.
    """
    found, open_layers, done = list(figures), [], 0
    for place, layer in enumerate(layers):
        if layer.base is not None and layer.base_port >= 0 and not layer.weight.body:
            open_layers.append(place)
        if layer.weight.body and not found[place].note:
            found[place] = replace(found[place], note=f"inside '{layer.weight.body}': its output is not measured")
    for chunk in _chunks(open_layers, layers, samples):
        taps = [_Tap(place, layers[place].weight.consumers[0].name) for place in chunk]
        _run(pair, layers, taps, samples)
        for tap in taps:
            found[tap.place] = tap.figures(found[tap.place])
        done += len(chunk)
        progress("layers", done, len(open_layers))
    return found


def _chunks(places: list[int], pairs: Sequence[PairedLayer], samples: Sequence[Inputs]) -> Iterator[list[int]]:
    """Layers whose outputs, three of each, fit into the budget together; about, for a layer puts out rows of its last
    axis."""
    rows = max((max((value.size for value in sample.values()), default=1) for sample in samples), default=1)
    chunk: list[int] = []
    size = 0
    for place in places:
        weight = pairs[place].weight
        shape = weight.consumers[0].node.get_output_partial_shape(0)
        last = shape[shape.rank.get_length() - 1] if shape.rank.is_static and shape.rank.get_length() else None
        width = last.get_length() if last is not None and last.is_static else _UNKNOWN_WIDTH
        experts = weight.shape[0] if len(weight.shape) == 3 else 1
        own = 12 * rows * width * experts
        if chunk and size + own > _BUDGET:
            yield chunk
            chunk, size = [], 0
        chunk.append(place)
        size += own
    if chunk:
        yield chunk


def _run(pair: Pair, layers: Sequence[PairedLayer], taps: list[_Tap], samples: Sequence[Inputs]) -> None:
    ours, theirs, donor = pair.base.model.clone(), pair.compressed.model.clone(), pair.compressed.model.clone()
    own_nodes, their_nodes, donors = _by_name(ours), _by_name(theirs), _by_name(donor)
    plain, grafted = len(ours.outputs), []
    for tap in taps:
        consumer = layers[tap.place].weight.consumers[0]
        port = consumer.port
        ours.add_results([ops.result(own_nodes[tap.name])])  # add_outputs would skip what is an output already
        factors = layers[tap.place].factors
        theirs.add_results([ops.result(_unscaled(their_nodes[tap.name], consumer.role, factors))])
        grafted.append(_graft(donors[tap.name], own_nodes[tap.name], port, factors))
    ours.add_results([ops.result(node) for node in grafted])
    first = Runner(pair.base, pair.arithmetic, ours)
    second = Runner(pair.compressed, pair.arithmetic, theirs)
    start = len(theirs.outputs) - len(taps)
    for sample in samples:
        here, there = first.run(first.inputs.complete(sample)), second.run(second.inputs.complete(sample))
        for number, tap in enumerate(taps):
            y = here[plain + number]
            tap.comparable &= y.shape == there[start + number].shape
            if tap.comparable:
                tap.output.add(y, there[start + number])
                if layers[tap.place].factors is not None:
                    found = there[start + number].astype(np.float64)
                    tap.across += float(np.vdot(y, found))
                    tap.square += float(np.vdot(found, found))
            tap.own.add(y, here[plain + len(taps) + number])


def _by_name(model: ov.Model) -> dict[str, Any]:
    """Operations by friendly name, the first of equal ones, as `pair_layers` takes it."""
    nodes: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        nodes.setdefault(node.get_friendly_name(), node)
    return nodes


def _unscaled(layer: Any, role: Role | None, factors: ChannelFactors | None) -> Any:
    """The layer's output in the base model's units: whose rows or columns are output channels is scaled with them."""
    if factors is None or role is None or role.activation is None:
        return layer
    channels = factors.rows if role.channel == (0,) else factors.columns
    (output,) = role.activation.output
    return _times(layer.output(0), channels.reshape(-1, *[1] * (-output - 1)))


def _graft(layer: Any, original: Any, port: int, factors: ChannelFactors | None) -> Any:
    """Let a layer of another model read what the original reads, all but the weight."""
    if factors is not None:
        weight = _times(layer.input_value(port), factors.rows * factors.columns)
        layer.input(port).replace_source_output(weight.output(0))
    for place in range(layer.get_input_size()):
        value = original.input_value(place)
        if place != port and not depends_on_constants(value.get_node()):
            layer.input(place).replace_source_output(value)
    return layer


def _times(value: Any, factors: Float32) -> Any:
    return ops.multiply(value, ops.convert(ops.constant(factors), value.get_element_type().get_type_name()))
