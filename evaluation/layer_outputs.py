"""Measuring the outputs of layers inside two models, a few layers at a time.

For each compressed layer the base model, cloned, is given two more outputs:

    y       the layer's own output
    y own   the output of the layer taken out of a clone of the compressed model, with its codes, scales and all, fed by
            what feeds the base model's layer

and the compressed model, cloned, one: the layer's output there. Layers are taken in graph order, as many at a time as
their outputs fit into a budget; every such chunk compiles both models once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.evaluation.layers import ChannelFactors, LayerFigures, PairedLayer
from ov_weight_compression.evaluation.models import Pair, Runner
from ov_weight_compression.evaluation.outputs import SignalNoise
from ov_weight_compression.evaluation.samples import Inputs
from ov_weight_compression.ir_utils.constant_values import depends_on_constants
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.patterns import Role

__all__ = ["measure_outputs"]

_BUDGET = 128 << 20
_UNKNOWN_WIDTH = 4096


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


def measure_outputs(
    pair: Pair,
    layers: Sequence[PairedLayer],
    figures: list[LayerFigures],
    samples: Sequence[Inputs],
    progress: Callable[[str, int, int | None], None],
) -> list[LayerFigures]:
    """The same figures with `output_snr_db` and `own_snr_db`.

    Args:
        pair: the models, of which neither is changed, and what both are compiled with.
        layers: all compressed weights, `figures` theirs.
        samples: sets of inputs to run, as few as will do.
        progress: called after each chunk of layers.
    """
    found = list(figures)
    open_layers = [place for place, layer in enumerate(layers) if _can_tap(layer)]
    for place, layer in enumerate(layers):
        if layer.weight.body and not found[place].note:
            found[place] = replace(found[place], note=f"inside '{layer.weight.body}': its output is not measured")
    done = 0
    for chunk in _chunks(open_layers, layers, samples):
        taps = [_Tap(place, layers[place].weight.consumers[0].name) for place in chunk]
        _run(pair, layers, taps, samples)
        for tap in taps:
            found[tap.place] = tap.figures(found[tap.place])
        done += len(chunk)
        progress("layers", done, len(open_layers))
    return found


def _can_tap(pair: PairedLayer) -> bool:
    return pair.base is not None and pair.base_port >= 0 and not pair.weight.body


def _chunks(places: list[int], pairs: Sequence[PairedLayer], samples: Sequence[Inputs]) -> Iterator[list[int]]:
    """Layers whose outputs, three of each, fit into the budget together."""
    rows = max((max((value.size for value in sample.values()), default=1) for sample in samples), default=1)
    chunk: list[int] = []
    size = 0
    for place in places:
        own = 12 * _output_elements(pairs[place], rows)
        if chunk and size + own > _BUDGET:
            yield chunk
            chunk, size = [], 0
        chunk.append(place)
        size += own
    if chunk:
        yield chunk


def _output_elements(pair: PairedLayer, rows: int) -> int:
    """About how many elements a layer puts out: rows of its last axis."""
    shape = pair.weight.consumers[0].node.get_output_partial_shape(0)
    width = _UNKNOWN_WIDTH
    if shape.rank.is_static and shape.rank.get_length() and shape[shape.rank.get_length() - 1].is_static:
        width = shape[shape.rank.get_length() - 1].get_length()
    experts = pair.weight.shape[0] if len(pair.weight.shape) == 3 else 1
    return int(rows * width * experts)


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
