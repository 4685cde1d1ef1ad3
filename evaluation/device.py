"""What a device does with each compressed weight: executes it as it is stored, or expands it first.

A small model is compiled as a whole, so that everything that the device makes of it is seen; of a large one a layer of
each kind, cut to a few rows. The answer is read from the graph that the device executes, not from a table. What that
graph does not show is said to be unknown.

`compiled.get_runtime_model()` lists the device's own operations. Whatever depends on constants alone is computed once,
while the model is compiled; everything else is executed on every inference. So a weight is what passes from the first
part of the graph to the second:

    Const u4 ──────────────────────────────▸ FullyConnected     executed compressed, as u4
    Const u4 ─ Convert ─ Eltwise ─ Reshape ─▸ MatMul            expanded once, to what Reshape puts out
    Const f32 ─────────────────────────────▸ Gather             expanded before this graph was even made

An edge between the two parts that has as many elements as the weight is that weight. Layers are found by
`originalLayersNames`; operations that have no original (a layer that the device has split into several) belong to the
layer behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import openvino as ov

from ov_weight_compression.evaluation.models import Arithmetic, arithmetic_for, core
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.ir_file import openvino_reason
from ov_weight_compression.passes.device_rules import CHECKED, layer_of, misread
from ov_weight_compression.patterns import CompressedWeight, Consumer, Roles, find_compressed
from ov_weight_compression.patterns.device_layer import PATTERNS, cut_rows, layer_kind, single_layer
from ov_weight_compression.patterns.experts import tiled_block_of
from ov_weight_compression.patterns.graphs import graphs_of

_SOURCES = frozenset({"Input", "MemoryInput", "ReadValue", "Parameter"})


@dataclass(frozen=True)
class Edge:
    """A tensor that an executed operation reads from the constant part of the graph."""

    operation: str
    """The device's name for what reads it: FullyConnected, Gather, …"""
    type: str
    elements: int


class RuntimeGraph:
    """The executed graph of a compiled model.

    Args:
        compiled: an `ov.CompiledModel`. Raises what `get_runtime_model` does, where the device gives none.
        originals: the friendly names of the model's operations.
    """

    def __init__(self, compiled: Any, originals: Collection[str]) -> None:
        self._constant: dict[Any, bool] = {}
        self._of: dict[str, list[Any]] = {}
        self._anonymous: set[Any] = set()
        for node in compiled.get_runtime_model().get_ordered_ops():
            sources = [value.get_node() for value in node.input_values()]
            kind = _info(node, "layerType") or node.get_type_name()
            constant = all(self._constant[source] for source in sources) if sources else kind not in _SOURCES
            self._constant[node] = constant
            names = [name for name in _info(node, "originalLayersNames").split(",") if name in originals]
            for name in names:
                self._of.setdefault(name, []).append(node)
            if not names:
                self._anonymous.add(node)

    def edges(self, layer: str) -> Iterator[Edge]:
        """What the operations that a layer has become read from the constant part of the graph."""
        waiting = [node for node in self._of.get(layer, ()) if not self._constant[node]]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            for port in node.inputs():
                source = port.get_source_output().get_node()
                if self._constant[source]:
                    yield _edge(node, port)
                elif source in self._anonymous and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def weight_edge(self, layer: str, elements: int) -> Edge | None:
        """The edge through which a layer reads a weight of so many elements; None where there is not exactly one type
        of such edges."""
        found = [edge for edge in self.edges(layer) if edge.elements == elements]
        return found[0] if len({edge.type for edge in found}) == 1 else None


def _edge(node: Any, port: Any) -> Edge:
    shape = port.get_partial_shape()
    elements = prod(shape.to_shape()) if shape.is_static else -1
    return Edge(_info(node, "layerType") or node.get_type_name(), port.get_element_type().get_type_name(), elements)


def _info(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


WHOLE_ELEMENTS = 1 << 27
"""A model whose compressed weights have more elements is looked at layer by layer: half a GB, if all became f32."""

LAYER_ELEMENTS = 1 << 22
"""A layer that is compiled by itself is cut to about so many elements of its weight."""


@dataclass(frozen=True)
class Execution:
    """What one layer does with a weight."""

    layer: str
    """Friendly name of the operation in the model."""
    verdict: str
    """`compressed`, `expanded` or `unknown`; of a device that is not here `matched` or `unmatched`, by its patterns."""
    type: str = ""
    """The element type that the device's kernel reads."""
    operation: str = ""
    """The device's name of what reads it."""
    reason: str = ""
    """Why it is not known, or not matched."""
    misread: str = ""
    """Why its outputs are wrong: the device takes the codes for others, without an error."""

    def __str__(self) -> str:
        if self.misread:
            return f"runs from codes: {self.operation}, WRONG OUTPUTS: {self.misread}"
        if self.verdict in ("matched", "unmatched"):
            return "its patterns match" if self.verdict == "matched" else f"no pattern matches: {self.reason}"
        return {"compressed": f"runs from codes: {self.operation}", "expanded": f"expanded to {self.type}"}.get(
            self.verdict, self.verdict
        )


@dataclass(frozen=True)
class DeviceCheck:
    """How the device was asked."""

    device: str
    name: str
    """What the device calls itself."""
    openvino: str
    method: str
    """What was compiled, in words."""
    executions: tuple[tuple[Execution, ...], ...]
    """For each weight, in the order of `find_compressed`, what each layer that reads it does."""


def check_device(
    model: ov.Model,
    weights: Sequence[CompressedWeight],
    device: str,
    whole_elements: int = WHOLE_ELEMENTS,
    layer_elements: int = LAYER_ELEMENTS,
    roles: Roles | None = None,
) -> DeviceCheck:
    """Compile a model, or a layer of each kind, and say how each of its compressed weights is executed.

    A GPU or an NPU that is not here is not asked: what is said of it is whether the patterns by which its plugin takes
    weights in codes match.

    Args:
        model: any model; it is not changed.
        weights: its compressed weights, as `find_compressed` gives them.
        device: a name that OpenVINO knows: `CPU`, `GPU.1`, `NPU`, …
        whole_elements: compile the whole model if its compressed weights have at most so many elements.
        layer_elements: cut a weight whose layer is compiled by itself to about so many elements.
        roles: those that the weights were found with.

    Raises:
        OptionError: there is no such device; the message lists those there are.
        WorkError: the device cannot compile even a single layer.
    """
    kind = device.split(".")[0].upper()
    if kind in PATTERNS and kind not in {name.split(".")[0] for name in core().available_devices}:
        return _by_patterns(weights, kind)
    arithmetic = arithmetic_for(device, as_deployed=True)
    found: Found = {}
    methods = []
    if sum(weight.elements for weight in weights) <= whole_elements:
        methods.append(_whole(model, weights, arithmetic, found))
    uses = [[(number, use) for use in range(len(weight.consumers))] for number, weight in enumerate(weights)]
    left = [use for own in uses for use in own if use not in found]
    if left:
        copy = model.clone()  # held until the end: what lies behind a layer lives only as long as its model
        copies = find_compressed(copy, roles)
        kinds: dict[tuple[object, ...], list[tuple[int, int]]] = {}
        for number, use in left:
            kinds.setdefault(layer_kind(weights[number], weights[number].consumers[use]), []).append((number, use))
        for members in kinds.values():  # one of each is compiled, and the others are taken to be like it
            number, use = max(members, key=lambda one: (weights[one[0]].elements <= layer_elements, -one[0]))
            sample = _look(copies[number], use, arithmetic, layer_elements)
            for other, place in members:
                found[other, place] = replace(sample, layer=weights[other].consumers[place].name)
        methods.append(f"one layer of each kind was compiled ({len(kinds)} for {len(left)} layers)")
    return DeviceCheck(
        device=device,
        name=_name(device),
        openvino=ov.get_version(),
        method="; ".join(methods),
        executions=tuple(tuple(found[use] for use in own) for own in uses),
    )


def _by_patterns(weights: Sequence[CompressedWeight], device: str) -> DeviceCheck:
    def matched(weight: CompressedWeight, consumer: Consumer) -> Execution:
        reason = PATTERNS[device](weight, consumer)
        if reason is not None:
            return Execution(consumer.name, "unmatched", reason=reason)
        return Execution(consumer.name, "matched", weight.storage)

    return DeviceCheck(
        device=device,
        name="not here",
        openvino=ov.get_version(),
        method=f"by its patterns as in OpenVINO {CHECKED[-1]}, not run here",
        executions=tuple(tuple(matched(weight, use) for use in weight.consumers) for weight in weights),
    )


Found = dict[tuple[int, int], Execution]
"""By the numbers of a weight and of a layer that reads it."""


def _whole(model: ov.Model, weights: Sequence[CompressedWeight], arithmetic: Arithmetic, found: Found) -> str:
    """Compile the model and fill in what its graph shows; bodies of If and Loop are not in it."""
    originals = {node.get_friendly_name() for graph in graphs_of(model) for node in graph.operations}
    try:
        graph = RuntimeGraph(arithmetic.compile(model, "the model"), originals)
    except (WorkError, RuntimeError) as error:
        return f"the whole model was tried ({openvino_reason(error)})"
    for number, weight in enumerate(weights):
        for use, consumer in enumerate(weight.consumers):
            edge = _edge_of(graph, consumer, weight.elements) if not weight.body else None
            if edge is not None:
                found[number, use] = _execution(weight, consumer, edge, arithmetic.device)
    return "the whole model was compiled"


def _look(weight: CompressedWeight, use: int, arithmetic: Arithmetic, layer_elements: int) -> Execution:
    consumer = weight.consumers[use]
    if tiled_block_of(consumer.node) is None:  # of a block all layers would have to be cut alike
        cut_rows(weight, layer_elements)
    layer = single_layer(consumer)
    size = consumer.node.input_value(consumer.port).get_partial_shape()
    compiled = arithmetic.compile(layer, f"the layer {consumer.name}")
    try:
        graph = RuntimeGraph(compiled, {node.get_friendly_name() for node in layer.get_ops()})
    except RuntimeError as error:
        return Execution(consumer.name, "unknown", reason=f"no runtime graph: {openvino_reason(error)}")
    edge = _edge_of(graph, consumer, prod(size.to_shape()))
    if edge is None:
        return Execution(consumer.name, "unknown", reason="the device's runtime graph does not show its weight")
    return _execution(weight, consumer, edge, arithmetic.device)


def _edge_of(graph: RuntimeGraph, consumer: Consumer, elements: int) -> Edge | None:
    """The edge through which a layer reads its weight; a GatherMatmul has the name of the Add of its bias."""
    readers = [target.get_node() for target in consumer.node.output(0).get_target_inputs()]
    biases = [str(node.get_friendly_name()) for node in readers if node.get_type_name() == "Add"]
    found = (graph.weight_edge(name, elements) for name in (consumer.name, *biases))
    return next((edge for edge in found if edge is not None), None)


def _execution(weight: CompressedWeight, consumer: Consumer, edge: Edge, device: str) -> Execution:
    stored = weight.codes.get_output_element_type(0).bitwidth
    if getattr(ov.Type, edge.type).bitwidth > stored:
        return Execution(consumer.name, "expanded", edge.type, edge.operation)
    misread = _misread(weight, consumer) if device.split(".")[0] == "CPU" else ""
    return Execution(consumer.name, "compressed", edge.type, edge.operation, misread=misread)


def _misread(weight: CompressedWeight, consumer: Consumer) -> str:
    """Why the CPU computes something else from the codes that it runs on."""
    columns = prod(weight.shape[axis] for axis in weight.reduction_axes)
    rows = weight.elements // max(1, columns)
    return misread(layer_of(consumer), weight.storage, weight.group_size, columns, rows) or ""


def _name(device: str) -> str:
    try:
        found: Any = core().get_property(device, "FULL_DEVICE_NAME")
    except RuntimeError:
        return device
    return str(found).strip()
