"""The constants of random graphs: difficult values, odd names, every type, and chains of other compressors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

Array = np.ndarray[Any, np.dtype[Any]]

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 32, 33, 40, 48, 56, 63, 64, 65, 72, 80, 96, 100)
SIZES = (*SIZES, 104, 112, 120, 127, 128, 129, 144, 160, 192, 200, 224, 256, 288, 320, 384)
NAMES = (
    *("weight", "weight", "model.layers.0.mlp.down_proj.weight", "a", "layer", "w[0]", "w[a-z]*", "*", "?", "w#2"),
    *("re:w", "name with blanks", "gewicht größe", "重み", "<w attr='1'> & \"more\"", "a/b/c", "weight/scale"),
    *("weight/zero_point", ".", "..", "a\nb", "\t", "w" * 300, "w{2}", "(w", "\\d+", "W", "None", "0", "=", "a=b:c"),
)


def shape_of(random: np.random.Generator, limit: int, *fixed: int | None) -> tuple[int, ...]:
    """Sizes for every None, so that there are at most `limit` elements."""
    while True:
        shape = tuple(int(random.choice(SIZES)) if size is None else size for size in fixed)
        if math.prod(shape) <= limit:
            return shape
        limit += limit // 20


def name_of(random: np.random.Generator, usual: str) -> str:
    """A friendly name: now and then an odd one, or one that others have too; "" is left to OpenVINO."""
    chance = random.random()
    if chance < 0.03:
        return ""
    return str(random.choice(NAMES)) if chance < 0.2 else f"{usual}_{random.integers(1000)}"


def values(random: np.random.Generator, shape: Sequence[int], kind: str) -> tuple[Array, str]:
    """Values for a weight of an element type as f64, and what sort they are."""
    normal = random.standard_normal(tuple(shape))
    chance = random.random()
    if chance < 0.55:
        return normal * float(random.choice([0.02, 0.1, 1.0])), "normal"
    sort = str(random.choice(_SORTS))
    found = _SORT[sort](random, normal)
    if kind == "f16":
        found = np.where(np.isfinite(found), np.clip(found, -65504, 65504), found)
    return found, sort


def _spread(random: np.random.Generator, x: Array) -> Array:
    return x * np.exp(random.uniform(-20, 8, x.shape[:1] + (1,) * (x.ndim - 1)))


def _with(random: np.random.Generator, x: Array, some: Sequence[float], share: float = 0.0) -> Array:
    flat = x.reshape(-1).copy()
    count = max(1, int(flat.size * share))
    if flat.size:
        flat[random.integers(0, flat.size, count)] = random.choice(np.array(some), count)
    return flat.reshape(x.shape)


_SORT: dict[str, Any] = {
    "zeros": lambda random, x: np.zeros_like(x),
    "negative zeros": lambda random, x: np.full_like(x, -0.0),
    "all equal": lambda random, x: np.full_like(x, float(random.choice([1.0, -0.37, 1e-6, 300.0, 6e4, 1e20]))),
    "sparse": lambda random, x: x * (random.random(x.shape) < 0.1),
    "zero rows": lambda random, x: x * (random.random(x.shape[:1] + (1,) * (x.ndim - 1)) < 0.5) if x.ndim else x,
    "positive": lambda random, x: np.abs(x) + 0.5,
    "negative": lambda random, x: -np.abs(x) - 3,
    "outlier": lambda random, x: _with(random, x, [300.0, -1000.0]),
    "small": lambda random, x: x * 10.0 ** float(random.choice([-5, -7, -9])),
    "tiny": lambda random, x: x * 10.0 ** float(random.choice([-12, -20, -30])),
    "denormal": lambda random, x: x * 10.0 ** float(random.choice([-38.5, -40, -43, -44.5])),
    "large": lambda random, x: x * 10.0 ** float(random.choice([3, 4.5, 5])),
    "huge": lambda random, x: x * 10.0 ** float(random.choice([9, 20, 30, 37.5])),
    "spread": _spread,
    "integers": lambda random, x: np.rint(x * 4),
    "two values": lambda random, x: np.where(x > 0, 0.5, -0.5),
    "NaN": lambda random, x: _with(random, x, [np.nan]),
    "infinities": lambda random, x: _with(random, x, [np.inf, -np.inf], 0.01),
    "f16 at its end": lambda random, x: _with(random, x, [65504.0, -65504.0, 6e-8, 65472.0], 0.05),
}
_SORTS = tuple(_SORT)


def compressed_chain(random: np.random.Generator, shape: tuple[int, ...], name: str) -> tuple[ov.Node, str]:
    """A weight `[…, out, in]` as other tools store it, in f32 at its end, and what it is in words."""
    storage = str(random.choice(["u8", "i8", "u4", "i4", "u4", "i4", "nf4", "f8e4m3", "u2"]))
    columns = shape[-1]
    groups = [size for size in (16, 32, 64, 128) if columns % size == 0 and columns > size]
    group = int(random.choice(groups)) if groups and random.random() < 0.6 else -1
    to = str(random.choice(["f16", "f16", "f32"]))
    cut = shape if group == -1 else (*shape[:-1], columns // group, group)
    scales = (*cut[:-1], 1)
    kind = getattr(ov.Type, storage)
    count, bits = math.prod(cut), kind.bitwidth
    raw = random.integers(0, 0x7E, -(-count * bits // 8)).astype(np.uint8)  # no NaN of f8e4m3
    tensor = ov.Tensor(kind, ov.Shape(list(cut)))
    tensor.data.reshape(-1).view(np.uint8)[:] = raw
    codes = op.constant(tensor)
    codes.set_friendly_name(name)
    value: ov.Node = op.convert(codes, to)
    zero = bool(storage in ("u8", "u4", "u2")) and random.random() < 0.8
    if zero:
        point = np.full(scales, {"u8": 117, "u4": 7, "u2": 2}[storage], np.uint8)
        if random.random() < 0.3:
            stored = op.constant(np.array(point.reshape(-1)[0] if point.size else 7, np.uint8))
        else:
            held = ov.Tensor(kind, ov.Shape(list(scales)))
            packed = held.data.reshape(-1).view(np.uint8)
            packed[:] = random.integers(0, 256, packed.size).astype(np.uint8)
            stored = op.constant(held)
        stored.set_friendly_name(f"{name}/zero_point")
        value = op.subtract(value, op.convert(stored, to))
    largest = {"u8": 128, "i8": 128, "nf4": 1, "f8e4m3": 240, "u2": 2}.get(storage, 8)
    factor = (random.uniform(0.5, 1.5, scales) / largest).astype(np.float16)
    scale: ov.Node = op.constant(factor if to == "f16" else factor.astype(np.float32))
    scale.set_friendly_name(f"{name}/scale")
    value = op.multiply(value, scale)
    if group != -1:
        value = op.reshape(value, op.constant(np.array(shape, np.int64)), False)
    value = op.convert(value, "f32") if to != "f32" else value
    return value, f"{storage} group {group} in {to}{' with zero points' if zero else ''}"
