"""Put adapters into the graph: two thin MatMuls beside a layer, and an Add that its readers read in its place.

    x ─┬─▸ layer ───────────────────────────────┬─▸ Add ─▸ readers
       └─▸ MatMul ◂─ A ─▸ MatMul ◂─ B ──────────┘

The layer keeps its friendly name; its tensor names, by which a model's outputs are known, go to the Add. The adapters
are weights like others: codes of 8 bits with a decompression chain, `<layer>/lora_A` and `<layer>/lora_B`.
"""

from __future__ import annotations

from typing import Any

import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.ir_utils.dequantization import ChainParts, build_dequantization, protect_from_folding
from ov_weight_compression.ir_utils.layout import Layout
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight, Part
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.passes.encode_job import WeightJob
from ov_weight_compression.passes.lora import StoredAdapters, adapter_parts
from ov_weight_compression.passes.stored import StoredWeight
from ov_weight_compression.patterns import Weight
from ov_weight_compression.quantization.layerwise.lora import ADAPTER_SPEC

__all__ = ["attach"]


def attach(weight: Weight, adapters: StoredAdapters, pipeline: Pipeline, lazy: bool, tells: bool = False) -> None:
    """Add adapters beside the only layer of `weight`, whose channels may be the last dimension or the one before.

    With `lazy` the pipeline reads the constants from where the adapters are kept when the model is saved or compiled.
    `tells`: by these adapters OpenVINO recognises that the model is compressed (see `telltale`).
    """
    layer, meets, x = weight.consumers[0].node, weight.consumers[0].activation, weight.consumers[0].input
    assert meets is not None, "see lora.obstacle"
    assert x is not None
    name, last = str(layer.get_friendly_name()), meets.reduction == (-1,)
    parts = adapter_parts(weight, adapters.down.codes.shape[0])
    down, up = (
        _matrix(_lazy(stored, side, f"{name}/lora_{letter}", pipeline), x.get_element_type(), lazy, tells)
        for stored, side, letter in zip((adapters.down, adapters.up), parts, "AB", strict=True)
    )
    if meets.output == (-1,):
        thin = ops.matmul(x, down, not last, True)
        correction = ops.matmul(thin, up, False, True)
    else:
        thin = ops.matmul(down, x, False, last)
        correction = ops.matmul(up, thin, False, False)
    readers = list(layer.output(0).get_target_inputs())
    total = ops.add(layer, correction)
    for node, suffix in ((thin, "down"), (correction, "up"), (total, "add")):
        node.set_friendly_name(f"{name}/lora_{suffix}")
    names = layer.output(0).get_names()
    layer.output(0).set_names(set())
    total.output(0).set_names(names)
    for reader in readers:
        reader.replace_source_output(total.output(0))


def _lazy(stored: StoredWeight, parts: dict[str, Part], name: str, pipeline: Pipeline) -> LazyWeight:
    shape = parts["codes"].shape
    return LazyWeight(pipeline, WeightJob(name, Layout.of(shape, (1,)), ADAPTER_SPEC, 0.0, stored=stored))


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
