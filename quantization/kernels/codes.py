"""``quantization.grid`` as a graph: from ``w / s`` to codes, and to the level that a code stands for.

Levels come in four kinds, told apart by the format's row: integers; E2M1 and E4M3, whose codes follow from a few
roundings; any other table of up to 16 levels, where a code is a sum of steps over its thresholds; and large tables,
where a lookup in equal cells, each with one threshold at most, does the same.
"""

import numpy as np
import openvino.opset13 as op

from ov_weight_compression.quantization.formats import Format
from ov_weight_compression.quantization.formats.levels import E2M1, E4M3
from ov_weight_compression.quantization.grid import level_grid
from ov_weight_compression.quantization.kernels.ops import Node, constant, divide, power_of_two_below, rint, step

__all__ = ["distance", "flip_mask", "patterns", "searchable", "supported"]

_SMALL = 16  # levels up to which a sum of steps is used
_CELLS = 1 << 16  # most cells of a lookup


def supported(format: Format) -> bool:
    """Whether a kernel can be built: not for a large table whose thresholds lie too close together for its cells."""
    return format.levels is None or len(format.levels) <= _SMALL or format.levels == E4M3 or _cells(format) is not None


def searchable(format: Format) -> bool:
    """Whether ``distance`` can be built: integers and tables of up to 16 levels."""
    return format.levels is None or len(format.levels) <= _SMALL


def flip_mask(format: Format) -> int:
    """What ``patterns`` must still be XORed with: kernels count signed codes from the lowest, storage is two's
    complement."""
    signed = format.levels is None and format.zero_point is None
    return 1 << (format.bits - 1) if signed else 0


def patterns(ratio: Node, zero_point: Node | None, format: Format) -> Node:
    """Codes, as f32 numbers, of ``ratio = w / s`` [n, g]; ``flip_mask`` of them still to be applied.

    ``zero_point`` is [n, 1]. Integers: ``clip(rint(w / s) + z, low, high) - low``.
    """
    if format.levels is None:
        levels = rint(ratio)
        if zero_point is not None:
            levels = op.add(levels, zero_point)
        levels = op.clamp(levels, float(format.low), float(format.high))
        return op.subtract(levels, constant(format.low)) if format.low else levels
    if format.levels == E2M1:
        # Zero is always +0, so the sign begins where the magnitude rounds to more than zero.
        return op.add(_e2m1(op.abs(ratio)), step(op.negative(ratio), 0.25, 8))
    if format.levels == E4M3:
        return _e4m3(ratio)
    grid = level_grid(format)
    if len(grid.values) > _SMALL:
        return _lookup(ratio, format)
    return _steps(ratio, grid.thresholds, grid.codes)


def distance(ratio: Node, bounds: tuple[Node, Node] | None, format: Format) -> Node:
    """How far ``ratio`` lies from the level that its code stands for, in levels; the sign does not matter.

    ``bounds`` are an asymmetric format's lowest and highest levels less the zero point, broadcast against ``ratio``.
    """
    if format.levels is None:
        levels = rint(ratio)
        if bounds is not None:
            levels = op.minimum(op.maximum(levels, bounds[0]), bounds[1])
        else:
            levels = op.clamp(levels, float(format.low), float(format.high))
        return op.subtract(ratio, levels)
    if format.levels == E2M1:
        magnitude = op.abs(ratio)
        code = _e2m1(magnitude)
        steep = op.subtract(op.multiply(code, constant(2)), constant(8))
        levels = op.maximum(op.maximum(op.multiply(code, constant(0.5)), op.subtract(code, constant(2))), steep)
        return op.subtract(magnitude, levels)
    distances = [op.abs(op.subtract(ratio, constant(value))) for value in level_grid(format).values]
    while len(distances) > 1:
        distances = [op.minimum(*pair) if len(pair) > 1 else pair[0] for pair in _pairs(distances)]
    return distances[0]


def _pairs(nodes: list[Node]) -> list[list[Node]]:
    return [nodes[k : k + 2] for k in range(0, len(nodes), 2)]


def _steps(ratio: Node, thresholds: np.ndarray, codes: np.ndarray) -> Node:
    """The first code, and at each threshold that ``ratio`` exceeds the step to the next code."""
    rise = np.diff(codes.astype(np.float32))
    parts = [step(ratio, threshold, height) for threshold, height in zip(thresholds, rise, strict=True)]
    if codes[0]:
        parts.append(constant(codes[0]))
    while len(parts) > 1:
        parts = [op.add(*pair) if len(pair) > 1 else pair[0] for pair in _pairs(parts)]
    return parts[0]


def _e2m1(magnitude: Node) -> Node:
    """Code 0 .. 7 of a magnitude: 0, 0.5, 1, 1.5, 2, 3, 4, 6.

    Each of the three spacings (1/2 up to 2, 1 up to 4, 2 above) gives a code by one rounding, ties to even as the
    codes want it, and the right one is the smallest.
    """
    half = rint(op.multiply(magnitude, constant(2)))
    one = op.add(rint(magnitude), constant(2))
    two = op.add(rint(op.multiply(magnitude, constant(0.5))), constant(4))
    return op.minimum(op.minimum(half, one), op.minimum(two, constant(7)))


def _e4m3(ratio: Node) -> Node:
    magnitude = op.minimum(op.abs(ratio), constant(448))
    power, exponent = power_of_two_below(magnitude, -6, (8, 4, 2, 1))
    count = rint(divide(magnitude, op.multiply(power, constant(0.125))))
    code = op.add(op.multiply(exponent, constant(8)), count)
    return op.add(code, step(op.negative(ratio), 2.0**-10, 128))


def _cells(format: Format) -> tuple[np.ndarray, np.ndarray, float, float] | None:
    """Equal cells over the thresholds, each holding one at most: threshold in it (or infinity) and level index below
    it.

    Returns:
        thresholds [cells], indices [cells], the left end and the inverse width; None where 2^16 cells are not enough.
    """
    thresholds = level_grid(format).thresholds
    left = float(np.nextafter(thresholds[0], np.float32(-np.inf)))
    count = 64
    while count <= _CELLS:
        inverse = np.float32((count - 2) / max(float(thresholds[-1]) - left, 2.0**-60))
        # In f32: rounding keeps the order, so a value beyond a threshold never falls before its cell, nor one before it
        # beyond; but see _lookup.
        cell = np.floor((thresholds - np.float32(left)) * inverse).astype(np.int64)
        if len(np.unique(cell)) == len(cell) and cell[0] >= 0 and cell[-1] < count:
            held = np.full(count, np.inf, dtype=np.float32)
            held[cell] = thresholds
            below = np.searchsorted(cell, np.arange(count), side="left").astype(np.float32)
            return held, below, left, float(inverse)
        count *= 2
    return None


def _lookup(ratio: Node, format: Format) -> Node:
    cells = _cells(format)
    assert cells is not None
    held, below, left, inverse = cells
    place = op.floor(op.multiply(op.subtract(ratio, constant(left)), constant(inverse)))
    place = op.convert(op.clamp(place, 0.0, float(len(held) - 1)), "i32")
    axis = op.constant(np.int64(0))
    above = op.convert(op.greater(ratio, op.gather(constant(held), place, axis)), "f32")
    index = op.add(op.gather(constant(below), place, axis), above)
    # The plugin may fuse the subtraction with the product, and a ratio at the border of two cells lands in the other
    # one: its index is then one off, which the thresholds on either side of it tell.
    thresholds = level_grid(format).thresholds
    ends = np.concatenate([[-np.inf], thresholds, [np.inf]]).astype(np.float32)
    found = op.convert(index, "i32")
    low = op.greater(ratio, op.gather(constant(ends[1:]), found, axis))
    high = op.less_equal(ratio, op.gather(constant(ends[:-1]), found, axis))
    index = op.subtract(op.add(index, op.convert(low, "f32")), op.convert(high, "f32"))
    codes = level_grid(format).codes.astype(np.float32)
    if (codes == np.arange(len(codes))).all():
        return index
    return op.gather(constant(codes), op.convert(index, "i32"), axis)
