"""LoRA: adapters beside layers, a caller's own or such as carry what rounding has lost where it matters most.

    x ─┬─▸ layer ───────────────────────────────┬─▸ Add ─▸ readers
       └─▸ MatMul ◂─ A ─▸ MatMul ◂─ B ──────────┘

    y = x Wᵀ            becomes            y = x Qᵀ + (x Aᵀ) Bᵀ,        A [rank, in], B [rows, rank]

The layer keeps its friendly name; its tensor names, by which a model's outputs are known, go to the Add. `AddAdapters`
is a pass for adapters that a caller has. LoRA correction fits them: codes of 8 bits with a decompression chain,
`<layer>/lora_A` and `<layer>/lora_B`, beside each layer that multiplies its input with a weight of 4 bits or fewer that
it has to itself. For everything else the report says why not.

**The fit**, with H of the layer's input:

    min over A, B of   tr((E − B A) H (E − B A)ᵀ),   E = W − Q

For a given B the best A is `B⁺ E` whatever H is, for a given A the best B is `E H Aᵀ (A H Aᵀ)⁻¹`. The best pair spans
the leading left singular vectors of `E H^½`, which a few subspace iterations find. The adapters are stored in 8 bits,
so the rounds alternate: round A, fit B to it, round B, fit A to it; the best of all rounds is returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import ModelPass

from ov_weight_compression.ir_utils.dequantization import ChainParts, build_dequantization, protect_from_folding
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.file_io import Spool
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.weight_source import Layout
from ov_weight_compression.ir_utils.worker_pool import Part, Pipeline
from ov_weight_compression.passes.encoding import StoredWeight, WeightEncoding, keep
from ov_weight_compression.passes.plan import Algorithm, Method, Plan, stored_parts
from ov_weight_compression.patterns import Consumer, Kind, Roles, Weight, find_compressed, find_weights, parse_roles
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, Encoded, Spec
from ov_weight_compression.quantization.gptq import Objective
from ov_weight_compression.quantization.reference import unusable

ADAPTER_SPEC = Spec(FORMATS["int8_asym"])
ROUNDS = 2
_ITERATIONS = 3
_EXTRA = 8
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class Adapters:
    """Both matrices as stored by `ADAPTER_SPEC`, a scale per row, and what is left."""

    down: Encoded  # A [rank, in]
    up: Encoded  # B [rows, rank]
    left: float  # the objective as a share of that without adapters


def lora_adapters(missing: Float32, gram: Float32, rank: int, *, rounds: int | None = None) -> Adapters | None:
    """Fit adapters to what a layer's weight has lost.

    Args:
        missing: E [rows, in], the weight (or its target) less its stored values.
        gram: H [in, in] of the layer's input, in any scale.
        rank: of the correction; at most min(rows, in) is of use.
        rounds: alternations of rounding one matrix and fitting the other; by default 2.

    Returns:
        The adapters, or None where nothing is missing or the input is always zero.
    """
    rank = min(rank, *missing.shape)
    total = _cost(missing, gram)
    if not total > 0:
        return None
    up = _leading(missing, gram, rank)
    best: Adapters | None = None
    for _ in range(max(ROUNDS if rounds is None else rounds, 1)):
        down, down_values = _rounded(_balanced(_solve(up.T @ up, up.T @ missing), up))
        weighted = np.asarray(down_values @ gram, dtype=np.float32)
        inner, outer = weighted @ down_values.T, missing @ weighted.T
        up_stored, up = _rounded(_solve(inner, outer.T).T)
        saved = np.sum(up * (2 * outer - up @ inner), dtype=np.float64)
        left = max(1 - float(saved) / total, 0.0)
        if best is None or left < best.left:
            best = Adapters(down, up_stored, left)
    return best


def _cost(missing: Float32, gram: Float32) -> float:
    """`tr(E H Eᵀ)`."""
    pieces = (missing[begin : begin + _ROWS] for begin in range(0, len(missing), _ROWS))
    return sum(float(np.einsum("ri,ri->", piece @ gram, piece, dtype=np.float64)) for piece in pieces)


def _balanced(down: Float32, up: Float32) -> Float32:
    """A times a power of two, so that the B that fits it is as large: f16 scales hold neither tiny nor huge values."""
    ratio = float(np.abs(up).max()) / max(float(np.abs(down).max()), 1e-30)
    if not 0 < ratio < np.inf:  # nothing to balance: what is missing is too small for its squares
        return down
    return np.asarray(np.ldexp(down, round(np.log2(ratio) / 2)), dtype=np.float32)


def _leading(missing: Float32, gram: Float32, rank: int) -> Float32:
    """[rows, rank] basis of the leading left singular vectors of `E H^½`, that is eigenvectors of `E H Eᵀ`."""
    columns = min(rank + _EXTRA, *missing.shape)
    basis = np.random.default_rng(0).standard_normal((len(missing), columns)).astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(missing @ ((basis.T @ missing) @ gram).T)[0]
    small = basis.T @ missing
    _, vectors = np.linalg.eigh(small @ gram @ small.T)
    return np.asarray(basis @ vectors[:, ::-1][:, :rank])


def _solve(matrix: Float32, right: Float32) -> Float32:
    """`matrix⁻¹ right` for a symmetric positive matrix that may be singular."""
    ridge = 1e-6 * float(np.trace(matrix)) / len(matrix)
    return np.asarray(np.linalg.solve(matrix + np.float32(ridge or 1.0) * np.eye(len(matrix), dtype=np.float32), right))


def _rounded(matrix: Float32) -> tuple[Encoded, Float32]:
    encoded = encode_rows(np.ascontiguousarray(matrix), ADAPTER_SPEC)
    return encoded, decode_rows(encoded, ADAPTER_SPEC)


_USUAL = 64
"""The exponent of 2 up to which a Gram matrix is used as it is."""


@dataclass(frozen=True)
class StoredAdapters:
    """Both matrices of one layer in a spool."""

    down: StoredWeight
    """A [rank, in]."""
    up: StoredWeight
    """B [rows, rank]."""
    left: float
    """The layer's output error on the data, as a share of that without adapters."""

    def values(self) -> Float32:
        """B A, [rows, in], as the device computes it."""
        down, up = (decode_rows(side.everything(), ADAPTER_SPEC) for side in (self.down, self.up))
        return up @ down


@dataclass(frozen=True)
class Correction:
    """One line of the report: a weight of few bits, and the adapters beside its layer or why there are none."""

    name: str
    """The weight's."""
    layer: str
    rank: int
    """0 where there are none."""
    bytes: int
    left: float | None = None
    """The layer's output error on the data, as a share of that without adapters; None before anything was computed."""
    reason: str = ""


def obstacle(weight: Weight) -> str:
    """Why no adapters can stand beside a weight's layer; empty where they can."""
    layer = weight.consumers[0]
    if weight.body:
        return f"inside '{weight.body}', where its input is not seen"
    if len(weight.consumers) > 1:
        return "several layers read the weight"
    if reason := _layer_obstacle(layer):
        return reason
    if sum(weight.shape[axis] > 1 for axis in (*weight.channel_axes, *weight.batch_axes)) > 1:
        return "its output channels lie on several axes"
    if weight.input_axes != weight.reduction_axes:
        return "its input channels are stored in another order"
    return ""


def _layer_obstacle(layer: Consumer) -> str:
    """Why no adapters can stand beside a layer, whatever its weight; empty where they can."""
    meets = layer.role.activation
    if layer.role.kind is Kind.EXPERTS:
        return "experts side by side"
    if meets is None:
        return f"a {layer.node.get_type_name()} reads the weight"
    if any(dims not in ((-1,), (-2,)) for dims in (meets.reduction, meets.output)):
        return "its channels are not one of the last two dimensions"
    return ""


def _adapter_parts(weight: Weight, rank: int) -> tuple[dict[str, Part], dict[str, Part]]:
    """What A and B are stored as, by the part's name."""
    rank = min(rank, weight.rows, weight.columns)
    shapes = ((rank, weight.columns), (weight.rows, rank))
    down, up = (stored_parts(Layout.of(shape, (1,)), ADAPTER_SPEC) for shape in shapes)
    return down, up


def fit_adapters(
    weight: Float32, values: Float32, known: Objective, method: Method, spool: Spool
) -> StoredAdapters | None:
    """Adapters for a weight `[rows, in]` that is stored as `values`; None where they would correct nothing."""
    gram = known.gram
    size = float(np.diagonal(gram).max())
    if not size > 0:
        return None
    if not 2.0**-_USUAL < size < 2.0**_USUAL:  # its products with weights may leave the range of f32
        gram = np.ldexp(gram, -int(np.log2(size)))
    with np.errstate(over="ignore", invalid="ignore"):
        found = lora_adapters(known.target(weight) - values, gram, method.lora_rank, rounds=method.tuning.lora_rounds)
    if found is None or any(unusable(side.scale, ADAPTER_SPEC.scale_type) for side in (found.down, found.up)):
        return None
    return StoredAdapters(keep(found.down, spool), keep(found.up, spool), found.left)


def corrections(plan: Plan) -> tuple[Correction, ...]:
    """The report's lines: what will be there or, where the data have been seen, what is."""
    rank = plan.method.lora_rank
    return tuple(_line(one.weight, rank, plan.adapters) for one in plan.weights if Algorithm.LORA in one.algorithms)


def _line(weight: Weight, rank: int, found: Mapping[str, StoredAdapters | None] | None) -> Correction:
    layer, reason, left = weight.consumers[0].name, obstacle(weight), None
    if not reason and found is not None:
        adapters = found.get(weight.name)
        if adapters is None:
            reason = "nothing to correct" if weight.name in found else "the data never reached it"
        else:
            left = adapters.left
    if reason:
        return Correction(weight.name, layer, 0, 0, None, reason)
    parts = _adapter_parts(weight, rank)
    size = sum(part.nbytes for side in parts for part in side.values())
    return Correction(weight.name, layer, min(rank, weight.rows, weight.columns), size, left)


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
    if layer is None:
        raise OptionError(f"adapters: the model has no layer {shown(name)} with a weight")
    reason = _layer_obstacle(layer)
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

    Where no weight tells OpenVINO that the model is compressed (see `rewrite`), the first adapters do.
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
    `tells`: by these adapters OpenVINO recognises that the model is compressed (see `rewrite`).
    """
    layer = weight.consumers[0]
    assert layer.input is not None, "see `obstacle`"
    kind = layer.input.get_element_type()
    parts = _adapter_parts(weight, adapters.down.codes.shape[0])
    matrices = []
    for stored, side, letter in zip((adapters.down, adapters.up), parts, "AB", strict=True):
        layout = Layout.of(side["codes"].shape, (1,))
        encoding = WeightEncoding(f"{layer.name}/lora_{letter}", layout, ADAPTER_SPEC, 0.0, stored=stored)
        matrices.append(_matrix(LazyWeight(pipeline, encoding), kind, lazy, tells))
    _put_beside(layer, *matrices)


def _put_beside(layer: Consumer, down: Any, up: Any) -> None:
    """Let what reads a layer read the sum of its output and `x · Aᵀ · Bᵀ`, for nodes A `[rank, in]` and B `[out, rank]`
    of the activation's type."""
    node, meets, x = layer.node, layer.role.activation, layer.input
    assert meets is not None, "see `_layer_obstacle`"
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


def _matrix(weight: LazyWeight, kind: ov.Type, lazy: bool, tells: bool) -> Any:
    """One adapter's chain, which ends in values of type `kind`."""
    name, parts = weight.encoding.name, weight.encoding.parts
    nodes: dict[str, Any] = {}
    for part in parts:
        node = weight.constant(part, tells) if lazy else ov.op.Constant(weight.computed(part), shared_memory=True)
        nodes[part] = node
        node.set_friendly_name(name if part == "codes" else f"{name}/{part}")
    chain = build_dequantization(ChainParts(**nodes), name, parts["codes"].shape)
    if chain.get_output_element_type(0) == kind:
        return chain
    last = ops.convert(chain, kind)
    last.set_friendly_name(f"{name}/as_{kind.get_type_name()}")
    protect_from_folding(last)
    return last
