"""What devices make of weights that are stored as codes, and what a weight gets where that is not what was asked for.

A mode is one thing and what a device executes is another: a weight whose codes the plugin has no kernel for is expanded
to floats when the model is compiled. The file is smaller then, but neither memory nor time is saved at run time.

**What runs from codes** is one table, which the plan, the chains and `inspect` read. What is in no row is not known.
CPUs expand codebooks everywhere; the rows of GPU and NPU were read from the sources of their patterns and not measured
(`patterns.device_layer` walks those link by link). `ov-compress inspect --device` looks at the device itself.

**What is misread**: the CPU multiplies something else than the codes say, without an error, in three cases; each by how
many channels, which rows, which precision and which instruction set varies, so that only what is right everywhere
counts as right:

- groups whose size is no power of two (24 and 96 in f32 are right, 96 in bf16 is not), in MatMul and for experts;
- per channel in MatMul, rows that end inside a byte: an odd number of 4-bit codes, of 2-bit codes no multiple of four;
- per channel in MatMul, an odd number of 8-bit codes, where the layer is computed in bf16 from five rows on, with
  activations that are not quantised (always below 32 channels).

`python -m benchmarks.device_sweep` measures all of it; its table is in benchmarks/results/device_sweep.md.

Convolutions of one tap the CPU plugin turns into matrix products where their weight is stored as codes:

    Transpose(0, 3, 1, 2) ─ Convolution(codes [out, in, 1, 1]) ─ Transpose(0, 2, 3, 1)     ─▸     FullyConnected

OpenVINO 2026.4.1 does so for a model that is read from a file where a Transpose or a Reshape stands on either side, and
looks at little else: strides and padding are dropped, a Transpose of another order or a Reshape from other axes is
taken for the one above. The model is refused then, computes something else in another shape, or ends the process.

**How long** a CPU takes with weights in each format, beside int4_sym in groups of 128, is in fixed figures, so that
what is chosen by them is the same on every machine. `python -m benchmarks.format_times` measures them (its table is in
benchmarks/results/format_times.md), and makes a table of one's own machine for the option `format_times`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TypeAlias

import openvino as ov

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.passes.option_values import Device, Devices, Mode
from ov_weight_compression.passes.rules import Rule
from ov_weight_compression.patterns import Consumer, Kind, Weight
from ov_weight_compression.patterns.experts import expert_blocks, tiled_block_of
from ov_weight_compression.patterns.graphs import dimensions
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Format

MATMUL, GROUPED_MATMUL, GATHER = "MatMul", "GroupedMatMul", "Gather"
SINGLE, TILED_EXPERTS = "MatMul of a single 3-D weight", "MatMul of tiled experts"
OTHER_OPERATION = "operation of one's own"
EXPERTS, FIRST_INPUT, CONVOLUTION = "MatMul of 3-D weights", "MatMul with the weight as first input", "convolution"

CHECKED = ("2026.4",)
"""The releases of OpenVINO with which the CPU's column and what it misreads were measured."""

_INTEGERS = frozenset({"i8", "u8", "i4", "u4"})
_SYMMETRIC = frozenset({"i8", "i4"})
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ExecutedRow:
    """What one device runs from codes in one kind of layer."""

    device: str
    layer: str
    storage: frozenset[str]
    """Element types of the codes, by OpenVINO's names."""
    openvino: str
    """The release that was looked at."""
    source: str
    """Where it is known from."""


_MEASURED = "measured: the runtime graph, AVX-512 and bfloat16 (benchmarks/device_sweep.py)"
_TILED = (
    "measured: the runtime graph; transformations/common_optimizations/convert_tiled_moe_block_to_gather_matmuls.cpp"
)
_GPU_MATMUL = "intel_gpu: transformations/compressed_weights_pattern.hpp"
_GPU_EXPERTS = "intel_gpu: transformations/convert_moe_to_compressed.cpp"
_GPU_GATHER = "transformations/op_conversions/convert_gather_to_compressed.hpp"
_NPU = "intel_npu: npuw/partitioning/patterns/opt.cpp and compute.cpp; its guide asks for symmetric integers"
_NPU_CONVOLUTIONS = "intel_npu: npuw/partitioning/patterns/compute.cpp: between two Transposes"
_NPU_EXPERTS = "intel_npu: npuw/partitioning/patterns/moe.cpp: one scale a channel"

EXECUTED_ROWS = (
    ExecutedRow("CPU", MATMUL, _INTEGERS | {"u2", "nf4", "f4e2m1"}, "2026.4.1", _MEASURED),
    ExecutedRow("CPU", GROUPED_MATMUL, _INTEGERS, "2026.4.1", _MEASURED),
    ExecutedRow("CPU", TILED_EXPERTS, _INTEGERS, "2026.4.1", _TILED),
    ExecutedRow("CPU", GATHER, _INTEGERS, "2026.4.1", _MEASURED),
    ExecutedRow("CPU", EXPERTS, _NOTHING, "2026.4.1", _MEASURED),
    ExecutedRow("CPU", FIRST_INPUT, _NOTHING, "2026.4.1", _MEASURED),
    ExecutedRow("CPU", OTHER_OPERATION, _NOTHING, "2026.4.1", _MEASURED),
    ExecutedRow("CPU", CONVOLUTION, _NOTHING, "2026.4.1", _MEASURED),
    ExecutedRow("GPU", MATMUL, _INTEGERS | {"f8e4m3", "f8e5m2"}, "2026.4", _GPU_MATMUL),
    ExecutedRow("GPU", GROUPED_MATMUL, _INTEGERS, "2026.4", _GPU_EXPERTS),
    ExecutedRow("GPU", TILED_EXPERTS, _INTEGERS, "2026.4", _GPU_EXPERTS),
    ExecutedRow("GPU", GATHER, _INTEGERS, "2026.4", _GPU_GATHER),
    ExecutedRow("GPU", CONVOLUTION, _NOTHING, "2026.4", _GPU_MATMUL),
    ExecutedRow("NPU", MATMUL, _SYMMETRIC, "2026.4", _NPU),
    ExecutedRow("NPU", TILED_EXPERTS, _SYMMETRIC, "2026.4", _NPU_EXPERTS),
    ExecutedRow("NPU", GATHER, _SYMMETRIC, "2026.4", _NPU),
    ExecutedRow("NPU", CONVOLUTION, _SYMMETRIC, "2026.4", _NPU_CONVOLUTIONS),
)
"""The table."""

EXECUTED: dict[str, dict[str, frozenset[str]]] = {
    device: {row.layer: row.storage for row in EXECUTED_ROWS if row.device == device}
    for device in ("CPU", "GPU", "NPU")
}
"""By device and kind of layer the storage types that run from codes; what is not in the table is not known."""

NPU_GROUP = 128
"""The size of groups that an NPU is known to take."""

_BITS = {"i8": 8, "u8": 8, "i4": 4, "u4": 4, "nf4": 4, "f4e2m1": 4, "u2": 2}
_SMALLEST_GROUP = 4
"""Weights in smaller groups the plugin does not run from codes but computes in floats, which is right."""


def misread(layer: str, storage: str, group: int, columns: int, rows: int = 2) -> str | None:
    """Why a CPU computes something else from such codes than they say; None where it does not.

    Args:
        layer: the kind of layer, as `layer_of` says it.
        storage: element type of the codes, by OpenVINO's name.
        group: weights that share a scale, -1 for a whole channel.
        columns: input channels.
        rows: output channels; a MatMul with a single one is not run from codes.
    """
    layer = MATMUL if layer == SINGLE else layer  # it runs as a matrix
    if layer not in (MATMUL, GROUPED_MATMUL, TILED_EXPERTS) or storage not in EXECUTED["CPU"][layer]:
        return None
    if group not in (-1, columns):
        if group < _SMALLEST_GROUP or group & (group - 1) == 0 or (layer == MATMUL and rows == 1):
            return None
        return f"CPUs misread {storage} in groups of {group} (no power of two)"
    if layer != MATMUL or rows == 1:
        return None
    multiple = {8: 2, 4: 2, 2: 4}[_BITS[storage]]
    if columns % multiple == 0:
        return None
    return f"CPUs misread {storage} per channel where {columns} channels are no multiple of {multiple}"


def working_groups(columns: int | None = None, smallest: int = 16) -> tuple[int, ...]:
    """Group sizes from `smallest` to 256 that no CPU misreads; with `columns` those of them that divide it."""
    sizes = [1 << power for power in range(3, 9) if 1 << power >= smallest]
    return tuple(size for size in sizes if columns is None or columns % size == 0)


def release_of(version: str) -> str:
    """The release, "2026.4", of a version as `openvino.get_version()` says it: "2026.4.1-22982-…"."""
    return ".".join(version.split("-")[0].split(".")[:2])


RELEASE = release_of(ov.get_version())
"""Of OpenVINO, as it is here."""


@dataclass(frozen=True)
class FormatTime:
    """Time of a layer beside int4_sym in groups of 128."""

    one_row: float
    """A token that is generated."""
    many_rows: float
    """A prompt."""


FormatTimes: TypeAlias = Mapping[str, Mapping[int, FormatTime]]
"""By format and group size (-1: a channel)."""


def _groups(*times: tuple[float, float]) -> dict[int, FormatTime]:
    return {group: FormatTime(*time) for group, time in zip((128, 64, 32, 16), times, strict=True)}


_CPU: FormatTimes = {
    "int8_sym": {-1: FormatTime(1.8, 1.0)},
    "int8_asym": {-1: FormatTime(1.8, 1.0)},
    "int4_sym": _groups((1.0, 1.0), (1.03, 1.0), (1.15, 1.0), (1.67, 1.44)),
    "int4_asym": _groups((1.05, 1.0), (1.12, 1.0), (1.28, 1.02), (2.18, 1.5)),
    "nf4": _groups((1.5, 1.42), (1.53, 1.43), (1.58, 1.44), (1.7, 1.45)),
    "fp4": _groups((1.5, 1.43), (1.57, 1.44), (1.62, 1.44), (1.6, 1.43)),
    "int2_sym": _groups((1.9, 1.45), (1.9, 1.45), (1.9, 1.45), (1.9, 1.45)),
    "int2_asym": _groups((1.9, 1.45), (1.9, 1.45), (1.95, 1.45), (2.26, 1.47)),
}
_SAME = FormatTime(1.0, 1.0)
MEASURED_TIMES = frozenset(_CPU)
"""The formats whose times were measured; the others count as fast as int4_sym."""


def time_of(format: str, group: int, times: FormatTimes | None = None) -> FormatTime:
    """What a layer takes in a format, of a group size the nearest that was measured (of a channel the largest); 1 where
    nothing was."""
    known = (_CPU if times is None else times).get(format)
    if not known:
        return _SAME
    if group < 0:
        return known[group if group in known else max(known)]
    return known[min(known, key=lambda measured: (abs(measured - group), measured))]


def read_format_times(path: Path) -> FormatTimes:
    """A table that `benchmarks.format_times` has written: `{"nf4": {"64": [one row, many rows], …}, …}`.

    Raises:
        OptionError: there is none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(name): {int(group): FormatTime(*map(float, pair)) for group, pair in groups.items()}
            for name, groups in found.items()
        }
    except OSError as error:
        raise OptionError(f"format_times: {path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError):
        raise OptionError(f"format_times: {path} is no table of benchmarks.format_times") from None


Instead = tuple[Format, int, str]
"""What a weight gets in place of a format that its device would expand: a format, a group, and why."""


def executed_instead(devices: Devices, weight: Weight, format: Format, group: int) -> Instead | None:
    """The format nearest to `format` that all devices execute in every layer of the weight; None where they execute
    `format` itself, or are not known to execute anything for this weight, or none is named.

    Formats of four bits and fewer become int4_sym, which takes as many bytes as nf4 and fp4 do, in the same groups (32
    in place of the fixed groups of mxfp4 and nvfp4, 128 where there are none); those of eight bits int8_sym. Experts
    side by side get integers whatever the device, for a GPU, whose fused experts have zero points, int4_asym, and for
    an NPU symmetric ones per channel.
    """
    if weight.kind is Kind.EXPERTS:
        return _for_experts(devices, format, group)
    if Device.NPU in devices and (found := _for_npu(weight, format, group)) is not None:
        return found
    expanding = [(device.value, _expanding_layer(device, weight, format)) for device in devices]
    device, layer = next((pair for pair in expanding if pair[1] is not None), ("", None))
    for nearest, size in _nearest(format, group) if device else ():
        if all(_expanding_layer(one, weight, nearest) is None for one in devices):
            size = NPU_GROUP if Device.NPU in devices and size != PER_CHANNEL else size
            return nearest, size, f"{device} would expand {format.name} in a {layer}"
    return None


def _for_experts(devices: Devices, format: Format, group: int) -> Instead | None:
    nearest, size = _nearest(format, group)[0]
    if Device.NPU in devices:
        if format.storage in EXECUTED["NPU"][TILED_EXPERTS] and group == PER_CHANNEL:
            return None
        return nearest, PER_CHANNEL, "NPU chooses among experts with one scale a channel alone"
    if format.codebook_type is not None or format.storage not in EXECUTED["CPU"][TILED_EXPERTS]:
        if nearest.name == "int4_sym" and Device.GPU in devices:
            nearest = FORMATS["int4_asym"]
        return nearest, size, f"experts run from integers of 4 and 8 bits, {format.name} would be expanded"
    if Device.GPU in devices and format.storage == "i4":
        return FORMATS["int4_asym"], group, "GPU fuses experts with zero points of 4 bits alone"
    return None


def _for_npu(weight: Weight, format: Format, group: int) -> Instead | None:
    """What an NPU wants beside the types of its codes: the head in int8_asym, and groups of one size."""
    if _is_head(weight) and (format.name, group) != ("int8_asym", PER_CHANNEL):
        return FORMATS["int8_asym"], PER_CHANNEL, "NPU unpacks the last layer from int8_asym per channel"
    if format.name == "int4_sym" and group not in (NPU_GROUP, PER_CHANNEL):
        return format, NPU_GROUP, f"NPU takes groups of {NPU_GROUP}, or whole channels"
    return None


def _is_head(weight: Weight) -> bool:
    """Whether it is the last layer, one that an embedding shares included."""
    return weight.is_last_layer or (
        weight.is_embedding and any(use.role.kind is Kind.MATMUL for use in weight.consumers)
    )


def check_by_name(device: Device, mode: Mode, group: int, rules: Iterable[Rule]) -> None:
    """Refuse what is asked for by name and the only device that is named cannot take.

    For several devices, and for a GPU or CPU whatever the mode is, weights get what they take in its place; an NPU runs
    so little else that its compiler fails on the rest, and a rule has its way with any other device than it names.

    Raises:
        OptionError: with what to do.
    """
    asked = []
    if device is Device.NPU and not mode.is_int8:
        asked.append(("group_size" if mode is Mode.INT4_SYM else "mode", mode, group))
    for number, rule in enumerate(rules):
        if rule.mode is not None:
            own = FORMATS[rule.mode.value].default_group if rule.group_size is None else rule.group_size
            asked.append((f"rules[{number}]", rule.mode, own))
    for where, mode, group in asked if device is not Device.CPU else ():
        problem = _not_for_npu(mode, group) if device is Device.NPU else _not_for_gpu(mode, group)
        if problem is not None:
            raise OptionError(f"{where}: {problem}")


def _not_for_npu(mode: Mode, group: int) -> str | None:
    if group not in (NPU_GROUP, PER_CHANNEL) and mode is Mode.INT4_SYM:
        return f"an NPU takes int4_sym in groups of {NPU_GROUP} or per channel (-1), got {group}"
    if mode is Mode.INT4_SYM or (mode in (Mode.INT8_SYM, Mode.INT8_ASYM, Mode.INT4_ASYM) and group == PER_CHANNEL):
        return None
    groups = "" if group == PER_CHANNEL else f" in groups of {group}"
    return (
        f"an NPU does not run {mode.value}{groups}; use int4_sym in groups of {NPU_GROUP} or per channel, or int8_sym"
    )


def _not_for_gpu(mode: Mode, group: int) -> str | None:
    format = FORMATS[mode.value]
    if format.bits == 8 and format.zero_point == "group" and group != PER_CHANNEL:
        return f"a GPU expands {mode.value} in groups of {group}; use int8_sym, or -1 for one scale a channel"
    if format.codebook_type is None and format.storage in EXECUTED["GPU"][MATMUL]:
        return None
    return f"a GPU does not run {mode.value}; use int4_sym, int4_asym, int8_sym or int8_asym"


def _nearest(format: Format, group: int) -> list[tuple[Format, int]]:
    """The integers that may stand for a format, and their groups, the nearest first."""
    eight = FORMATS["int8_sym"], PER_CHANNEL
    if format.bits > 4:
        return [eight]
    four = FORMATS["int4_sym"]
    if format.fixed_group:
        group = 32
    elif group == PER_CHANNEL and format.name != "int4_asym":
        group = four.default_group
    return [(four, group), eight]


def misread_on_cpu(devices: Devices, weight: Weight, format: Format, group: int) -> str | None:
    """Why a CPU computes something else in one of the weight's layers from this format than its codes say; None where
    it does not, or where other devices are named."""
    if (devices and Device.CPU not in devices) or format.codebook_type is not None:
        return None
    found = (misread(layer_of(use), format.storage, group, weight.columns, weight.rows) for use in weight.consumers)
    return next((reason for reason in found if reason is not None), None)


def refused_on_cpu(devices: Devices, weight: Weight, format: Format, group: int) -> str | None:
    """Why a CPU does not take the weight for what it is, with codes of this format; None where it does, or where
    other devices are named.

    - It does not compile a GroupedMatMul of a single expert: it drops the expert's axis from codes, and then misses it.
    - It takes other axes for those of several weights side by side, where a Transpose puts them first.
    - A MatMul whose weight has leading ones and a scale for each channel: with four dimensions or more it does not
      compile it; with three it leaves the one out of the output's shape where the activation has fewer dimensions.
    - Convolutions of one tap, see `pointwise_problem`.
    """
    if (devices and Device.CPU not in devices) or format.codebook_type is not None:
        return None
    batch = prod(weight.shape[axis] for axis in weight.batch_axes)
    for use in weight.consumers:
        if layer_of(use) == GROUPED_MATMUL and batch == 1 and format.storage in EXECUTED["CPU"][GROUPED_MATMUL]:
            return f"CPUs refuse {format.storage} in a GroupedMatMul of one expert"
        if use.role.kind is Kind.EXPERTS and weight.batch_axes != tuple(range(len(weight.batch_axes))):
            return "CPUs mix up the axes of weights side by side behind a Transpose"
        if use.role.kind is Kind.CONVOLUTION and (reason := pointwise_problem(use)):
            return reason
        if group not in (PER_CHANNEL, weight.columns) or layer_of(use) != SINGLE:
            continue
        sizes = None if use.input is None else dimensions(use.input)
        if use.role.rank > 3 or sizes is None or len(sizes) < use.role.rank:
            return "CPUs do not take the leading ones of its shape"
    return None


_HOW = {
    Device.CPU: "measured with OpenVINO 2026.4",
    Device.GPU: "by the patterns in its sources",
    Device.NPU: "by the patterns in its sources",
}


def device_warnings(devices: Devices, choices: Iterable[tuple[Weight, Format]]) -> tuple[str, ...]:
    """What the devices, or the CPU where none is named, are known to expand, one line for each device, format and
    layer, after one of blocks of experts whose weights are not stored in one format, as rules may have it."""
    chosen = list(choices)
    formats = {weight.name: format.name for weight, format in chosen}
    blocks = expert_blocks(weight for weight, _ in chosen) if len(set(formats.values())) > 1 else []
    named = [{formats[one.name]: one.name for one in block} for block in blocks]
    mixed = [names for names in named if len(names) > 1]
    told: tuple[str, ...] = ()
    if mixed:
        names = ", ".join(f"{shown(name)} in {format}" for format, name in mixed[0].items())
        more = f" (and {len(mixed) - 1} more)" if len(mixed) > 1 else ""
        told = (
            f"a block of experts is stored in several formats{more}, so that a GPU decompresses all of it: {names}",
        )
    counts: Counter[tuple[Device, str, str]] = Counter()
    for target in devices or (Device.CPU,):
        for weight, format in chosen:
            layer = _expanding_layer(target, weight, format)
            if layer is not None:
                counts[target, format.name, layer] += 1
    return told + tuple(
        f"{target.value} expands {count} {'weight' if count == 1 else 'weights'} in {mode} ({layer}) to floats when it "
        f"compiles the model: a smaller file, no gain at run time ({_HOW[target]}; "
        f"see `ov-compress inspect --device {target.value}`)"
        for (target, mode, layer), count in counts.items()
    )


def runs_from_codes(devices: Devices, weight: Weight, format: Format) -> bool:
    """Whether the devices, or the CPU where none is named, execute the format in every layer of the weight, as far as
    is known."""
    return all(_expanding_layer(device, weight, format) is None for device in devices or (Device.CPU,))


def _expanding_layer(device: Device, weight: Weight, format: Format) -> str | None:
    """The first kind of layer for which the device is known to expand the weight; None where there is none."""
    table, storage = EXECUTED[device.value], "a codebook" if format.codebook_type is not None else format.storage
    if device is Device.NPU and storage == "u8" and _is_head(weight):
        return None
    for consumer in weight.consumers:
        layer = layer_of(consumer)
        if storage not in table.get(layer, {storage}):
            return layer
    return None


def layer_of(consumer: Consumer) -> str:
    """What the table calls a layer."""
    kind = str(consumer.node.get_type_name())
    if consumer.role.kind is Kind.CONVOLUTION:
        return CONVOLUTION
    if kind != MATMUL:
        return kind if kind in (GATHER, GROUPED_MATMUL) else OTHER_OPERATION
    if consumer.port == 0:
        return FIRST_INPUT
    if consumer.role.kind is Kind.EXPERTS:
        return EXPERTS if tiled_block_of(consumer.node) is None else TILED_EXPERTS
    return SINGLE if consumer.role.rank > 2 else MATMUL


_BEFORE, _BEHIND = [0, 3, 1, 2], [0, 2, 3, 1]
_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_ELEMENTWISE = frozenset({"Add", "Multiply", "Subtract", "Convert"})


def pointwise_problem(consumer: Consumer) -> str | None:
    """Why CPUs would misread codes in this layer; None where it is no convolution of one tap, or one that they take
    for what it is."""
    node = consumer.node
    taps = dimensions(node.input_value(1)) or []
    if node.get_type_name() != "Convolution" or len(taps) != 4 or taps[2:] != [1, 1]:
        return None
    attributes = node.get_attributes()
    if any(stride != 1 for stride in attributes["strides"]):
        return "CPUs drop the strides of a 1x1 convolution on codes"
    if any((*attributes["pads_begin"], *attributes["pads_end"])):
        return "CPUs drop the padding of a 1x1 convolution on codes"
    problem = _problem_before(node.input_value(0))
    if problem is None and any(_order(reader) != _BEHIND for reader in _transposes(node, 2)):
        problem = "CPUs misread a 1x1 convolution on codes in front of a Transpose of other axes"
    return problem


def _problem_before(value: ov.Output) -> str | None:
    """What makes the activation, if the plugin takes it for a Transpose that it is not."""
    maker = value.get_node()
    kind = maker.get_type_name()
    if kind == "Transpose" and _order(maker) != _BEFORE:
        return "CPUs misread a 1x1 convolution on codes behind a Transpose of other axes"
    places = (dimensions(value) or [None] * 4)[2:]
    if kind in _RESHAPING and prod(size or 1 for size in places) == 1:
        return "CPUs misread a 1x1 convolution on codes behind a Reshape to a single position"
    return None


def _transposes(node: ov.Node, depth: int) -> Iterator[ov.Node]:
    """The Transposes behind a layer, or behind at most `depth` operations that add a bias, scale or convert."""
    for target in node.output(0).get_target_inputs():
        reader = target.get_node()
        if reader.get_type_name() == "Transpose":
            yield reader
        elif depth and reader.get_type_name() in _ELEMENTWISE:
            yield from _transposes(reader, depth - 1)


def _order(transpose: ov.Node) -> list[int] | None:
    """The order of a Transpose; None where it is known only at run time."""
    order = transpose.input_value(1).get_node()
    return [int(axis) for axis in order.data.reshape(-1)] if order.get_type_name() == "Constant" else None
