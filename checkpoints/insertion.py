"""A checkpoint's own codes in place of a model's float weights.

    constant ─ [Convert] ─▸ layer      →      codes ─ Convert ─ [Subtract] ─ Multiply ─ [Reshape] ─▸ layer

The chain is the one that compression makes, and its constants are postponed like compression's: codes are read from the
checkpoint and repacked while the model is saved. Where a CPU would misread codes in groups as large as the
checkpoint's, they are cut into groups that it reads, or the chain is one that it expands; both are said in the report.

Codes whose input channels are in an order of their own (act-order) want their layer's input in that order. Columns
sorted by group, `codes[:, p]`, want the layer's input in the same order, `x[…, p]`. In the order of preference:

    folded        what computes x computes its channels in that order: the rows of the weights that made it, and the
                  biases behind them, through operations that take each channel by itself

                  up, gate ─ act(gate) · up ─▸ down[:, p]     →     up[p], gate[p] ─ act(gate) · up ─▸ down[:, p]

    a Gather      in front of the layer, which layers that read the same tensor in the same order share

                  x ─▸ layer(W[:, p])     →     x ─ Gather(·, p, −1) ─▸ layer(W[:, p])

    requantised   with its channels in order, where the layer does not read its input like that

What a norm has made cannot be folded, for the stream that the norm reads is read by all blocks; nor what attention has,
where channels may move within their head only, and these orders do not stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    QuantisedWeight,
    finer,
    requantised,
    with_rows_in_order,
)
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.weight_source import Slab
from ov_weight_compression.ir_utils.worker_pool import Pipeline
from ov_weight_compression.passes.device_rules import misread_on_cpu, refused_on_cpu
from ov_weight_compression.passes.option_values import Devices
from ov_weight_compression.passes.plan import Plan, PlannedWeight
from ov_weight_compression.passes.report import Report, make_report
from ov_weight_compression.passes.rewrite import rewrite, with_equal_weights, with_telltale
from ov_weight_compression.patterns import Kind, Weight, find_weights
from ov_weight_compression.patterns.fold_targets import Reader, readers
from ov_weight_compression.patterns.graphs import constant_of, dimensions
from ov_weight_compression.quantization.formats import Encoded

_SMALLEST_GROUP = 16
"""Smaller groups are not cut: their scales would take half as many bytes as the codes."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """A quantised weight's rows as a job asks for them."""

    weight: QuantisedWeight

    @property
    def tensor_scale(self) -> np.float32 | None:
        return self.weight.tensor_scale

    def rows(self, slab: Slab) -> Encoded:
        """Those of a slab."""
        return self.weight.rows(slab.start, slab.stop)


def insert_codes(model: Any, found: Mapping[Any, QuantisedWeight], devices: Devices = (), lazy: bool = True) -> Report:
    """Put quantised weights into the graph, in place.

    Args:
        model: changed in place; not at all where an error is raised.
        found: by the Constant that each of them is to take the place of, whose values do not matter.
        devices: where the model will run; by default anywhere, CPUs included.
        lazy: False computes everything now.

    Returns:
        What became of each weight, its `reason` what the checkpoint had.

    Raises:
        ModelError: a constant is no layer's weight, or its shape is not that of the quantised weight; names both.
        WorkError: a weight cannot be read (with `lazy=False`; otherwise when the model is saved).
    """
    weights = {weight.source: weight for weight in find_weights(model)[0]}
    for constant, quantised in found.items():
        _check(constant, weights.get(constant), quantised)
    pairs = [(weight, found[constant]) for constant, weight in weights.items() if constant in found]
    pairs, edits = bring_into_order(pairs)
    fitted = [_fitted(weight, quantised, devices) for weight, quantised in pairs]
    plan = with_equal_weights(with_telltale(Plan(tuple(fitted))))
    recipe = {"mode": "checkpoint"} | ({"device": ",".join(one.value for one in devices)} if devices else {})
    report = make_report(plan, recipe)
    rewrite(plan, Pipeline(), lazy)
    for edit in edits:
        edit()
    return report


def turned_in_place(constant: Any) -> Any | None:
    """Put a Constant `[…, out, in]`, whose values do not matter, in place of one `[…, in, out]`, and tell MatMuls so;
    None, and nothing is changed, where something else reads it.

    Codes lie along the input channels, so theirs is the other shape.
    """
    edges, values = [], [constant.output(0)]
    for value in values:
        for target in value.get_target_inputs():
            node: Any = target.get_node()
            if node.get_type_name() == "Convert":
                values.append(node.output(0))
            elif node.get_type_name() == "MatMul" and target.get_index() == 1:
                edges.append(node)
            else:
                return None
    kind, shape = constant.get_output_element_type(0), list(constant.get_output_shape(0))
    shape[-2:] = shape[:-3:-1]
    turned = ov.op.Constant(ov.Tensor(kind, ov.Shape(shape)), shared_memory=True)
    turned.set_friendly_name(constant.get_friendly_name())
    constant.output(0).replace(turned.output(0))
    for value in values[1:]:
        value.get_node().validate_and_infer_types()
    for layer in edges:
        layer.set_attribute("transpose_b", not layer.get_attributes()["transpose_b"])
        layer.validate_and_infer_types()
    return turned


def _check(constant: Any, weight: Weight | None, quantised: QuantisedWeight) -> None:
    if weight is None:
        raise ModelError(
            f"{quantised.name}: the graph uses '{constant.get_friendly_name()}' otherwise than as a layer's weight, so "
            "the checkpoint's codes cannot stand there"
        )
    inputs_in_order = tuple(weight.input_axes) == tuple(weight.reduction_axes)
    if (weight.rows, weight.columns) != (quantised.row_count, quantised.columns) or not inputs_in_order:
        raise ModelError(
            f"{quantised.name}: has {quantised.row_count} rows of {quantised.columns}, the graph's '{weight.name}' has "
            f"{weight.rows} of {weight.columns} (shape {list(weight.shape)})"
        )


def _fitted(weight: Weight, quantised: QuantisedWeight, devices: Devices) -> PlannedWeight:
    """How a weight is stored: as it is, unless a CPU would misread that."""
    format = quantised.spec.format
    problem = misread_on_cpu(devices, weight, format, quantised.spec.group_size)
    if problem is not None and not format.fixed_group:
        smaller = quantised.group & -quantised.group
        if smaller >= _SMALLEST_GROUP and misread_on_cpu(devices, weight, format, smaller) is None:
            quantised, problem = finer(quantised, smaller), None
    problem = (
        problem
        or refused_on_cpu(devices, weight, format, quantised.spec.group_size)
        or _gather_problem(weight, quantised)
    )
    if problem is not None:
        note = f"{problem}, so it is stored in a way that they expand"
        quantised = replace(quantised, notes=(*quantised.notes, note))
    return PlannedWeight(
        weight=weight,
        spec=quantised.spec,
        absmax=quantised.absmax,
        reason=quantised.described,
        kept_from_codes=problem is not None,
        exact=True,
        stored=_Rows(quantised),
    )


def _gather_problem(weight: Weight, quantised: QuantisedWeight) -> str | None:
    """A table in groups must have its scales in f16, or a CPU does not compile it."""
    gathered = any(consumer.role.kind is Kind.GATHER for consumer in weight.consumers)
    if gathered and quantised.spec.group_size != -1 and quantised.spec.scale_type == "f32":
        return "CPUs refuse an embedding in groups with scales in f32"
    return None


Pairs = list[tuple[Weight, QuantisedWeight]]
Edit = Callable[[], None]

_EACH_BY_ITSELF = frozenset(
    {"Convert", "Swish", "Gelu", "Relu", "Sigmoid", "Tanh", "Mish", "HSwish", "Elu", "SoftPlus"}
)
_TWO_BY_TWO = frozenset({"Multiply", "Add", "Subtract", "Maximum", "Minimum", "Clamp"})
_DEPTH = 24


def bring_into_order(pairs: Sequence[tuple[Weight, QuantisedWeight]]) -> tuple[Pairs, list[Edit]]:
    """The weights as they are to be stored, each saying what becomes of its order, and the edits of the graph that
    bring their layers' inputs into that order. Nothing is edited yet."""
    settled = {weight.name: quantised for weight, quantised in pairs}
    groups: dict[Any, _Group] = {}
    for weight, quantised in pairs:
        if quantised.order is None:
            continue
        found = _activations(weight)
        if found is None:
            settled[weight.name] = requantised(quantised, "its input cannot be brought into the order of its codes")
            continue
        for node, port in found:
            value = node.input_value(port)
            key = value.get_node(), value.get_index(), quantised.order.tobytes()
            group = groups.setdefault(key, _Group(value, quantised.order, [], []))
            group.readers.append((node, port))
            group.names.append(weight.name)
    makers = _makers(pairs)
    edits = []
    for group in groups.values():
        folded = _fold(group, makers, settled)
        if folded is None:
            edits.append(_gather(group))
            note = "act-order, its input brought into order by a Gather"
        else:
            made, biases = folded
            settled.update(made)
            edits += [_reorder(bias, group.order) for bias in biases]
            note = f"act-order, folded into the rows of {' and '.join(sorted(one.name for one in made.values()))}"
        for name in dict.fromkeys(group.names):
            settled[name] = replace(settled[name], notes=(*settled[name].notes, note))
    return [(weight, settled[weight.name]) for weight, _ in pairs], edits


@dataclass(frozen=True, eq=False)
class _Group:
    """Layers that read one tensor in one order."""

    value: ov.Output
    order: Array
    readers: list[Reader]
    names: list[str]


def _activations(weight: Weight) -> list[Reader] | None:
    """What feeds each layer of a weight, where all of them sum over the last dimension of one tensor."""
    if weight.other_uses:
        return None
    found = []
    for consumer in weight.consumers:
        node, port = consumer.node, 1 - consumer.port
        if consumer.role.kind not in (Kind.MATMUL, Kind.EXPERTS) or node.get_type_name() != "MatMul":
            return None
        attributes = node.get_attributes()
        last = not attributes["transpose_a"] if port == 0 else bool(attributes["transpose_b"])
        if not last:
            return None
        found.append((node, port))
    return found


def _makers(pairs: Sequence[tuple[Weight, QuantisedWeight]]) -> dict[ov.Node, Weight]:
    """The MatMuls of weights whose rows are the channels of what they compute, and which nothing else reads."""
    return {
        weight.consumers[0].node: weight
        for weight, quantised in pairs
        if len(weight.shape) == 2 and len(weight.consumers) == 1 and not weight.other_uses
        if weight.kind is Kind.MATMUL and weight.consumers[0].port == 1 and quantised.any_rows is not None
    }


def _fold(
    group: _Group, makers: Mapping[ov.Node, Weight], settled: Mapping[str, QuantisedWeight]
) -> tuple[dict[str, QuantisedWeight], list[Reader]] | None:
    """The weights that make a group's tensor, with their rows in its order, and the biases on the way; None where
    something else would see the change."""
    way = _Way(makers, group.order.size)
    if not way.follow(group.value, _DEPTH) or not way.is_closed(group.readers):
        return None
    made = {}
    for weight in way.weights:
        changed = with_rows_in_order(settled[weight.name], group.order)
        if changed is None:
            return None
        made[weight.name] = changed
    return made, way.biases


class _Way:
    """What lies between a tensor and the weights that made it, channel by channel."""

    def __init__(self, makers: Mapping[ov.Node, Weight], channels: int) -> None:
        self._makers, self._channels = makers, channels
        self._nodes: set[ov.Node] = set()
        self._values: list[ov.Output] = []
        self.weights: list[Weight] = []
        self.biases: list[Reader] = []

    def follow(self, value: ov.Output, depth: int) -> bool:
        """Whether a tensor comes from such weights alone."""
        node = value.get_node()
        sizes = dimensions(value)
        if not depth or node.get_output_size() != 1 or sizes is None or sizes[-1:] != [self._channels]:
            return False
        if node in self._nodes:
            return True
        self._nodes.add(node)
        self._values.append(value)
        if node in self._makers:
            self.weights.append(self._makers[node])
            return True
        kind = node.get_type_name()
        if kind in _EACH_BY_ITSELF:
            return self.follow(node.input_value(0), depth - 1)
        return kind in _TWO_BY_TWO and all(
            self._operand(node, port, depth - 1) for port in range(node.get_input_size())
        )

    def _operand(self, node: ov.Node, port: int, depth: int) -> bool:
        value = node.input_value(port)
        constant = constant_of(value)
        if constant is None:
            return self.follow(value, depth)
        if prod(constant.shape) == 1:
            return True
        self.biases.append((node, port))
        return prod(constant.shape) == self._channels and dimensions(value)[-1:] == [self._channels]  # type: ignore[index]

    def is_closed(self, layers: Sequence[Reader]) -> bool:
        """Whether nothing but the way itself and these layers reads anything on it."""
        return bool(self.weights) and all(
            reader in layers or reader[0] in self._nodes for value in self._values for reader in readers(value)
        )


def _gather(group: _Group) -> Edit:
    def edit() -> None:
        node, port = group.readers[0]
        indices = ops.constant(np.asarray(group.order, dtype=np.int32))
        gather = ops.gather(node.input_value(port), indices, ops.constant(np.int32(-1)))
        indices.set_friendly_name(f"{group.names[0]}/channel_order")
        gather.set_friendly_name(f"{group.names[0]}/input_in_channel_order")
        for each, at in group.readers:
            each.input(at).replace_source_output(gather.output(0))

    return edit


def _reorder(bias: Reader, order: Array) -> Edit:
    """Put the channels of a constant operand in order."""

    def edit() -> None:
        node, port = bias
        value = node.input_value(port)
        source = constant_of(value)
        assert source is not None
        gathered = ops.gather(value, ops.constant(np.asarray(order, dtype=np.int32)), ops.constant(np.int32(-1)))
        gathered.set_friendly_name(f"{source.get_friendly_name()}/in_channel_order")
        node.input(port).replace_source_output(gathered.output(0))

    return edit
