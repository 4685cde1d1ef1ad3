"""What devices make of weights that are stored as codes: the one table that the plan, the chains, the README's test and
`inspect` read.

What is in no row is not known. CPUs expand codebooks everywhere; the rows of GPU and NPU were read from the sources of
their patterns and not measured (`patterns.device_layer` walks those link by link).

The CPU multiplies something else than the codes say, without an error, in three cases; each by how many channels, which
rows, which precision and which instruction set varies, so that only what is right everywhere counts as right:

- groups whose size is no power of two (24 and 96 in f32 are right, 96 in bf16 is not), in MatMul and for experts;
- per channel in MatMul, rows that end inside a byte: an odd number of 4-bit codes, of 2-bit codes no multiple of four;
- per channel in MatMul, an odd number of 8-bit codes, where the layer is computed in bf16 from five rows on, with
  activations that are not quantised (always below 32 channels).

`python -m benchmarks.device_sweep` measures all of it; its table is in benchmarks/results/device_sweep.md.

How long a CPU takes with weights in each format, beside int4_sym in groups of 128, is in fixed figures, so that what is
chosen by them is the same on every machine. `python -m benchmarks.format_times` measures them (its table is in
benchmarks/results/format_times.md), and makes a table of one's own machine for the option `format_times`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ov_weight_compression.ir_utils.errors import OptionError

MATMUL, GROUPED_MATMUL, GATHER = "MatMul", "GroupedMatMul", "Gather"
TILED_EXPERTS = "MatMul of tiled experts"
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
CPU_EXECUTED = EXECUTED["CPU"]

NPU_GROUP = 128
"""The size of groups that an NPU is known to take."""

EXPERT_STORAGE = _INTEGERS
"""What experts side by side are run from at all, on CPUs and GPUs; other types are expanded to floats."""

NPU_EXPERT_STORAGE = _SYMMETRIC
"""What an NPU chooses experts from, one scale a channel."""

EXPANDED_STORAGE = frozenset({"u1", "u3", "u6", "f8e4m3", "f8e5m2"})
"""Storage types that the CPU folds to floats in every layer."""

_BITS = {"i8": 8, "u8": 8, "i4": 4, "u4": 4, "nf4": 4, "f4e2m1": 4, "u2": 2}
_SMALLEST_GROUP = 4
"""Weights in smaller groups the plugin does not run from codes but computes in floats, which is right."""


def misread(layer: str, storage: str, group: int, columns: int, rows: int = 2) -> str | None:
    """Why a CPU computes something else from such codes than they say; None where it does not.

    Args:
        layer: the kind of layer, as in `EXECUTED`.
        storage: element type of the codes, by OpenVINO's name.
        group: weights that share a scale, -1 for a whole channel.
        columns: input channels.
        rows: output channels; a MatMul with a single one is not run from codes.
    """
    if layer not in (MATMUL, GROUPED_MATMUL, TILED_EXPERTS) or storage not in CPU_EXECUTED[layer]:
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


def is_checked(version: str) -> bool:
    """Whether what is misread was measured with this version."""
    return release_of(version) in CHECKED


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
