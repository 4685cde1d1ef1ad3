"""Put adapters into the graph: two thin MatMuls beside a layer, and an Add that its readers read in its place.

    x ─┬─▸ layer ───────────────────────────────┬─▸ Add ─▸ readers
       └─▸ MatMul ◂─ A ─▸ MatMul ◂─ B ──────────┘

The layer keeps its friendly name; its tensor names, by which a model's outputs are known, go to the Add. The adapters
are weights like others: codes of 8 bits with a decompression chain, `<layer>/lora_A` and `<layer>/lora_B`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import ModelPass

from ov_weight_compression.ir_utils.dequantization import ChainParts, build_dequantization, protect_from_folding
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.layout import Layout
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight, Part
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.passes.encoding import StoredWeight, WeightEncoding
from ov_weight_compression.passes.lora import StoredAdapters, adapter_parts, layer_obstacle
from ov_weight_compression.passes.plan import Plan
from ov_weight_compression.patterns import Consumer, Roles, Weight, find_compressed, find_weights, parse_roles
from ov_weight_compression.quantization.layerwise.lora import ADAPTER_SPEC

__all__ = ["AddAdapters", "attach_adapters"]


class AddAdapters(ModelPass):
    """Put adapters that a caller has, those of a fine-tuning for one, beside layers of a model, float or compressed.

        y = x Wᵀ        becomes        y = x Wᵀ + (x Aᵀ) Bᵀ

    A pass for `openvino.passes.Manager`. The adapters become constants of the activation's type.

    Args:
        adapters: A `[rank, in]` and B `[out, rank]` by the layer's friendly name.
        roles: what operations of your own make of their weights, as `WeightCompression` takes it.

    Raises:
        OptionError: there is no such layer, or none that can have adapters; or the matrices do not fit it.
    """

    def __init__(self, adapters: Mapping[str, tuple[Array, Array]], *, roles: Roles | None = None) -> None:
        super().__init__()
        self._adapters = dict(adapters)
        self._roles = None if roles is None else parse_roles(roles)

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        found = [layer for weight in find_weights(model, roles=self._roles)[0] for layer in weight.consumers]
        found += [layer for weight in find_compressed(model, self._roles) for layer in weight.consumers]
        layers = {layer.name: layer for layer in found}
        fitting = [_fitting(name, layers.get(name), *pair) for name, pair in self._adapters.items()]
        for layer, kind, *pair in fitting:
            matrices = [ops.constant(values, dtype=kind) for values in pair]
            for node, letter in zip(matrices, "AB", strict=True):
                node.set_friendly_name(f"{layer.name}/lora_{letter}")
            _put_beside(layer, *matrices)
        model.validate_nodes_and_infer_types()
        return bool(fitting)


def _fitting(name: str, layer: Consumer | None, down: Array, up: Array) -> tuple[Consumer, ov.Type, Float32, Float32]:
    """A layer, the type of its activation, and both matrices, if it can have them."""
    if layer is None or layer.role is None:
        raise OptionError(f"adapters: the model has no layer {shown(name)} with a weight")
    reason = layer_obstacle(layer)
    if reason or layer.input is None:
        raise OptionError(f"adapters[{shown(name)}]: cannot stand beside the layer: {reason}")
    sizes = layer.node.get_input_shape(layer.port)
    columns, rows = sizes[layer.role.reduction[0]], sizes[layer.role.channel[0]]
    a, b = (np.ascontiguousarray(values, dtype=np.float32) for values in (down, up))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != columns or b.shape != (rows, a.shape[0]):
        raise OptionError(
            f"adapters[{shown(name)}]: must be A [rank, {columns}] and B [{rows}, rank], got {list(a.shape)} and "
            f"{list(b.shape)}"
        )
    return layer, layer.input.get_element_type(), a, b


def attach_adapters(model: Any, plan: Plan, threads: int, lazy: bool) -> None:
    """Put the adapters that were fitted beside their layers, as the graph is now.

    Where no weight tells OpenVINO that the model is compressed (see `telltale`), the first adapters do.
    """
    pipeline = Pipeline(threads=threads)
    told = any(planned.tells for planned in plan.weights)
    for planned in plan.weights:
        fitted = (plan.adapters or {}).get(planned.weight.name)
        if fitted is not None:
            tells = not told and not planned.weight.body
            _attach(planned.weight, fitted, pipeline, lazy, tells)
            told = told or tells
    if not lazy:
        pipeline.stop()
    model.validate_nodes_and_infer_types()  # an output's names are those of the Add from now on


def _attach(weight: Weight, adapters: StoredAdapters, pipeline: Pipeline, lazy: bool, tells: bool) -> None:
    """Add adapters beside the only layer of `weight`, whose channels may be the last dimension or the one before.

    With `lazy` the pipeline reads the constants from where the adapters are kept when the model is saved or compiled.
    `tells`: by these adapters OpenVINO recognises that the model is compressed (see `telltale`).
    """
    layer = weight.consumers[0]
    assert layer.input is not None, "see lora.obstacle"
    kind = layer.input.get_element_type()
    parts = adapter_parts(weight, adapters.down.codes.shape[0])
    down, up = (
        _matrix(_lazy(stored, side, f"{layer.name}/lora_{letter}", pipeline), kind, lazy, tells)
        for stored, side, letter in zip((adapters.down, adapters.up), parts, "AB", strict=True)
    )
    _put_beside(layer, down, up)


def _put_beside(layer: Consumer, down: Any, up: Any) -> None:
    """Let what reads a layer read the sum of its output and `x · Aᵀ · Bᵀ`, for nodes A `[rank, in]` and B `[out, rank]`
    of the activation's type."""
    node, meets, x = layer.node, layer.activation, layer.input
    assert meets is not None, "see lora.layer_obstacle"
    last, name = meets.reduction == (-1,), layer.name
    if meets.output == (-1,):
        thin = ops.matmul(x, down, not last, True)
        correction = ops.matmul(thin, up, False, True)
    else:
        thin = ops.matmul(down, x, False, last)
        correction = ops.matmul(up, thin, False, False)
    readers = list(node.output(0).get_target_inputs())
    total = ops.add(node, correction)
    for made, suffix in ((thin, "down"), (correction, "up"), (total, "add")):
        made.set_friendly_name(f"{name}/lora_{suffix}")
    names = node.output(0).get_names()
    node.output(0).set_names(set())
    total.output(0).set_names(names)
    for reader in readers:
        reader.replace_source_output(total.output(0))


def _lazy(stored: StoredWeight, parts: dict[str, Part], name: str, pipeline: Pipeline) -> LazyWeight:
    shape = parts["codes"].shape
    return LazyWeight(pipeline, WeightEncoding(name, Layout.of(shape, (1,)), ADAPTER_SPEC, 0.0, stored=stored))


def _matrix(weight: LazyWeight, kind: ov.Type, lazy: bool, tells: bool) -> Any:
    """One adapter's chain, which ends in values of type `kind`."""
    name, parts = weight.name, weight.encoding.parts
    nodes = {part: _constant(weight, part, lazy, tells) for part in parts}
    for part, node in nodes.items():
        node.set_friendly_name(name if part == "codes" else f"{name}/{part}")
    chain = build_dequantization(ChainParts(**nodes), name, parts["codes"].shape)
    if chain.get_output_element_type(0) == kind:
        return chain
    last = ops.convert(chain, kind)
    last.set_friendly_name(f"{name}/as_{kind.get_type_name()}")
    protect_from_folding(last)
    return last


def _constant(weight: LazyWeight, part: str, lazy: bool, tells: bool) -> Any:
    return weight.constant(part, tells) if lazy else ov.op.Constant(weight.computed(part), shared_memory=True)
