"""Whether each stored code is that of the level nearest to the weight: formats in numpy, from what the file holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.passes import Report
from tests.fuzz.campaign import Failure
from tests.fuzz.stored import UnknownError, constant_values

Array = np.ndarray[Any, np.dtype[Any]]
_LARGEST = {
    **{"int8": 1 / 127, "int4": 1 / 7, "int3": 1 / 3, "int2": 1.0, "nf4": 0.31, "fp4": 1 / 3, "mxfp4": 0.5},
    **{"nvfp4": 0.45, "fp8": 1 / 15, "mxfp8": 0.14},
}
"""The largest error of plain rounding, in units of a group's largest magnitude (its range, for a zero point)."""

_NOTHING = 2.0**-93
"""Scales in f32 do not go below 2^-100: weights so small become zeros."""

_PARTS = ("scale", "zero_point", "tensor_scale", "table")


def misplaced_codes(before: Sequence[ov.Node], after: Sequence[ov.Node], report: Report) -> Iterator[Failure]:
    """Codes that are not nearest, and groups whose error is beyond what the format explains, for weights whose names
    are unique."""
    names = Counter(node.get_friendly_name() for node in before)
    named = Counter(node.get_friendly_name() for node in after)
    stored = {node.get_friendly_name(): node for node in after}
    old = {node.get_friendly_name(): node for node in before}
    for row in report.rows:
        weight, codes = old.get(row.name), stored.get(row.name)
        if (
            weight is None
            or codes is None
            or names[row.name] != 1
            or named[row.name] != 1
            or any(f"{row.name}/{part}" in old for part in _PARTS)
        ):
            continue
        if weight.get_output_element_type(0).to_string() not in ("f32", "f16", "bf16", "f64"):
            continue
        parts = {part: stored.get(f"{row.name}/{part}") for part in _PARTS}
        try:
            found = _compare(weight, codes, parts, row.mode)
        except UnknownError:
            continue
        if found:
            yield Failure(found, f"{row.name[:40]} {row.mode} group {row.group_size} {list(row.shape)}")


def _compare(weight: ov.Node, codes: ov.Node, parts: dict[str, ov.Node | None], mode: str) -> str:
    def part(name: str) -> Any:
        node = parts[name]
        return None if node is None else constant_values(node).astype(np.float64)

    scale, zero, tensor_scale, table = (part(name) for name in ("scale", "zero_point", "tensor_scale", "table"))
    if scale is None:
        return "a weight without scales"
    held = constant_values(codes)
    with np.errstate(all="ignore"):
        wanted = constant_values(weight).astype(np.float32).astype(np.float64).reshape(held.shape)
    kind = codes.get_output_element_type(0).to_string()
    if not np.isfinite(scale).all():
        return "a scale that is not finite"
    step = scale * (1.0 if tensor_scale is None else tensor_scale)
    if table is not None:
        levels, chosen = np.unique(table[np.isfinite(table)]), table[held.astype(np.int64)]
    elif kind in ("nf4", "f4e2m1", "f8e4m3"):
        levels, chosen = _levels(kind), held.astype(np.float64)
    else:
        low, high = {"u8": (0, 255), "i8": (-128, 127), "u4": (0, 15), "i4": (-8, 7), "u3": (0, 7), "u2": (0, 3)}[kind]
        levels, chosen = np.arange(low, high + 1, dtype=np.float64), held.astype(np.float64)
    offset = np.zeros(()) if zero is None else zero
    values = (chosen - offset) * step
    if not np.isfinite(values).all():
        return "a code that is not finite"
    with np.errstate(all="ignore"):
        ratio = np.where(step != 0, wanted / step, 0.0) + offset
    best = _nearest(np.broadcast_to(ratio, held.shape), levels)
    least = np.abs((best - offset) * step - wanted)
    slack = 2e-6 * (np.abs(step) + np.abs(wanted)) + _NOTHING  # a quotient in f32 may lie across a middle
    if (np.abs(values - wanted) > least + slack).any():
        return f"codes are not the nearest ({mode})"
    limit = next((most for name, most in _LARGEST.items() if mode.split("_")[0] == name), None)
    if limit is not None and held.size:
        axes = tuple(
            axis for axis, (one, full) in enumerate(zip(_lead(scale, held), held.shape, strict=True)) if one != full
        )
        span = np.abs(wanted).max(axis=axes, keepdims=True)
        span = 2 * span if zero is not None and zero.ndim else span
        error = np.sqrt(np.mean(np.square(values - wanted)))
        if error > np.sqrt(np.mean(np.square(span))) * limit * 1.1 + _NOTHING:
            return f"an error beyond the format's ({mode})"
    return ""


def _lead(scale: Array, held: Array) -> tuple[int, ...]:
    return (1,) * (held.ndim - scale.ndim) + scale.shape


def _levels(kind: str) -> Array:
    from tests.fuzz.stored import _TABLES

    table = _TABLES[kind].astype(np.float64)
    return np.unique(table[np.isfinite(table)])


def _nearest(ratio: Array, levels: Array) -> Array:
    above = (
        np.clip(np.searchsorted(levels, ratio), 1, len(levels) - 1) if len(levels) > 1 else np.zeros(ratio.shape, int)
    )
    if len(levels) == 1:
        return np.broadcast_to(levels[0], ratio.shape)
    low, high = levels[above - 1], levels[above]
    return np.where(ratio - low <= high - ratio, low, high)
