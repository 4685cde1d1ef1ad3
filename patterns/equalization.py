"""Where the channels of an activation can be scaled with the network's function left unchanged.

Dividing channel j of a tensor by `t_j` and multiplying column j of every layer that reads it by `t_j` changes nothing.
A *group* is all those layers, and its *target* what takes the division, where the tensor is made:

    norm ─ Multiply(gain / t) ─ [Add(bias / t)] ─▸ q, k, v        GainTarget
    up (rows / t) ─ Multiply(act(gate)) ─▸ down                   RowsTarget
    v (rows / t) ─ attention ─▸ o                                 RowsTarget
    up (rows / t) of experts ─ Multiply(act(gate)) ─▸ down        RowsTarget, each expert with factors of its own
    anything else, other experts side by side                     none; a Multiply in front of the layers would do it

Channels that the target cannot tell apart (those of query heads that share a row of v) form a *class* and share
their factor. Nothing is a target where anything but the group's own layers would see the change, or where that cannot
be told; the reason is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import openvino as ov

from ov_weight_compression.patterns.experts import tiled_block_of
from ov_weight_compression.patterns.fold_targets import (
    GainTarget,
    Reader,
    RowsTarget,
    RowsTracer,
    gain_target,
    is_float,
    readers,
)
from ov_weight_compression.patterns.graphs import dimensions
from ov_weight_compression.patterns.provenance import keeps_channels
from ov_weight_compression.patterns.roles import Consumer, Kind
from ov_weight_compression.patterns.weight import Weight

_ACTIVATIONS = frozenset(
    {
        *("Swish", "Gelu", "Relu", "Mish", "HSwish", "Sigmoid", "Tanh", "Elu", "Selu", "SoftPlus", "SoftSign"),
        *("Clamp", "PRelu", "HSigmoid", "HardSigmoid"),
    }
)


@dataclass(frozen=True, eq=False)
class EqualizationGroup:
    """Layers whose input channels can be scaled together."""

    weights: tuple[Weight, ...]
    """Each with two axes, in graph order. Column j of all of them meets channel j."""
    layers: tuple[Reader, ...]
    """The layers and the ports through which they read the activation."""
    columns: int
    classes: tuple[int, ...]
    """The class of every channel, from 0: channels of one class must have the same factor."""
    target: GainTarget | RowsTarget | None
    reason: str = ""
    """Why there is no target."""
    behind_activation: bool = False
    """The tensor comes straight from an activation function, alone or gating another tensor, in parts or not."""
    experts: int = 1
    """How many layers side by side the weight `[experts, …]` is, each with an input, and with factors, of its own."""

    @property
    def names(self) -> tuple[str, ...]:
        """The weights' names."""
        return tuple(weight.name for weight in self.weights)

    @property
    def input(self) -> ov.Output:
        """The activation that the first layer reads."""
        node, port = self.layers[0]
        return node.input_value(port)

    @property
    def multiply(self) -> str:
        """What a Multiply in front of the first layer is called."""
        return f"{self.layers[0][0].get_friendly_name()}/smoothing"


def equalization_groups(model: ov.Model, weights: Iterable[Weight]) -> list[EqualizationGroup]:
    """The groups of a model, in graph order; a weight is in at most one.

    Args:
        model: the model that they are in.
        weights: those whose values will be rewritten anyway. Any other weight is taken to be fixed: a tensor that it
            reads is not scaled, and its rows take nothing.
    """
    weights = [weight for weight in weights if weight.body == ""]
    layers = _Layers(weights)
    tracer = RowsTracer(model, weights)
    groups = []
    seen: set[str] = set()
    for weight in weights:
        value = layers.activation(weight)
        if value is None or weight.name in seen:
            continue
        group = _group_of(value, weight.columns, layers, tracer)
        if group is not None and seen.isdisjoint(group.names):
            seen.update(group.names)
            groups.append(group)
    makers = {layer.node: weight for weight in weights for layer in weight.consumers}
    groups += [group for group in (_experts(weight, makers) for weight in weights) if group is not None]
    return groups


def _experts(weight: Weight, makers: Mapping[ov.Node, Weight]) -> EqualizationGroup | None:
    """The layer of experts side by side that a weight is for, where each of them reads a tensor of its own.

    What the layer `up` of a tiled block makes can be scaled in its rows; an inserted Multiply would keep plugins from
    gathering the experts.
    """
    plain = weight.kind is Kind.EXPERTS and len(weight.shape) == 3 and weight.batch_axes == (0,)
    if not plain or weight.other_uses or len(weight.consumers) != 1 or len(weight.input_axes) != 1:
        return None
    layer = weight.consumers[0]
    node, port = layer.node, _activation_port(layer)
    sizes = None if port is None else dimensions(node.input_value(port))
    if port is None or sizes is None or len(sizes) < 3 or sizes[-3] != weight.shape[0]:
        return None
    behind, classes = _is_behind_activation(_root(node.input_value(port))), tuple(range(weight.columns))
    target, reason = None, "experts side by side, and nothing before them can absorb a factor"
    block = tiled_block_of(node)
    if block is not None:
        behind, reason = False, "experts side by side, which a Multiply before them would keep from being gathered"
        up = makers.get(block.layers[1]) if len(block.layers) == 3 and node == block.layers[2] else None
        if (
            up is not None
            and not up.other_uses
            and len(up.consumers) == 1
            and up.rows == weight.shape[0] * weight.columns
        ):
            behind, target = True, RowsTarget(up, tuple(range(up.rows)), (), classes)
    return EqualizationGroup(
        weights=(weight,),
        layers=((node, port),),
        columns=weight.columns,
        classes=classes,
        target=target,
        reason="" if target else reason,
        behind_activation=behind,
        experts=weight.shape[0],
    )


class _Layers:
    """The layers that sum over the last dimension of an activation, by the port that reads it."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self._layers: dict[Reader, Weight] = {}
        self._ports: dict[str, list[Reader]] = {}
        for weight in weights:
            ports = [_activation_port(consumer) for consumer in weight.consumers]
            plain = weight.kind is Kind.MATMUL and len(weight.shape) == 2 and len(weight.input_axes) == 1
            if not plain or weight.other_uses or any(port is None for port in ports):
                continue
            both = [(consumer.node, port or 0) for consumer, port in zip(weight.consumers, ports, strict=True)]
            self._layers.update(dict.fromkeys(both, weight))
            self._ports[weight.name] = both
        self._places = {reader: place for place, reader in enumerate(self._layers)}

    def activation(self, weight: Weight) -> ov.Output | None:
        """What the first layer of a weight reads."""
        if weight.name not in self._ports:
            return None
        node, port = self._ports[weight.name][0]
        return node.input_value(port)

    def at(self, reader: Reader) -> Weight | None:
        return self._layers.get(reader)

    def ordered(self, found: Iterable[Reader]) -> list[Reader]:
        """Layers in graph order; OpenVINO lists a tensor's readers in another order in every process."""
        return sorted(found, key=self._places.__getitem__)

    def complete(self, found: list[Reader]) -> tuple[Weight, ...] | None:
        """The weights of some layers, or None where one of them has a layer elsewhere."""
        weights = {self._layers[reader].name: self._layers[reader] for reader in found}
        if any(reader not in found for name in weights for reader in self._ports[name]):
            return None
        return tuple(weights.values())


def _activation_port(layer: Consumer) -> int | None:
    """The activation's port of a layer that sums over its last dimension."""
    meets = layer.role.activation
    plain = meets is not None and meets.reduction == (-1,) and meets.batch in ((), (-3,))
    return meets.port if meets is not None and plain else None


def _group_of(value: ov.Output, columns: int, layers: _Layers, tracer: RowsTracer) -> EqualizationGroup | None:
    """The group of the layers behind a tensor: all that read what it was rearranged from, or else it alone."""
    root = _root(value)
    found, stranger = _closure(root, layers)
    weights = layers.complete(found)
    if not stranger and weights is not None:
        target = gain_target(root, columns) or tracer.rows_target(root, columns)
        reason = "" if target else "nothing before the layers can absorb a factor"
        classes = tuple(range(columns)) if target is None else target.classes
        behind = _is_behind_activation(root)
        return EqualizationGroup(weights, tuple(found), columns, classes, target, reason, behind)
    direct = layers.ordered(reader for reader in readers(value) if layers.at(reader))
    weights = layers.complete(direct)
    if weights is None:
        return None
    what = "not only these layers read their input" if stranger else "a weight is used elsewhere too"
    return EqualizationGroup(
        weights, tuple(direct), columns, tuple(range(columns)), None, what, _is_behind_activation(root)
    )


def _root(value: ov.Output) -> ov.Output:
    """What a tensor was rearranged from with its channels left in the last dimension."""
    while _is_moving(value.get_node(), 0):
        value = value.get_node().input_value(0)
    return value


def _is_moving(node: ov.Node, port: int) -> bool:
    if port != 0 or node.get_output_size() != 1 or not is_float(node.output(0)):
        return False
    sizes = dimensions(node.output(0))
    return sizes is not None and keeps_channels(node, node.get_type_name(), len(sizes))


def _closure(root: ov.Output, layers: _Layers) -> tuple[list[Reader], bool]:
    """The layers that read a tensor, rearranged or not, and whether something else does."""
    found: list[Reader] = []
    front = [root]
    while front:
        for reader in readers(front.pop()):
            node, port = reader
            if layers.at(reader):
                found.append(reader)
            elif _is_moving(node, port):
                front.append(node.output(0))
            else:
                return found, True
    return layers.ordered(found), False


def _is_behind_activation(value: ov.Output) -> bool:
    """Whether a tensor is an activation function's result, a product with one, or one of two whole tensors.

    The last is a gate, or an activation function in parts (`x · sigmoid(x)`). A norm's product is none: what it divides
    by has one value for all channels, and a gain, computed or not, has one row.
    """
    node = value.get_node()
    if node.get_type_name() != "Multiply":
        return node.get_type_name() in _ACTIVATIONS
    factors = node.input_values()
    return any(factor.get_node().get_type_name() in _ACTIVATIONS for factor in factors) or all(
        (sizes := dimensions(factor)) is not None and any(size != 1 for size in sizes[:-1]) and sizes[-1] != 1
        for factor in factors
    )
