"""Whether a device computes what a compressed model's constants say, layer by layer.

A plugin that misreads codes gives no error, only other numbers. So each layer (or one of each kind) is cut out of the
model with its weight as it is stored, compiled alone, and run on random input beside numpy on the stored constants. One
layer is there at a time, and of its weight as floats a piece.

It is run with the device's arithmetic as exact as it gets, in bf16 where the device has it, and as deployed: each has
kernels of its own. Differences are measured in units of what an output is expected to be, `‖x‖ · ‖w‖ / √n` for a sum of
n products, so that they do not depend on scales, and what each arithmetic explains is known:

    f32, activations not quantised           0.01   sums in another order (1e-5), chains that are folded in f16
                                                    (1e-3; 4e-3 with zero points, which the scale meets first)
    bf16, activations not quantised          0.06   8 bits of both factors; 0.017 seen
    as deployed                              0.12   activations in 8 bits, groups of 32; 0.03 seen

A weight whose codes are read wrongly differs by 0.1 to 1 and more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod, sqrt
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.weight_source import Slab, WeightSource, source_at
from ov_weight_compression.passes.device_rules import CHECKED, release_of
from ov_weight_compression.patterns import CompressedWeight, Consumer, Kind, Roles, find_compressed
from ov_weight_compression.patterns.device_layer import layer_kind, single_layer

RunLayer = Callable[[ov.Model, Mapping[str, str], Sequence[Array]], Array]
"""Runs a model of one layer with properties and inputs, and returns its output."""

_Make = Callable[[Any, Consumer, int, np.random.Generator], "Array | None"]
"""An input for a parameter of a cut-out layer, with so many rows."""
_Expect = Callable[[Sequence[Array], Consumer], tuple[Array, Array]]
"""A layer's output by numpy, and the unit that each element's difference is measured in."""

_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
_ARITHMETIC: tuple[tuple[str, dict[str, str], float], ...] = (
    ("f32", _EXACT, 0.01),
    ("bf16", {**_EXACT, "INFERENCE_PRECISION_HINT": "bf16"}, 0.06),
    ("as deployed", {}, 0.12),
)
_ROWS = (1, 5)
"""Rows of activations: CPUs take other kernels up to four rows than beyond."""
_PIECE = 1 << 22


@dataclass(frozen=True)
class Check:
    """One layer, run and compared."""

    layer: str
    """Friendly name of the operation."""
    weight: str
    operation: str
    format: str
    """What the weight is stored as, in words: "i4, group 48"."""
    shape: tuple[int, ...]
    alike: int
    """Layers of the model that it stands for, itself included."""
    arithmetic: str = ""
    """That of the largest difference beyond what it explains; of the largest difference, where none is."""
    difference: float = 0.0
    """In units of what an output is expected to be."""
    limit: float = 0.0
    """What the arithmetic explains."""
    reason: str = ""
    """Why it could not be run, or not be compared."""
    failed: bool = False
    """The device cannot run the layer."""

    @property
    def wrong(self) -> bool:
        """Whether the device cannot run it, or computes something else."""
        return self.failed or not self.difference <= self.limit

    def __str__(self) -> str:
        what = f"{self.layer} ({self.operation}, {self.format}, {'×'.join(map(str, self.shape))})"
        if self.reason:
            return f"{what}: {self.reason}"
        said = "differs by" if self.wrong else "differs by no more than"
        return f"{what}: {said} {self.difference:.2g} in {self.arithmetic}, which explains {self.limit:g}"


@dataclass(frozen=True)
class Verification:
    """Every layer that was run on a device."""

    device: str
    openvino: str
    checks: tuple[Check, ...]

    @property
    def wrong(self) -> tuple[Check, ...]:
        """Layers that the device cannot run or computes something else in."""
        return tuple(check for check in self.checks if check.wrong)

    @property
    def ok(self) -> bool:
        """Whether there are none."""
        return not self.wrong

    @property
    def skipped(self) -> tuple[Check, ...]:
        """Layers that could not be compared."""
        return tuple(check for check in self.checks if check.reason and not check.failed)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        rows = [{**asdict(check), "wrong": check.wrong} for check in self.checks]
        return {"device": self.device, "openvino": self.openvino, "ok": self.ok, "layers": rows}

    def __str__(self) -> str:
        layers = sum(check.alike for check in self.checks)
        ran = len(self.checks) - len(self.skipped)
        if not self.checks:
            return "no layer reads a compressed weight: nothing to verify"
        told = f"{ran} of {layers} layers with compressed weights run"
        if any(check.alike > 1 for check in self.checks):
            told += ", one of each kind"
        lines = [f"{self.device}, OpenVINO {self.openvino}: {told}"]
        lines += [f"WRONG: {check}" for check in self.wrong]
        lines += [f"not compared: {check}" for check in self.skipped]
        if self.ok and ran:
            lines.append("all compute what the stored weights say")
        if release_of(self.openvino) not in CHECKED:
            known = ", ".join(CHECKED)
            lines.append(f"what CPUs misread was measured with OpenVINO {known}; of this version only what is above is")
        return "\n".join(lines)


def verify(
    model: ov.Model,
    device: str = "CPU",
    *,
    every: bool = False,
    run: RunLayer | None = None,
    roles: Roles | None = None,
) -> Verification:
    """Run the layers with compressed weights on a device, and compare with numpy on the stored constants.

        print(verify(openvino.Core().read_model("int4/openvino_model.xml")))

    Args:
        model: any model; it is not changed.
        device: a name that OpenVINO knows.
        every: run each layer, not one of each kind (operation, format, group, channels).
        run: what runs a layer in place of the device.
        roles: what operations of your own make of their weights, as `WeightCompression` takes it.

    Raises:
        OptionError: there is no such device.
    """
    arithmetic = _arithmetic(device) if run is None else _ARITHMETIC
    runner = run or _runner(device)
    weights = find_compressed(model.clone(), roles)
    kinds: dict[object, list[tuple[CompressedWeight, Consumer]]] = {}
    for number, weight in enumerate(weights):
        for use, consumer in enumerate(weight.consumers):
            key = (number, use) if every else (*layer_kind(weight, consumer), _size_class(weight))
            kinds.setdefault(key, []).append((weight, consumer))
    checks = [
        _check(*min(group, key=lambda member: member[0].elements), len(group), arithmetic, runner)
        for group in kinds.values()
    ]
    return Verification(device, ov.get_version(), tuple(checks))


def _size_class(weight: CompressedWeight) -> tuple[int, ...]:
    """Input channels, and whether there is but one output channel: what a kernel is chosen by."""
    columns = prod(weight.shape[axis] for axis in weight.reduction_axes)
    return columns, min(weight.elements // max(1, columns), 2)


def _arithmetic(device: str) -> tuple[tuple[str, dict[str, str], float], ...]:
    core = ov.Core()
    available = core.available_devices
    if device.split(".")[0] not in {name.split(".")[0] for name in available}:
        raise OptionError(f"device={device!r}: OpenVINO finds no such device here, it finds {', '.join(available)}")
    known = set(core.get_property(device, "SUPPORTED_PROPERTIES"))
    has_bf16 = "BF16" in core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    return tuple(
        (name, {key: value for key, value in properties.items() if key in known}, limit)
        for name, properties, limit in _ARITHMETIC
        if name != "bf16" or has_bf16
    )


def _runner(device: str) -> RunLayer:
    core = ov.Core()

    def run(model: ov.Model, properties: Mapping[str, str], inputs: Sequence[Array]) -> Array:
        return np.array(core.compile_model(model, device, dict(properties))(list(inputs))[0])

    return run


def _check(
    weight: CompressedWeight,
    consumer: Consumer,
    alike: int,
    arithmetic: Sequence[tuple[str, dict[str, str], float]],
    run: RunLayer,
) -> Check:
    operation = consumer.node.get_type_name()
    row = Check(consumer.name, weight.name, operation, weight.format, weight.shape, alike)
    way = _way(consumer)
    if way is None:
        return replace(row, reason=f"a {operation} is not compared")
    make, expect = way
    worst: tuple[float, str, float] = (0.0, "", 1.0)
    layer = single_layer(consumer)
    rng = np.random.default_rng(0)
    for rows in _ROWS:
        made = [make(parameter, consumer, rows, rng) for parameter in layer.get_parameters()]
        inputs = [one for one in made if one is not None]
        if len(inputs) < len(made):
            return replace(row, reason="its inputs' shapes are not known")
        layer.validate_nodes_and_infer_types()
        expected, unit = expect(inputs, consumer)
        for name, properties, limit in arithmetic:
            try:
                found = run(layer, properties, inputs).astype(np.float64)
            except RuntimeError as error:
                return replace(row, failed=True, reason=f"the device cannot run it in {name}: {_last_line(error)}")
            off = np.abs(found.reshape(expected.shape) - expected) / unit if found.size == expected.size else np.inf
            largest = float(np.max(off, initial=0.0)) if np.all(np.isfinite(off)) else float("inf")
            if largest / limit >= worst[0] / worst[2]:
                worst = (largest, name, limit)
    return replace(row, difference=worst[0], arithmetic=worst[1], limit=worst[2])


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:200]


def _way(consumer: Consumer) -> tuple[_Make, _Expect] | None:
    """How inputs of a layer are made up, and its output computed by numpy; None where that is not known."""
    role, x = consumer.role, consumer.input
    if role.kind is Kind.GATHER:
        return _indices, _gather
    if consumer.node.get_type_name() in ("Convolution", "GroupConvolution"):
        return _image, _convolution
    if role.activation is None or x is None or len(role.channel) != 1 or len(role.reduction) != 1:
        return None
    rank = x.get_partial_shape().rank
    if role.kind is Kind.EXPERTS and rank.is_static and rank.get_length() == 2 and len(role.activation.batch) == 1:
        return _grouped, _grouped_matmul
    in_front = tuple(range(-2 - len(role.batch), -2))  # where numpy's products have them
    return (_activations, _product) if role.activation.batch == in_front else None


def _stored(consumer: Consumer) -> Any:
    return consumer.node.input_value(consumer.port)


def _source(consumer: Consumer) -> WeightSource:
    """The weight as its layer reads it, as `[all other axes, last axis]`."""
    return source_at(_stored(consumer).get_node())


def _whole(consumer: Consumer) -> Array:
    """Every value, float64 in the shape that the layer reads."""
    source = _source(consumer)
    return source.layout.from_matrix(source.read_all()).astype(np.float64)


def _activations(parameter: Any, consumer: Consumer, rows: int, rng: np.random.Generator) -> Array | None:
    """`[1, …, rows, n]`, or with its channels elsewhere, where the model leaves sizes open."""
    shape, role = parameter.get_partial_shape(), consumer.role
    if shape.rank.is_dynamic or len(shape) == 0 or role.activation is None:
        return None
    sizes = [dim.get_length() if dim.is_static else 1 for dim in shape]
    (channels,) = (len(shape) + dim for dim in role.activation.reduction)
    if shape[channels].is_dynamic:
        sizes[channels] = int(_stored(consumer).get_shape()[role.reduction[0]])
    others = [place for place in range(len(shape)) if place != channels]
    if others and shape[others[-1]].is_dynamic:
        sizes[others[-1]] = rows
    return rng.standard_normal(sizes).astype(_dtype(parameter))


def _image(parameter: Any, consumer: Consumer, rows: int, rng: np.random.Generator) -> Array | None:
    """`[rows, channels, …]`, as small as the kernel and its padding allow."""
    shape = parameter.get_partial_shape()
    if shape.rank.is_dynamic:
        return None
    attributes, weight = consumer.node.get_attributes(), _stored(consumer).get_shape()
    kernel = weight[-(len(shape) - 2) :]
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, attributes["dilations"], strict=True)]
    channels = weight[1] if len(weight) == len(shape) else weight[0] * weight[2]
    sizes = [span + 2 * step for span, step in zip(spans, attributes["strides"], strict=True)]
    parameter.set_partial_shape(ov.PartialShape([rows, channels, *sizes]))
    return rng.standard_normal([rows, channels, *sizes]).astype(_dtype(parameter))


def _dtype(parameter: Any) -> Any:
    return parameter.get_element_type().to_dtype()


def _indices(parameter: Any, consumer: Consumer, rows: int, rng: np.random.Generator) -> Array | None:
    shape = parameter.get_partial_shape()
    if shape.rank.is_dynamic:
        return None
    sizes = [dim.get_length() if dim.is_static else rows for dim in shape]
    return rng.integers(0, _stored(consumer).get_shape()[0], sizes).astype(_dtype(parameter))


def _grouped(parameter: Any, consumer: Consumer, rows: int, rng: np.random.Generator) -> Array | None:
    """Activations `[tokens, n]`, and where each expert's end."""
    experts, _, columns = _stored(consumer).get_shape()
    if parameter.get_element_type().is_integral():
        return np.cumsum(np.full(experts, rows)).astype(_dtype(parameter))
    if len(parameter.get_partial_shape()) != 2 or parameter.get_partial_shape()[0].is_static:
        return None
    return rng.standard_normal((experts * rows, columns)).astype(_dtype(parameter))


def _product(inputs: Sequence[Array], consumer: Consumer) -> tuple[Array, Array]:
    """`x · wᵀ` over the dimensions that the role names, and what each of its elements is expected to be."""
    role, stored = consumer.role, _stored(consumer)
    assert role.activation is not None
    x = np.moveaxis(inputs[0].astype(np.float64), role.activation.reduction[0], -1)
    if len(stored.get_shape()) > 2:
        order = (*role.batch, *role.reduction, *role.channel)
        values = _whole(consumer).transpose(order)
        expected = x @ values
        unit = _unit(x, np.sqrt(np.square(values).sum(-2, keepdims=True)))
    else:
        out = stored.get_shape()[role.channel[0]]
        expected, squares = np.zeros((*x.shape[:-1], out)), np.zeros(out)
        for slab, values in _source(consumer).pieces(_PIECE):
            rows, piece = slice(slab.start, slab.stop), values.astype(np.float64)
            if role.channel < role.reduction:
                expected[..., rows] = x @ piece.T
                squares[rows] = np.square(piece).sum(1)
            else:
                expected += x[..., rows] @ piece
                squares += np.square(piece).sum(0)
        unit = _unit(x, np.sqrt(squares))
    place = role.activation.output[0]
    return np.moveaxis(expected, -1, place), np.moveaxis(unit, -1, place)


def _unit(x: Array, norms: Array) -> Array:
    """What each output is expected to be, if products are independent; for channels of zeros a small part of the
    others'."""
    size = np.maximum(norms, 1e-3 * norms.max(initial=1e-30))
    unit: Array = np.linalg.norm(x, axis=-1, keepdims=True) * size / sqrt(x.shape[-1])
    return unit


def _gather(inputs: Sequence[Array], consumer: Consumer) -> tuple[Array, Array]:
    (indices,), source = inputs, _source(consumer)
    entries, *entry = source.layout.shape
    size = source.layout.rows // entries
    starts = [int(index) * size for index in indices.reshape(-1)]
    rows = [source.read(Slab(start, start + size, (slice(start, start + size),))) for start in starts]
    found = np.stack(rows).astype(np.float64).reshape(*indices.shape, *entry)
    return found, np.full(1, max(float(np.abs(found).max(initial=0.0)), 1e-30))


def _grouped_matmul(inputs: Sequence[Array], consumer: Consumer) -> tuple[Array, Array]:
    x, ends = (one for one in sorted(inputs, key=lambda one: one.ndim, reverse=True))
    values = _whole(consumer)
    starts = [0, *ends[:-1]]
    blocks = [x[a:b].astype(np.float64) for a, b in zip(starts, ends, strict=True)]
    expected = np.concatenate([block @ own.T for block, own in zip(blocks, values, strict=True)])
    units = [_unit(block, np.linalg.norm(own, axis=1)) for block, own in zip(blocks, values, strict=True)]
    return expected, np.concatenate(units)


def _convolution(inputs: Sequence[Array], consumer: Consumer) -> tuple[Array, Array]:
    (x,), attributes = (one.astype(np.float64) for one in inputs), consumer.node.get_attributes()
    values = _whole(consumer)
    values = values[None] if values.ndim == x.ndim else values  # [groups, out, in, …]
    (groups, out, taken), kernel = values.shape[:3], values.shape[3:]
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, attributes["dilations"], strict=True)]
    x = np.pad(x, [(0, 0), (0, 0), *_padding(attributes, x.shape[2:], spans)])
    windows = np.lib.stride_tricks.sliding_window_view(x, spans, tuple(range(2, x.ndim)))
    steps = [slice(None, None, step) for step in (*attributes["strides"], *attributes["dilations"])]
    windows = windows[(slice(None), slice(None), *steps)]
    places = windows.shape[2 : x.ndim]
    columns = windows.reshape(len(x), groups, taken, prod(places), -1).swapaxes(2, 3)
    columns, weights = columns.reshape(len(x), groups, prod(places), -1), values.reshape(groups, out, -1)
    expected = np.einsum("ngpk,gok->ngop", columns, weights)
    unit = np.linalg.norm(columns, axis=-1)[:, :, None] * np.linalg.norm(weights, axis=-1)[..., None]
    unit = np.maximum(unit, 1e-3 * unit.max(initial=1e-30)) / sqrt(weights.shape[-1])
    shape = (len(x), groups * out, *places)
    return expected.reshape(shape), unit.reshape(shape)


def _padding(attributes: Mapping[str, Any], sizes: Sequence[int], spans: Sequence[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each of the last dimensions."""
    kind = attributes["auto_pad"]
    if kind == "explicit":
        return list(zip(attributes["pads_begin"], attributes["pads_end"], strict=True))
    if kind == "valid":
        return [(0, 0) for _ in sizes]
    found = []
    for size, span, step in zip(sizes, spans, attributes["strides"], strict=True):
        needed = max(0, ((size - 1) // step) * step + span - size)
        less, more = needed // 2, needed - needed // 2
        found.append((less, more) if kind == "same_upper" else (more, less))
    return found
