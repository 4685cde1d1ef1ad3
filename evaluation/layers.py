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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.evaluation.models import OnProgress, Pair, Runner
from ov_weight_compression.ir_utils.constant_values import ConstantValues, depends_on_constants
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.patterns import CompressedWeight, Roles, find_compressed
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed
from ov_weight_compression.quantization.formats import FORMATS

if TYPE_CHECKING:
    from ov_weight_compression.evaluation.samples import CompareRequest, Inputs

_GAIN = 10**0.2
"""What factors must take of the noise, 2 dB: rounding to any format, two bits included, leaves them less to find."""
_ROUNDS = 4
_BUDGET = 128 << 20
"""Bytes of outputs that are kept at a time."""
_UNKNOWN_WIDTH = 4096
"""Elements that a layer without a known last axis puts out for a row."""
_PIECE = 1 << 21
"""Elements of a weight that are read at a time."""
_SAMPLE, _SAMPLE_ELEMENTS = 512, 1 << 18
"""Rows that show whether a weight is scaled, and the most that are read for that."""
_TOGETHER = 8
"""Rows are read in multiples of so many: no packed code is cut in the middle."""


@dataclass
class SignalNoise:
    """Running sums of squares of a signal and of its error."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, base: Array, compressed: Array) -> None:
        """Add some values of the base and the same values of the compressed model."""
        step = 1 << 20
        a, b = base.reshape(-1), compressed.reshape(-1)
        for start in range(0, a.size, step):
            x = a[start : start + step].astype(np.float64)
            difference = x - b[start : start + step]
            self.signal += float(x @ x)
            self.noise += float(difference @ difference)

    @property
    def snr_db(self) -> float | None:
        """10 log10(signal / noise); infinite without noise, None where there was nothing but zeros."""
        if self.signal > 0 and self.noise != 0:
            return 10 * math.log10(self.signal / self.noise)
        return math.inf if self.signal > 0 else None if self.noise == 0 else -math.inf


@dataclass(frozen=True, eq=False)
class ChannelFactors:
    """What the compressed weight `[rows, columns]` is multiplied with to be in the base model's units.

    Only their product is known: what a common factor of all columns gives, one of all rows takes.
    """

    rows: Float32
    """[rows, 1]"""
    columns: Float32
    """[1, columns]"""


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


@dataclass(eq=False)
class PairedLayer:
    """A compressed weight beside its original, and what has been measured of it and of the layer that reads it."""

    weight: CompressedWeight
    original: ov.Node | None = None
    """What comes to the same weight in the base model, as far as it is found."""
    read_alike: bool = False
    """Whether `original` is what the layer of the same name reads there: outputs can be compared too."""
    note: str = ""
    """Why something is not measured, or is measured otherwise."""
    factors: ChannelFactors | None = None
    """Of a weight whose channels were scaled."""
    energy: SignalNoise = field(default_factory=SignalNoise)
    """Of the weight."""
    output: SignalNoise = field(default_factory=SignalNoise)
    own: SignalNoise = field(default_factory=SignalNoise)
    across: float = 0.0
    """Base times compressed output, and the latter's square, where the layer is scaled."""
    square: float = 0.0
    comparable: bool = True
    """False once the layer has put out other shapes in the two models, as an expert does that got other tokens."""

    def figures(self) -> LayerFigures:
        """What was measured; None for what was not, or where nothing passed through the layer."""
        weight = self.weight
        return LayerFigures(
            name=weight.name,
            layer=weight.consumers[0].name,
            kind=weight.kind.value,
            mode=mode_of(weight),
            group_size=weight.group_size,
            shape=weight.shape,
            elements=weight.elements,
            bytes=weight.bytes,
            weight_snr_db=self.energy.snr_db,
            output_snr_db=self.output.snr_db if self.comparable else None,
            own_snr_db=self.own.snr_db,
            note=self.note if self.comparable else "the two models gave it different rows: its output is not compared",
        )


def compare_layers(
    pair: Pair, samples: Sequence[Inputs], request: CompareRequest, progress: OnProgress
) -> tuple[tuple[LayerFigures, ...], tuple[FormatFigures, ...]]:
    """Every compressed weight, and all constants by format; the layers' outputs on `samples`, where there are any."""
    layers = pair_layers(pair.base.model, pair.compressed.model, request.roles)
    for number, layer in enumerate(layers):
        progress("weights", number, len(layers))
        if request.layers:
            weigh(layer)
    progress("weights", len(layers), len(layers))
    if samples:
        for layer in layers:
            if layer.weight.body and not layer.note:
                layer.note = f"inside '{layer.weight.body}': its output is not measured"
        measured, done = [layer for layer in layers if layer.read_alike and not layer.weight.body], 0
        for chunk in _chunks(measured, samples):
            _run(pair, chunk, samples)
            for layer in chunk:
                if layer.square > 0:  # the common factor that the weights do not tell: the one that fits best
                    layer.output.noise = max(layer.output.signal - layer.across**2 / layer.square, 0.0)
            done += len(chunk)
            progress("layers", done, len(measured))
    return tuple(layer.figures() for layer in layers), formats_of(pair.compressed.model, layers)


def pair_layers(base: ov.Model, compressed: ov.Model, roles: Roles | None = None) -> list[PairedLayer]:
    """Every compressed weight, in graph order, with its original; `roles` as `find_compressed` takes them."""
    nodes: dict[tuple[str, str], ov.Node] = {}
    constants: dict[str, ov.Node] = {one.name: one.end for one in find_compressed(base, roles)}
    for graph in graphs_of(base):
        for node, kind in zip(graph.operations, graph.types, strict=True):
            nodes.setdefault((graph.path, node.get_friendly_name()), node)
            if kind == "Constant":
                constants.setdefault(node.get_friendly_name(), node)
    layers = []
    for weight in find_compressed(compressed, roles):
        layers.append(layer := PairedLayer(weight))
        consumer = weight.consumers[0]
        node = nodes.get((weight.body, consumer.name))
        if node is not None and node.get_type_name() == consumer.node.get_type_name():
            value, theirs = (one.input_value(consumer.port) for one in (node, consumer.node))
            if not depends_on_constants(value.get_node()):
                layer.note = "in the base model its weight is not a constant"
                continue
            if value.get_partial_shape() == theirs.get_partial_shape():
                layer.original, layer.read_alike = value.get_node(), True
                continue
        names = (weight.name, weight.name.removesuffix("_compressed"))
        called = (constants[name] for name in names if name in constants)
        layer.original = next((one for one in called if tuple(one.get_output_shape(0)) == weight.shape), None)
        if layer.original is None:
            layer.note = "not found in the base model"
        else:
            layer.note = "paired by the constant's name: its layer is called otherwise"
    return layers


def weigh(layer: PairedLayer) -> None:
    """Measure a weight's error, and find the factors of channels that were scaled."""
    if layer.original is None:
        return
    consumer, last = layer.weight.consumers[0], layer.weight.last
    if layer.read_alike:  # as their layers read them
        last = consumer.node.input_value(consumer.port).get_node()
    lead = max(1, len(layer.original.shape) - 1)
    base, compressed = (ConstantValues(node.output(0), lead) for node in (layer.original, last))
    shape = base.shape
    if len(shape) == 2 and min(shape) > 1:
        _, w, q = sample = next(_side_by_side(base, compressed, min(_SAMPLE_ELEMENTS, _SAMPLE * shape[1])))
        found = _fitted(lambda: [sample], (len(w), shape[1]), 2)
        plain, scaled = SignalNoise(), SignalNoise()
        plain.add(w, q)
        scaled.add(w, q * found.rows * found.columns)
        if plain.noise > _GAIN * scaled.noise:
            layer.factors = _fitted(lambda: _side_by_side(base, compressed), (shape[0], shape[1]), _ROUNDS)
            layer.note = layer.note or "channels scaled (AWQ), compared as if they were not"
    factors = layer.factors
    for rows, left, right in _side_by_side(base, compressed):
        layer.energy.add(left, right if factors is None else right * factors.columns * factors.rows[rows])


_Rows = tuple[slice, Float32, Float32]


def _side_by_side(base: ConstantValues, compressed: ConstantValues, elements: int = _PIECE) -> Iterator[_Rows]:
    """The same rows of two weights of one shape, some at a time."""
    rows, columns = math.prod(base.shape[:-1]), base.shape[-1] if base.shape else 1
    step = max(_TOGETHER, elements // max(1, columns) // _TOGETHER * _TOGETHER)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield slice(start, stop), base.rows(start, stop), compressed.rows(start, stop)


def _fitted(pieces: Callable[[], Iterable[_Rows]], shape: tuple[int, int], rounds: int) -> ChannelFactors:
    """The factors by least squares, 1 where there is nothing; `pieces` gives the rows once more each round."""
    rows, columns = np.ones((shape[0], 1)), np.ones((1, shape[1]))
    for _ in range(rounds):
        above, below = np.zeros_like(columns), np.zeros_like(columns)
        for span, left, right in pieces():
            w, q = left.astype(np.float64), right.astype(np.float64)
            met, square = (w * (q * columns)).sum(1), np.square(q * columns).sum(1)
            rows[span, 0] = np.divide(met, square, out=np.ones_like(met), where=(met > 0) & (square > 0))
            q *= rows[span]
            above, below = above + (w * q).sum(0), below + (q * q).sum(0)
        columns = np.divide(above, below, out=np.ones_like(columns), where=(above > 0) & (below > 0))
    return ChannelFactors(rows.astype(np.float32), columns.astype(np.float32))


def formats_of(model: ov.Model, layers: Sequence[PairedLayer]) -> tuple[FormatFigures, ...]:
    """Constants summed by format, the most elements first; those that are not compressed by element type."""
    formats: dict[tuple[str, int], list[PairedLayer]] = {}
    for layer in layers:
        formats.setdefault((mode_of(layer.weight), layer.weight.group_size), []).append(layer)
    rows = []
    for (mode, group), members in sorted(formats.items(), key=lambda entry: entry[0]):
        total = SignalNoise(sum(one.energy.signal for one in members), sum(one.energy.noise for one in members))
        worst = min((one.energy.snr_db for one in members if one.energy.snr_db is not None), default=None)
        elements, size = (sum(getattr(one.weight, name) for one in members) for name in ("elements", "bytes"))
        rows.append(FormatFigures(mode, group, len(members), elements, size, 8 * size / elements, total.snr_db, worst))
    stored = {part for layer in layers for part in layer.weight.constants}
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


_SCALES = {"f8e8m0": "mx", "f8e4m3": "nv"}
"""Types of scales that make another format of the same codes."""


def mode_of(weight: CompressedWeight) -> str:
    """The name of a weight's format: that of the row in `FORMATS` that stores such a weight; one of its own kind where
    there is none (`fp8_e5m2`, `int6_asym`). Unsigned codes with a single zero point for all scales are symmetric."""
    storage = weight.storage
    if weight.table is not None:
        return "cb4" if _is_cb4(weight) else "codebook"
    if weight.zero_point is None:
        symmetric = storage.startswith("i")
    else:
        symmetric = storage[0] == "u" and _is_one_for_all(weight, weight.zero_point)
    scale = weight.scale_type if weight.scale_type in _SCALES else "f16"
    for row in FORMATS.values():
        if row.levels is None and storage[0] in "iu" and int(storage[1:]) == row.bits and symmetric != row.asymmetric:
            return row.name
        if row.levels is not None and row.codebook_type is None and (storage, scale) == (row.storage, row.scale):
            return row.name
    if storage[0] in "iu":
        return f"int{storage[1:]}_{'sym' if symmetric else 'asym'}"
    return _SCALES.get(scale, "") + storage.replace("f8", "fp8_").replace("f4e2m1", "fp4")


def zero_point_of(weight: CompressedWeight) -> str:
    """Type and number of the zero points, in words; empty where there are none."""
    zero = weight.zero_point
    if zero is None:
        return ""
    kind = zero.get_output_element_type(0).to_string()
    if _is_one_for_all(weight, zero):
        return f"{kind}, one"
    return str(kind)


def _is_one_for_all(weight: CompressedWeight, zero: ov.Node) -> bool:
    """Whether it is the one zero point of several scales, or a scalar; a weight of one channel has one of its own."""
    scales = 1 if weight.scale is None else math.prod(weight.scale.shape)
    return math.prod(zero.shape) == 1 < weight.elements and (len(zero.shape) == 0 or scales > 1)


def _is_cb4(weight: CompressedWeight) -> bool:
    table, levels = weight.table, np.array(FORMATS["cb4"].levels, dtype=np.float32)
    if table is None or weight.storage != "u4" or is_postponed(table) or math.prod(table.shape) != len(levels):
        return False
    return bool(np.array_equal(table.get_data(dtype=np.float32), levels))


def _chunks(layers: Sequence[PairedLayer], samples: Sequence[Inputs]) -> Iterator[list[PairedLayer]]:
    """Layers whose outputs, three of each, fit into the budget together; about, for a layer puts out rows of its last
    axis."""
    rows = max((max((value.size for value in sample.values()), default=1) for sample in samples), default=1)
    chunk: list[PairedLayer] = []
    size = 0
    for layer in layers:
        shape = layer.weight.consumers[0].node.get_output_partial_shape(0)
        last = shape[shape.rank.get_length() - 1] if shape.rank.is_static and shape.rank.get_length() else None
        width = last.get_length() if last is not None and last.is_static else _UNKNOWN_WIDTH
        experts = layer.weight.shape[0] if len(layer.weight.shape) == 3 else 1
        own = 12 * rows * width * experts
        if chunk and size + own > _BUDGET:
            yield chunk
            chunk, size = [], 0
        chunk.append(layer)
        size += own
    if chunk:
        yield chunk


def _run(pair: Pair, layers: Sequence[PairedLayer], samples: Sequence[Inputs]) -> None:
    """Run both models with the layers' outputs added, and sum up how these differ."""
    ours, theirs, donor = pair.base.model.clone(), pair.compressed.model.clone(), pair.compressed.model.clone()
    # Of operations of one name the first, as `pair_layers` takes it.
    own_nodes, their_nodes, donors = (
        {node.get_friendly_name(): node for node in reversed(model.get_ordered_ops())}
        for model in (ours, theirs, donor)
    )
    plain, start = len(ours.outputs), len(theirs.outputs)
    for layer in layers:  # add_outputs would skip what is an output already
        consumer, factors = layer.weight.consumers[0], layer.factors
        role, scaled = consumer.role, their_nodes[consumer.name].output(0)
        if factors is not None and role.activation is not None:
            # In the base model's units: whose rows or columns are output channels is scaled with them.
            channels = factors.rows if role.channel == (0,) else factors.columns
            (axis,) = role.activation.output
            scaled = _times(scaled, channels.reshape(-1, *[1] * (-axis - 1))).output(0)
        ours.add_results([ops.result(own_nodes[consumer.name])])
        theirs.add_results([ops.result(scaled)])
    for layer in layers:
        consumer = layer.weight.consumers[0]
        grafted, original = donors[consumer.name], own_nodes[consumer.name]
        if layer.factors is not None:
            weight = _times(grafted.input_value(consumer.port), layer.factors.rows * layer.factors.columns)
            grafted.input(consumer.port).replace_source_output(weight.output(0))
        for port in range(grafted.get_input_size()):  # it reads what the original reads, all but the weight
            value = original.input_value(port)
            if port != consumer.port and not depends_on_constants(value.get_node()):
                grafted.input(port).replace_source_output(value)
        ours.add_results([ops.result(grafted)])
    first = Runner(pair.base, pair.arithmetic, ours)
    second = Runner(pair.compressed, pair.arithmetic, theirs)
    for sample in samples:
        here, there = first.run(sample), second.run(sample)
        for number, layer in enumerate(layers):
            y, found = here[plain + number], there[start + number]
            layer.comparable &= y.shape == found.shape
            if layer.comparable:
                layer.output.add(y, found)
                if layer.factors is not None:
                    found = found.astype(np.float64)
                    layer.across += float(np.vdot(y, found))
                    layer.square += float(np.vdot(found, found))
            layer.own.add(y, here[plain + len(layers) + number])


def _times(value: Any, factors: Float32) -> Any:
    return ops.multiply(value, ops.convert(ops.constant(factors), value.get_element_type().get_type_name()))
