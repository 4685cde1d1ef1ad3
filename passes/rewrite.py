"""Put a plan into the graph: each weight's constant becomes its decompression chain.

The constants of the chain are postponed: nothing is computed here. `ov.save_model` and `compile_model` ask for them one
by one, and the pipeline computes them then. `lazy=False` computes them all at once and inserts plain constants.

`ov.save_model` over the file that a model was read from empties that file before it writes. A weight's maker sees that
and raises, but OpenVINO reads other constants through the mapping itself, and that ends the process. So small ones are
held in memory, where they do no harm; large ones that are not compressed stay where they are, so a model that has such
a one before its first compressed weight can still end so.

It stores the f32 constants of a float model as f16 and leaves those of a compressed one alone. A model is compressed to
it (OpenVINO 2026.4) where the main graph has, of plain constants,

    codes (i4 u4 i8 u8 nf4 f8e4m3 f8e5m2) ─ Convert ─ [Subtract ◂─ [Convert ◂─] zero point] ─ Multiply ◂─ scale

with nothing between the scale and the Multiply. So one weight that is stored like that has its constants plain in the
clone that is written, while the others stay postponed: the smallest one. Where there is none, because the plugin folds
all chains, which are in f32 then, the smallest one that could be stores its scales as f32. Where no weight could be,
the first adapters of LoRA correction are what tells. What remains are models of nothing but codebooks, weights in
bodies and formats of which OpenVINO does not know that they are compressed: there `ov.save_model` makes f16 of the f32
constants, lazily computed or not, and this package's `save_model` does not.

**Transposes** between a weight and its MatMul: the MatMul turns the weight itself.

    weight ─ Transpose ─ [Convert] ─ MatMul(transpose_b)     ─▸     weight ─ [Convert] ─ MatMul(not transpose_b)

The CPU plugin of OpenVINO 2026.4 executes a MatMul on codes in either orientation, but not through a Transpose: it
expands the weight, and where the chain is not folded first it does so at each inference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import openvino as ov
from openvino.passes import ModelPass

from ov_weight_compression.ir_utils.dequantization import (
    EXPANDED_STORAGE,
    ChainParts,
    build_dequantization,
    replace_constant,
)
from ov_weight_compression.ir_utils.file_io import FileMappings
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight, postponed_constant
from ov_weight_compression.ir_utils.types import element_type
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.ir_utils.worker_pool import Pipeline
from ov_weight_compression.passes.encoding import WeightEncoding, encoding_of
from ov_weight_compression.passes.plan import Plan, PlannedWeight
from ov_weight_compression.patterns import Consumer, Kind, find_compressed, find_weights
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed


class FuseWeightTranspose(ModelPass):
    """Let the MatMuls of a model read their weights, float or compressed, from in front of any Transpose.

    A pass for `openvino.passes.Manager`; compression does the same for the weights that it compresses. What several
    operations read of a Transpose stays for the others.
    """

    def __init__(self) -> None:
        super().__init__()

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        layers = [layer for weight in find_weights(model)[0] for layer in weight.consumers]
        layers += [layer for weight in find_compressed(model) for layer in weight.consumers]
        changed = [take_over_transpose(layer) for layer in layers]
        return any(changed)


def take_over_transpose(consumer: Consumer) -> bool:
    """Let a MatMul read its weight from in front of a Transpose of the last two axes; whether there was one."""
    layer: Any = consumer.node
    if layer.get_type_name() != "MatMul":
        return False
    target = layer.input(consumer.port)
    before = target.get_source_output().get_node()
    converts: list[Any] = []
    while before.get_type_name() == "Convert" and len(before.output(0).get_target_inputs()) == 1:
        converts.insert(0, before)
        target = before.input(0)
        before = target.get_source_output().get_node()
    if before.get_type_name() != "Transpose" or not _swaps(before):
        return False
    name = "transpose_b" if consumer.port == 1 else "transpose_a"
    target.replace_source_output(before.input_value(0))
    layer.set_attribute(name, not layer.get_attributes()[name])
    for node in (*converts, layer):
        node.validate_and_infer_types()
    return True


def _swaps(transpose: Any) -> bool:
    """Whether it exchanges the last two axes and leaves the others where they are."""
    order = transpose.input_value(1).get_node()
    rank = len(transpose.get_output_partial_shape(0))
    if order.get_type_name() != "Constant" or rank < 2:
        return False
    axes = [int(axis) for axis in order.data.reshape(-1)] or list(range(rank))[::-1]
    return axes == [*range(rank - 2), rank - 1, rank - 2]


_SMALL_BYTES = 64 << 10
_ABOUT_THE_FILE = {"WeightlessCacheAttribute_0"}
"""What OpenVINO's reader notes of a constant: where in the file it lies."""


def rewrite(plan: Plan, pipeline: Pipeline, lazy: bool) -> None:
    """Rewrite every planned weight, in graph order; the model is changed in place. Equal weights share one chain.

    With `lazy=False` all values are computed before the first edit, so that a failure leaves the model as it was.

    Raises:
        WorkError: a weight could not be computed (only with `lazy=False`); the model is unchanged.
    """
    assert sum(map(len, plan.equal)) == len(plan.weights), "a weight without a place: see `as_stored`"
    stored = []
    for places in plan.equal:  # what is planned for the first one, with the consumers of all
        equal = [plan.weights[place] for place in places]
        consumers = tuple(consumer for planned in equal for consumer in planned.weight.consumers)
        weight, tells = replace(equal[0].weight, consumers=consumers), any(planned.tells for planned in equal)
        stored.append((places, replace(equal[0], weight=weight, tells=tells) if len(equal) > 1 else equal[0]))
    encodings = [encoding_of(plan.weights[places[0]], plan) for places, _ in stored]
    weights = [LazyWeight(pipeline, encoding) for encoding in encodings]
    try:
        constants = [
            _constants(lazy_weight, encoding, planned, lazy)
            for lazy_weight, encoding, (_, planned) in zip(weights, encodings, stored, strict=True)
        ]
    finally:
        if not lazy:
            pipeline.stop()
    for (places, planned), parts in zip(stored, constants, strict=True):
        name = planned.weight.stored_name
        for part, node in parts.items():
            node.set_friendly_name(name if part == "codes" else f"{name}/{part}")
        chain = build_dequantization(
            ChainParts(**parts),
            name,
            planned.weight.shape,
            expanded=planned.expanded,
            wide=planned.beyond_f16,
            kept_from_codes=planned.kept_from_codes,
        )
        for place in places:
            weight = plan.weights[place].weight
            replace_constant(weight.constant, chain, weight.stored_name)
            for consumer in weight.consumers:
                take_over_transpose(consumer)


def as_stored(plan: Plan) -> Plan:
    """The plan with what is decided last: which weight tells that the model is compressed, and which ones are stored as
    the same bytes in the same chain.

    OpenVINO stores equal plain constants once, but postponed ones as often as there are nodes. Tied weights that an
    exporter left as two constants of one place in its file would be stored twice.
    """
    plan = replace(plan, weights=tuple(_with_telltale(plan.weights)))
    sizes = Counter((planned.weight.shape, planned.absmax) for planned in plan.weights)
    found: list[list[int]] = []
    candidates: dict[Hashable, list[tuple[WeightSource, list[int]]]] = {}
    for place, planned in enumerate(plan.weights):
        equals: list[int] = []
        may_equal = sizes[planned.weight.shape, planned.absmax] > 1
        identity = encoding_of(planned, plan).identity if may_equal else None
        if identity is not None:
            source = plan.sources[planned.weight]
            chain = (planned.weight.body, planned.expanded, planned.kept_from_codes)
            others = candidates.setdefault((identity[0], chain, source.fingerprint), [])
            equals = next((places for one, places in others if one.equals(source)), equals)
            if not equals:
                others.append((source, equals))
        if not equals:
            found.append(equals)
        equals.append(place)
    return replace(plan, equal=tuple(map(tuple, found)))


_TELLING_STORAGE = frozenset({"i4", "u4", "i8", "u8", "nf4", "f8e4m3", "f8e5m2"})


def _with_telltale(weights: Sequence[PlannedWeight]) -> Sequence[PlannedWeight]:
    """A plan's weights with one that tells, where there can be one: the smallest, of those that need not store their
    scales as f32 for it where there are such."""
    telling: list[tuple[bool, int, int]] = []
    for place, planned in enumerate(weights):
        format, scales = planned.spec.format, planned.stored_scale_type
        if planned.weight.body or format.codebook_type is not None:
            continue
        if format.tensor_scale:
            tells, widened = scales == "f8e4m3" and not planned.kept_from_codes, False  # they are codes of eight bits
        else:
            expanded = planned.expanded or planned.kept_from_codes or format.storage in EXPANDED_STORAGE
            in_f32, known = expanded or planned.beyond_f16, format.storage in _TELLING_STORAGE
            tells, widened = known and scales == ("f32" if in_f32 else "f16"), known and in_f32 and scales == "f16"
        if tells or widened:
            telling.append((not tells, planned.weight.elements, place))
    if not telling:
        return weights
    widened, _, place = min(telling)
    told, weights = weights[place], list(weights)
    if widened:  # those that may have the same values too, so that equal weights are still stored once
        key = told.weight.shape, told.absmax, told.spec
        weights = [
            replace(one, scales_in_f32=True) if (one.weight.shape, one.absmax, one.spec) == key else one
            for one in weights
        ]
    weights[place] = replace(weights[place], tells=True)
    return weights


def hold_small_constants(model: Any) -> None:
    """Put copies in place of small constants whose memory is a file's, bodies included."""
    mappings = FileMappings()
    for graph in graphs_of(model):
        for constant, kind in graph.constants:
            if kind == "string" or is_postponed(constant):
                continue
            if not 0 < constant.get_byte_size() <= _SMALL_BYTES:
                continue
            tensor = constant.get_tensor_view()
            if not mappings.around(tensor.data).path or set(constant.get_rt_info()) - _ABOUT_THE_FILE:
                continue
            copy = ov.Tensor(tensor.element_type, tensor.shape)
            tensor.copy_to(copy)
            held = ov.op.Constant(copy)
            held.set_friendly_name(constant.get_friendly_name())
            constant.output(0).replace(held.output(0))


def _constants(weight: LazyWeight, encoding: WeightEncoding, planned: PlannedWeight, lazy: bool) -> dict[str, Any]:
    """The nodes of one chain's constants. What is known already is plain, so that equal scalars are stored once.

    An f32 part is postponed in any case: `ov.save_model` stores plain f32 constants as f16 unless it takes the model
    for compressed, which rounds a tensor's scale and cannot hold the scales for which f32 was chosen. Only the weight
    that it recognises a compressed model by has all of them plain, in the clone that it writes.
    """
    known = encoding.known_parts()
    gathered = any(consumer.role.kind is Kind.GATHER for consumer in planned.weight.consumers)
    nodes = {}
    for name, part in encoding.parts.items():
        if lazy and name not in known:
            plain = planned.tells or (gathered and part.type != "f32")
            nodes[name] = weight.constant(name, plain_in_clones=plain)
            continue
        tensor = known[name] if name in known else weight.computed(name)
        if part.type != "f32" or planned.tells:
            nodes[name] = ov.op.Constant(tensor, shared_memory=True)
        else:
            nodes[name] = postponed_constant(
                element_type(part.type), ov.Shape(list(part.shape)), partial(_same, tensor)
            )
    return nodes


def _same(tensor: ov.Tensor) -> ov.Tensor:
    return tensor
