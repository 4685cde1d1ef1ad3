"""Small models for the tests of this room, and ways to look inside a model with plain numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from ov_weight_compression.calibration.model_inputs import input_label
from ov_weight_compression.patterns import Weight, find_weights
from tests.models import constant, in_f32

VOCABULARY = 96
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


def _linear(x: ov.Node, out: int, name: str, dtype: str, scale: float = 0.15) -> ov.Node:
    columns = x.get_output_partial_shape(0)[-1].get_length()
    layer = op.matmul(x, in_f32(constant((out, columns), name, dtype, scale)), False, True)
    layer.set_friendly_name(f"layer_of_{name}")
    return layer


def _parameter(shape: Sequence[int], dtype: Any, name: str) -> ov.Node:
    node = op.parameter(shape, dtype, name=name)
    node.output(0).set_names({name})
    return node


def _cached(new: ov.Node, name: str, empty: ov.Node, beams: ov.Node) -> tuple[ov.Node, ov.Node]:
    """Keys or values joined to what a variable holds of the tokens before."""
    past = op.read_value(empty, name, ov.Type.f32, ov.PartialShape([-1, 2, -1, 16]))
    whole = op.concat([op.gather(past, beams, op.constant(np.int64(0))), new], 2)
    return whole, op.assign(whole, name)


def language_model(blocks: int = 2, dtype: str = "f32", *, batch: int = -1, length: int = -1) -> ov.Model:
    """A stateful transformer, 32 wide, with a table of 40 positions, as exporters write them."""
    ids = _parameter([batch, length], np.int64, "input_ids")
    mask = _parameter([batch, -1], np.int64, "attention_mask")
    positions = _parameter([batch, length], np.int64, "position_ids")
    beams = _parameter([batch], np.int32, "beam_idx")
    zero = op.constant(np.int64(0))
    x = op.add(
        op.gather(in_f32(constant((VOCABULARY, 32), "embedding", dtype, 0.8)), ids, zero),
        op.gather(in_f32(constant((40, 32), "positions", dtype, 0.3)), positions, zero),
    )
    rows = op.gather(op.shape_of(ids), op.constant(np.array([0])), zero)
    shape = op.concat([rows, op.constant(np.array([2, 0, 16]))], 0)
    empty = op.broadcast(op.constant(np.float32(0)), shape)
    total = op.gather(op.shape_of(mask), op.constant(np.int64(1)), zero)
    seen = op.less_equal(op.range(zero, total, op.constant(np.int64(1)), "i64"), op.unsqueeze(positions, [2]))
    bias = op.unsqueeze(op.select(seen, op.constant(np.float32(0)), op.constant(np.float32(-1e9))), [1])
    sinks = []
    for block in range(blocks):
        normed = op.mvn(x, [-1], True, 1e-5, "inside_sqrt")
        heads = []
        for part in "qkv":
            split = op.reshape(_linear(normed, 32, f"{part}_{block}", dtype), [0, 0, 2, 16], True)
            head = op.transpose(split, [0, 2, 1, 3])
            if part != "q":
                head, sink = _cached(head, f"{part}_cache_{block}", empty, beams)
                sinks.append(sink)
            heads.append(head)
        mixed = op.transpose(op.scaled_dot_product_attention(*heads, bias), [0, 2, 1, 3])
        x = op.add(x, _linear(op.reshape(mixed, [0, 0, 32], True), 32, f"o_{block}", dtype))
        normed = op.mvn(x, [-1], True, 1e-5, "inside_sqrt")
        gated = op.multiply(
            op.swish(_linear(normed, 64, f"gate_{block}", dtype)), _linear(normed, 64, f"up_{block}", dtype)
        )
        x = op.add(x, _linear(gated, 32, f"down_{block}", dtype))
    logits = _linear(op.mvn(x, [-1], True, 1e-5, "inside_sqrt"), VOCABULARY, "head", dtype, 0.5)
    return ov.Model([op.result(logits)], sinks, [ids, mask, positions, beams], "language")


def routed_experts(experts: int = 3, width: int = 32) -> ov.Model:
    """Every token goes to one expert, chosen by a router: `hidden`, a router, and "up_e", "down_e" for each expert."""
    x = _parameter([-1, width], np.float32, "x")
    hidden = _linear(x, width, "hidden", "f32")
    chosen = op.topk(_linear(hidden, experts, "router", "f32"), op.constant(np.int64(1)), 1, "max", "value")
    result = hidden
    for expert in range(experts):
        mine = op.equal(op.squeeze(chosen.output(1), [1]), op.constant(np.int32(expert)))
        rows = op.squeeze(op.non_zero(mine, "i64"), [0])
        taken = op.gather(hidden, rows, op.constant(np.int64(0)))
        made = _linear(op.relu(_linear(taken, 2 * width, f"up_{expert}", "f32")), width, f"down_{expert}", "f32")
        result = op.scatter_update(result, rows, made, op.constant(np.int64(0)))
    return ov.Model([op.result(_linear(result, 8, "last", "f32"))], [x], "experts")


def batched_experts(experts: int = 3, width: int = 32, *, tiled: bool = True) -> ov.Model:
    """Experts side by side in "up" `[e, width, 48]` and "down" `[e, 48, width]`; untiled, `up` reads one shared `x`."""
    x = _parameter([-1, width], np.float32, "x")
    wide = op.tile(op.unsqueeze(x, [0]), op.constant(np.array([experts if tiled else 1, 1, 1])))
    up = op.matmul(wide, constant((experts, width, 48), "up"), False, False)
    down = op.matmul(op.relu(up), constant((experts, 48, width), "down"), False, False)
    return ov.Model([op.result(down)], [x], "batched")


def weights_of(model: ov.Model) -> list[Weight]:
    return find_weights(model)[0]


def activations(
    model: ov.Model, weights: Iterable[Weight], windows: Iterable[Mapping[str, Any]]
) -> dict[str, list[np.ndarray]]:
    """What every MatMul of `weights` reads, window by window, from running the whole model with extra outputs."""
    copy = model.clone()
    by_name = {node.get_friendly_name(): node for node in copy.get_ordered_ops()}
    taps: dict[str, ov.Output] = {}
    turned: dict[str, bool] = {}
    for weight in weights:
        for consumer in weight.consumers:
            if consumer.node.get_type_name() == "MatMul":
                layer, other = by_name[consumer.name], 1 - consumer.port
                flags = layer.get_attributes()
                taps.setdefault(weight.name, layer.input_value(other))
                turned[weight.name] = flags["transpose_a"] if other == 0 else not flags["transpose_b"]
    results = {}
    for name, output in taps.items():
        results[name] = op.result(output)
    copy.add_results(list(results.values()))
    first = len(model.get_results())
    request = ov.Core().compile_model(copy, "CPU", EXACT).create_infer_request()
    ports = {input_label(node): port for port, node in enumerate(copy.get_parameters())}
    found: dict[str, list[np.ndarray]] = {name: [] for name in taps}
    for window in windows:
        request.reset_state()
        request.infer({ports[name]: array for name, array in window.items()})
        for number, name in enumerate(results):
            array = np.array(request.get_output_tensor(first + number).data)
            found[name].append(array.swapaxes(-1, -2) if turned[name] else array)
    return found


def with_constants(model: ov.Model, values: Mapping[str, np.ndarray]) -> ov.Model:
    """A copy of a model with other values in some of its constants."""
    copy = model.clone()
    for node in copy.get_ordered_ops():
        if node.get_friendly_name() in values and node.get_type_name() == "Constant":
            dtype = node.get_output_element_type(0).to_dtype()
            other = op.constant(values[node.get_friendly_name()].astype(dtype))
            for port in list(node.output(0).get_target_inputs()):
                port.replace_source_output(other.output(0))
    return copy
