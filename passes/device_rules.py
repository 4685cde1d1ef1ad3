"""What devices are known to execute compressed, and what a weight gets instead where they do not.

A mode is one thing and what a device executes is another: a weight whose codes the plugin has no kernel for is expanded
to floats when the model is compiled. The file is smaller then, but neither memory nor time is saved at run time.
What is known is in `ir_utils.device_facts`; `ov-compress inspect --device` looks at the device itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from ov_weight_compression.ir_utils.device_facts import (
    CONVOLUTION,
    EXECUTED,
    EXPERT_STORAGE,
    EXPERTS,
    FIRST_INPUT,
    GATHER,
    GROUPED_MATMUL,
    MATMUL,
    OTHER_OPERATION,
    TILED_EXPERTS,
    misread,
    refused,
)
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.passes.modes import Device, Mode
from ov_weight_compression.passes.pointwise import pointwise_problem
from ov_weight_compression.patterns import Consumer, Kind, Weight
from ov_weight_compression.patterns.experts import expert_blocks, tiled_block_of
from ov_weight_compression.patterns.graphs import dimensions
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Format

__all__ = ["Variant", "device_warnings", "executed_variant", "layer_of", "misreading", "refusal", "runs_from_codes"]

_SINGLE = "MatMul of a single 3-D weight"
_MEASURED = {
    Device.CPU: "measured with OpenVINO 2026.4",
    Device.GPU: "by OpenVINO's documentation",
    Device.NPU: "by OpenVINO's documentation",
}


@dataclass(frozen=True)
class Variant:
    """What a weight gets instead of a format that its device would expand."""

    mode: Mode
    group: int
    reason: str


def executed_variant(device: Device | None, weight: Weight, format: Format, group: int) -> Variant | None:
    """The format nearest to `format` that the device executes in every layer of the weight; None where the device
    executes `format` itself, or is not known to execute anything for this weight, or none is named.

    Formats of four bits and fewer become int4_sym, which takes as many bytes as nf4 and fp4 do, in the same groups (32
    in place of the fixed groups of mxfp4 and nvfp4, 128 where there are none); those of eight bits int8_sym. Experts
    side by side get integers whatever the device.
    """
    if weight.kind is Kind.EXPERTS and _storage(format) not in EXPERT_STORAGE:
        mode, size = _nearest(format, group)[0]
        return Variant(mode, size, f"experts run from integers of 4 and 8 bits, {format.name} would be expanded")
    layer = None if device is None else _expanding_layer(device, weight, format)
    if device is None or layer is None:
        return None
    for mode, size in _nearest(format, group):
        if _expanding_layer(device, weight, FORMATS[mode.value]) is None:
            return Variant(mode, size, f"{device.value} would expand {format.name} in a {layer}")
    return None


def _nearest(format: Format, group: int) -> list[tuple[Mode, int]]:
    """The integers that may stand for a format, and their groups, the nearest first."""
    candidates = []
    if format.bits <= 4:
        own = 32 if format.fixed_group else FORMATS["int4_sym"].default_group if group == PER_CHANNEL else group
        candidates = [(Mode.INT4_SYM, group if format.name == "int4_asym" else own)]
    return [*candidates, (Mode.INT8_SYM, PER_CHANNEL)]


def misreading(device: Device | None, weight: Weight, format: Format, group: int) -> str | None:
    """Why a CPU computes something else in one of the weight's layers from this format than its codes say; None where
    it does not, or where another device is named."""
    if device not in (None, Device.CPU) or format.codebook_type is not None:
        return None
    layers = (MATMUL if layer_of(use) == _SINGLE else layer_of(use) for use in weight.consumers)  # it runs as a matrix
    found = (misread(layer, format.storage, group, weight.columns, weight.rows) for layer in layers)
    return next((reason for reason in found if reason is not None), None)


def refusal(device: Device | None, weight: Weight, format: Format, group: int) -> str | None:
    """Why a CPU does not take the weight for what it is, with codes of this format; None where it does, or where
    another device is named.

    - It does not compile a GroupedMatMul of a single expert: it takes the weight for a matrix.
    - It takes other axes for those of several weights side by side, where a Transpose puts them first.
    - A MatMul whose weight has leading ones and a scale for each channel: with four dimensions or more it does not
      compile it; with three it leaves the one out of the output's shape where the activation has fewer dimensions.
    - Convolutions of one tap, see `pointwise`.
    """
    if device not in (None, Device.CPU) or format.codebook_type is not None:
        return None
    batch = prod(weight.shape[axis] for axis in weight.batch_axes)
    for use in weight.consumers:
        if reason := refused(layer_of(use), format.storage, batch):
            return reason
        if use.kind is Kind.EXPERTS and weight.batch_axes != tuple(range(len(weight.batch_axes))):
            return "CPUs mix up the axes of weights side by side behind a Transpose"
        if reason := pointwise_problem(use):
            return reason
        if group not in (PER_CHANNEL, weight.columns) or layer_of(use) != _SINGLE or use.role is None:
            continue
        sizes = None if use.input is None else dimensions(use.input)
        if use.role.rank > 3 or sizes is None or len(sizes) < use.role.rank:
            return "CPUs do not take the leading ones of its shape"
    return None


def device_warnings(device: Device | None, choices: Iterable[tuple[Weight, Format]]) -> tuple[str, ...]:
    """What the device, or the CPU where none is named, is known to expand, one line for each format and layer."""
    target = device or Device.CPU
    counts: Counter[tuple[str, str]] = Counter()
    chosen = list(choices)
    for weight, format in chosen:
        layer = _expanding_layer(target, weight, format)
        if layer is not None:
            counts[format.name, layer] += 1
    return _mixed_blocks(chosen) + tuple(
        f"{target.value} expands {count} {'weight' if count == 1 else 'weights'} in {mode} ({layer}) to floats when it "
        f"compiles the model: a smaller file, no gain at run time ({_MEASURED[target]}; "
        f"see `ov-compress inspect --device {target.value}`)"
        for (mode, layer), count in counts.items()
    )


def runs_from_codes(device: Device | None, weight: Weight, format: Format) -> bool:
    """Whether the device, or the CPU where none is named, executes the format in every layer of the weight, as far as
    is known."""
    return _expanding_layer(device or Device.CPU, weight, format) is None


def _mixed_blocks(chosen: Sequence[tuple[Weight, Format]]) -> tuple[str, ...]:
    """A warning of blocks of experts whose weights are not stored in one format, as rules may have it."""
    formats = {weight.name: format.name for weight, format in chosen}
    blocks = [{formats[one.name]: one.name for one in block} for block in expert_blocks(one for one, _ in chosen)]
    mixed = [names for names in blocks if len(names) > 1]
    if not mixed:
        return ()
    told = ", ".join(f"{shown(name)} in {format}" for format, name in mixed[0].items())
    more = f" (and {len(mixed) - 1} more)" if len(mixed) > 1 else ""
    return (f"a block of experts is stored in several formats{more}, so that a GPU decompresses all of it: {told}",)


def _expanding_layer(device: Device, weight: Weight, format: Format) -> str | None:
    """The first kind of layer for which the device is known to expand the weight; None where there is none."""
    table, storage = EXECUTED[device.value], _storage(format)
    for consumer in weight.consumers:
        layer = layer_of(consumer)
        if storage not in table.get(layer, {storage}):
            return layer
    return None


def _storage(format: Format) -> str:
    return "a codebook" if format.codebook_type is not None else format.storage


def layer_of(consumer: Consumer) -> str:
    """What `device_facts` calls a layer."""
    kind = str(consumer.node.get_type_name())
    if consumer.kind is Kind.CONVOLUTION:
        return CONVOLUTION
    if kind != MATMUL:
        return kind if kind in (GATHER, GROUPED_MATMUL) else OTHER_OPERATION
    if consumer.port == 0:
        return FIRST_INPUT
    if consumer.kind is Kind.EXPERTS:
        return EXPERTS if tiled_block_of(consumer.node) is None else TILED_EXPERTS
    return _SINGLE if consumer.role is not None and consumer.role.rank > 2 else MATMUL
