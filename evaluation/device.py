"""What a device does with each compressed weight: executes it as it is stored, or expands it first.

A small model is compiled as a whole, so that everything that the device makes of it is seen; of a large one a layer of
each kind, cut to a few rows. The answer is read from the graph that the device executes (see `device_graph`), not from
a table. What that graph does not show is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import openvino as ov

from ov_weight_compression.evaluation.arithmetic import Arithmetic, choose, core
from ov_weight_compression.evaluation.device_graph import Edge, RuntimeGraph
from ov_weight_compression.ir_utils.device_facts import misread
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.ir_file import openvino_reason
from ov_weight_compression.passes.device_rules import layer_of
from ov_weight_compression.patterns import CompressedWeight, Consumer, find_compressed
from ov_weight_compression.patterns.device_layer import cut_rows, layer_kind, single_layer
from ov_weight_compression.patterns.graphs import graphs_of

__all__ = ["WHOLE_ELEMENTS", "DeviceCheck", "Execution", "check_device"]

WHOLE_ELEMENTS = 1 << 27
"""A model whose compressed weights have more elements is looked at layer by layer: half a GB, if all became f32."""

_LAYER_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class Execution:
    """What one layer does with a weight."""

    layer: str
    """Friendly name of the operation in the model."""
    verdict: str
    """`compressed`, `expanded` or `unknown`."""
    type: str = ""
    """The element type that the device's kernel reads."""
    operation: str = ""
    """The device's name of what reads it."""
    reason: str = ""
    """Why it is not known."""
    misread: str = ""
    """Why its outputs are wrong: the device takes the codes for others, without an error."""

    def __str__(self) -> str:
        if self.misread:
            return f"compressed, WRONG OUTPUTS: {self.misread}"
        return {"compressed": "compressed", "expanded": f"expanded to {self.type}"}.get(self.verdict, self.verdict)


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


def check_device(model: ov.Model, device: str, whole_elements: int = WHOLE_ELEMENTS) -> DeviceCheck:
    """Compile a model, or a layer of each kind, and say how each of its compressed weights is executed.

    Args:
        model: any model; it is not changed.
        device: a name that OpenVINO knows: `CPU`, `GPU.1`, `NPU`, …
        whole_elements: compile the whole model if its compressed weights have at most so many elements.

    Raises:
        OptionError: there is no such device; the message lists those there are.
        WorkError: the device cannot compile even a single layer.
    """
    arithmetic = choose(device, as_deployed=True)
    weights = find_compressed(model)
    found: Found = {}
    methods = []
    if sum(weight.elements for weight in weights) <= whole_elements:
        methods.append(_whole(model, weights, arithmetic, found))
    left = [(number, use) for number, weight in enumerate(weights) for use in range(len(weight.consumers))]
    left = [pair for pair in left if _key(weights[pair[0]], weights[pair[0]].consumers[pair[1]]) not in found]
    if left:
        methods.append(_layers(model, weights, left, arithmetic, found))
    return DeviceCheck(
        device=device,
        name=_name(device),
        openvino=ov.get_version(),
        method="; ".join(methods),
        executions=tuple(tuple(found[_key(weight, use)] for use in weight.consumers) for weight in weights),
    )


def _key(weight: CompressedWeight, consumer: Consumer) -> tuple[str, str]:
    return weight.body, f"{consumer.name}/{consumer.port}"


Found = dict[tuple[str, str], Execution]
"""By body, layer and port."""


def _whole(model: ov.Model, weights: Sequence[CompressedWeight], arithmetic: Arithmetic, found: Found) -> str:
    """Compile the model and fill in what its graph shows; bodies of If and Loop are not in it."""
    originals = {node.get_friendly_name() for graph in graphs_of(model) for node in graph.operations}
    try:
        graph = RuntimeGraph(arithmetic.compile(model, "the model"), originals)
    except (WorkError, RuntimeError) as error:
        return f"the whole model was tried ({openvino_reason(error)})"
    for weight in weights:
        for consumer in weight.consumers:
            edge = graph.weight_edge(consumer.name, weight.elements) if not weight.body else None
            if edge is not None:
                found[_key(weight, consumer)] = _execution(weight, consumer, edge, arithmetic.device)
    return "the whole model was compiled"


def _layers(
    model: ov.Model,
    weights: Sequence[CompressedWeight],
    left: Sequence[tuple[int, int]],
    arithmetic: Arithmetic,
    found: Found,
) -> str:
    """Compile one layer of each kind among those that are left, and take the others of its kind to be like it."""
    copies = find_compressed(model.clone())
    kinds: dict[tuple[object, ...], list[tuple[int, int]]] = {}
    for number, use in left:
        kinds.setdefault(layer_kind(weights[number], weights[number].consumers[use]), []).append((number, use))
    for members in kinds.values():
        number, use = max(members, key=lambda pair: (weights[pair[0]].elements <= _LAYER_ELEMENTS, -pair[0]))
        sample = _look(copies[number], use, arithmetic)
        for other, place in members:
            consumer = weights[other].consumers[place]
            found[_key(weights[other], consumer)] = replace(sample, layer=consumer.name)
    return f"one layer of each kind was compiled ({len(kinds)} for {len(left)} layers)"


def _look(weight: CompressedWeight, use: int, arithmetic: Arithmetic) -> Execution:
    consumer = weight.consumers[use]
    cut_rows(weight, _LAYER_ELEMENTS)
    layer = single_layer(consumer)
    size = consumer.node.input_value(consumer.port).get_partial_shape()
    compiled = arithmetic.compile(layer, f"the layer {consumer.name}")
    try:
        graph = RuntimeGraph(compiled, {node.get_friendly_name() for node in layer.get_ops()})
    except RuntimeError as error:
        return Execution(consumer.name, "unknown", reason=f"no runtime graph: {openvino_reason(error)}")
    edge = graph.weight_edge(consumer.name, prod(size.to_shape()))
    if edge is None:
        return Execution(consumer.name, "unknown", reason="the device's runtime graph does not show its weight")
    return _execution(weight, consumer, edge, arithmetic.device)


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
