"""The whole kernel for one kind of weight as a graph: a block of groups in, codes and scales out.

It computes what ``quantization.reference`` defines, to the bit: read it beside that. ``quantization.encode`` runs it.
The few operations that it is made of are chosen so that any IEEE machine computes the same bits as numpy.
What the CPU plugin may do to a graph, and how the kernels keep clear of it:

- it turns a division into a multiplication by the reciprocal unless the node is marked: ``divide`` marks it;
- it removes a conversion to f16 and back, since f32 can hold the result: scales are rounded by arithmetic instead;
- it fuses a multiplication with a following addition: products that are added are exact, or have a second consumer;
- it sums in whatever order suits the machine: what is summed are integers small enough for f32 to hold every partial
  sum;
- it may flush subnormal numbers: scales keep everything that matters far above them.

Numbers that belong to a group are [n] or [n, candidates], a small part of the work; so the rounding of scales to a
stored type may take the long way round, by exact powers of two instead of bit operations, which OpenVINO lacks.
Candidates of a search are one more axis, so that one pass of few operations tries them all.

Levels come in four kinds, told apart by the format's row: integers; E2M1 and E4M3, whose codes follow from a few
roundings; any other table of up to 16 levels, where a code is a sum of steps over its thresholds; and large tables,
where a lookup in equal cells, each with one threshold at most, does the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op

from ov_weight_compression.ir_utils.types import F16_MAX, Array, element_type
from ov_weight_compression.quantization.formats import E2M1, E4M3, Format, Spec
from ov_weight_compression.quantization.reference import (
    LARGEST_CHANGE,
    MARGIN,
    REFITS,
    SUM_LIMIT,
    candidate_factors,
    level_grid,
    refit_units,
)

Node = Any  # a node or output of openvino: its opset functions are untyped


def constant(value: Any) -> Node:
    """f32 constant."""
    return op.constant(np.asarray(value, dtype=np.float32))


def divide(a: Node, b: Node) -> Node:
    """A true division, correctly rounded: the mark stops the rewrite into a multiplication by 1 / b."""
    node = op.divide(a, b)
    node.get_rt_info()["nonconvertable_divide_0"] = True
    return node


def rint(x: Node) -> Node:
    """To the nearest integer, ties to even."""
    return op.round(x, "half_to_even")


def total(x: Node) -> Node:
    """[.., g] -> [.., 1]: only a reduction that keeps its axis becomes one loop with what it sums up."""
    return op.reduce_sum(x, [-1], keep_dims=True)


def largest(x: Node) -> Node:
    """[.., g] -> [.., 1], as ``total``. (A least one would be a loop of its own: take the largest negative.)"""
    return op.reduce_max(x, [-1], keep_dims=True)


def step(x: Node, threshold: float, height: float) -> Node:
    """``height`` where ``x > threshold``, else 0, as f32; ``height`` up to 2^16, of either sign.

    A clamp is cheaper than a comparison and a selection, and as exact: two f32 numbers, one of them above 2^-60 in
    magnitude, differ by nothing or by at least 2^-84.
    """
    threshold, height = float(threshold), float(height)
    if abs(threshold) < 2.0**-60:
        return op.select(op.greater(x, constant(threshold)), constant(height), constant(0))
    steep = op.multiply(op.subtract(x, constant(threshold)), constant(2.0**100))
    return op.clamp(steep, 0.0, height) if height > 0 else op.negative(op.clamp(steep, 0.0, -height))


def power_of_two_below(x: Node, lowest: int, steps: Sequence[int]) -> tuple[Node, Node]:
    """The largest power of two not above ``x``, from 2^lowest to 2^(lowest + sum(steps)), by bisection of the exponent.

    Args:
        x: f32, positive.
        lowest: exponent of the result for any smaller ``x``.
        steps: falling powers of two, 64 at most (they may repeat), down to 1; their sum is the range of exponents.

    Returns:
        the power as f32, and its exponent less ``lowest``, as f32. Comparisons and exact products only.
    """
    power = constant(2.0**lowest)
    exponent = constant(0.0)
    for size in steps:
        higher = op.multiply(power, constant(2.0**size))
        take = op.greater_equal(x, higher)
        power = op.select(take, higher, power)
        exponent = op.select(take, op.add(exponent, constant(float(size))), exponent)
    return power, exponent


SMALL = 16  # levels up to which a sum of steps is used
_CELLS = 1 << 16  # most cells of a lookup
_LIMIT, _TINY = 2.0**100, 2.0**-100


@dataclass(frozen=True)
class Key:
    """What a compiled kernel depends on.

    Attributes:
        spec: format, scales' type, number of candidates; its group size does not matter.
        group: weights in a group.
        source: OpenVINO's name of the groups' element type, ``f16`` or ``f32``.
        graph: the search multiplies importance by ``|W| + rms(W)``.
        importance: the kernel has an input for it.
        starts: of the refit of what the search finds; none for no refit.
    """

    spec: Spec
    group: int
    source: str
    graph: bool = False
    importance: bool = False
    starts: tuple[float, ...] = ()


def build(key: Key, block: int) -> ov.Model:
    """A model over ``block`` groups.

    Inputs: ``groups`` [block, g]; ``importance`` [block, g] f32; ``tensor_scale`` [1] f32; the last two only where
    used. Outputs: codes u8 (u16) [block, g], ``flip`` still to be applied; scales as stored [block]; for an asymmetric
    format zero points u8 [block].
    """
    spec = key.spec
    format = spec.format
    inputs: dict[str, Node] = {"groups": op.parameter([block, key.group], element_type(key.source))}
    if key.importance:
        inputs["importance"] = op.parameter([block, key.group], ov.Type.f32)
    if format.tensor_scale:
        inputs["tensor_scale"] = op.parameter([1], ov.Type.f32)
    for name, node in inputs.items():
        node.output(0).set_names({name})
    groups: Node = op.convert(inputs["groups"], "f32")
    importance, tensor_scale = inputs.get("importance"), inputs.get("tensor_scale")
    scale, zero_point, absmax = _plain_scales(groups, format, block)
    if spec.search > 1:
        weight = _error_weights(groups, absmax, key.group, importance, key.graph, format)
        scale = _best_scales(groups, key.group, scale, zero_point, weight, spec, tensor_scale)
        if key.starts:
            scale = _refit(groups, block, scale, zero_point, weight, spec, tensor_scale, key.starts)
    value = _stored_value(scale, spec, tensor_scale)
    ratio = divide(groups, op.unsqueeze(value, 1))
    pattern = _patterns(ratio, None if zero_point is None else op.unsqueeze(zero_point, 1), format)
    stored = value  # what is stored for each scale: of an f8 type its bits
    if spec.scale_type == "f16":
        stored = op.convert(value, "f16")
    elif spec.scale_type == "f8e8m0":
        _, exponent = _power_above(scale)
        stored = op.convert(op.add(exponent, constant(27)), "u8")
    elif spec.scale_type == "f8e4m3":
        bits, _ = _e4m3_scale(scale, tensor_scale)
        stored = op.convert(bits, "u8")
    outputs = [op.convert(pattern, "u8" if format.bits <= 8 else "u16"), stored]
    if zero_point is not None:
        outputs.append(op.convert(zero_point, "u8"))
    return ov.Model([op.result(output) for output in outputs], [*inputs.values()], f"{format.name}_{key.group}")


def _patterns(ratio: Node, zero_point: Node | None, format: Format) -> Node:
    """Codes, as f32 numbers, of ``ratio = w / s`` [n, g]; the format's ``flip`` still to be applied.

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
        code, _ = _e4m3(op.minimum(op.abs(ratio), constant(448)))
        return op.add(code, step(op.negative(ratio), 2.0**-10, 128))
    grid = level_grid(format)
    if len(grid.values) > SMALL:
        return _lookup(ratio, format)
    return _steps(ratio, grid.thresholds, grid.codes)


def _distance(ratio: Node, low: Node | None, format: Format) -> Node:
    """How far ``ratio`` lies from the level that its code stands for, in levels; the sign does not matter.

    ``low`` is the lowest level of an asymmetric format's group, broadcast against ``ratio``.
    """
    if format.levels is None or format.levels == E2M1:
        return _levels(ratio, low, format)[1]
    distances = [op.abs(op.subtract(ratio, constant(value))) for value in level_grid(format).values]
    while len(distances) > 1:
        distances = [op.minimum(*pair) if len(pair) > 1 else pair[0] for pair in _pairs(distances)]
    return distances[0]


def _pairs(nodes: list[Node]) -> list[list[Node]]:
    return [nodes[k : k + 2] for k in range(0, len(nodes), 2)]


def _steps(ratio: Node, thresholds: Array, codes: Array) -> Node:
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


@lru_cache(maxsize=64)
def cells(format: Format) -> tuple[Array, Array, float, float] | None:
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
    found = cells(format)
    assert found is not None
    held, below, left, inverse = found
    place = op.floor(op.multiply(op.subtract(ratio, constant(left)), constant(inverse)))
    place = op.convert(op.clamp(place, 0.0, float(len(held) - 1)), "i32")
    axis = op.constant(np.int64(0))
    above = op.convert(op.greater(ratio, op.gather(constant(held), place, axis)), "f32")
    index = op.add(op.gather(constant(below), place, axis), above)
    # The plugin may fuse the subtraction with the product, and a ratio at the border of two cells lands in the other
    # one: its index is then one off, which the thresholds on either side of it tell.
    thresholds = level_grid(format).thresholds
    ends = np.concatenate([[-np.inf], thresholds, [np.inf]]).astype(np.float32)
    near = op.convert(index, "i32")
    low = op.greater(ratio, op.gather(constant(ends[1:]), near, axis))
    high = op.less_equal(ratio, op.gather(constant(ends[:-1]), near, axis))
    index = op.subtract(op.add(index, op.convert(low, "f32")), op.convert(high, "f32"))
    codes = level_grid(format).codes.astype(np.float32)
    if (codes == np.arange(len(codes))).all():
        return index
    return op.gather(constant(codes), op.convert(index, "i32"), axis)


def _plain_scales(groups: Node, format: Format, block: int) -> tuple[Node, Node | None, Node]:
    """The plain scales (``reference.plain_scales``) of groups [block, g].

    Returns:
        unrounded scale [n]; zero point [n] for an asymmetric format, else None; largest magnitude [n].
    """
    # One divisor per group, all the same: a division by one number would become part of the reduction before it, and
    # there a multiplication.
    top = constant(np.full(block, format.top))
    if format.levels is not None:
        absmax = op.squeeze(largest(op.abs(groups)), -1)
        return divide(absmax, top), None, absmax
    low, high = op.negative(op.squeeze(largest(op.negative(groups)), -1)), op.squeeze(largest(groups), -1)
    absmax = op.maximum(op.negative(low), high)
    if format.asymmetric:
        low, high = op.minimum(low, constant(0)), op.maximum(high, constant(0))
        scale = op.maximum(divide(op.subtract(high, low), top), constant(_TINY))
        return scale, op.clamp(rint(divide(op.negative(low), scale)), 0.0, float(format.high)), absmax
    flipped = op.greater(high, op.negative(low))
    scale = divide(op.select(flipped, op.negative(high), op.negative(low)), top)
    return scale, None, absmax


def _stored_value(scale: Node, spec: Spec, tensor_scale: Node | None) -> Node:
    """The f32 value of each scale as stored, same shape (``scale_values(store_scales(...))``)."""
    if spec.scale_type == "f8e8m0":
        power, _ = _power_above(scale)
        return power
    if spec.scale_type == "f8e4m3":
        _, value = _e4m3_scale(scale, tensor_scale)
        return op.multiply(value, tensor_scale)
    smallest, largest = (_TINY, _LIMIT) if spec.scale_type == "f32" else (2.0**-24, F16_MAX)
    magnitude = op.clamp(op.abs(scale), smallest, largest)
    if spec.scale_type == "f16":
        # f16 keeps eleven bits of a number, and no bit below 2^-24.
        power, _ = power_of_two_below(magnitude, -14, (16, 8, 4, 2, 1))
        unit = op.multiply(power, constant(2.0**-10))
        magnitude = op.multiply(rint(divide(magnitude, unit)), unit)
    return op.select(op.less(scale, constant(0)), op.negative(magnitude), magnitude)


def _power_above(scale: Node) -> tuple[Node, Node]:
    """The smallest power of two not below ``scale``, within 2^-100 .. 2^100, and its exponent plus 100."""
    magnitude = op.clamp(op.abs(scale), _TINY, _LIMIT)
    power, exponent = power_of_two_below(magnitude, -100, (64, 64, 64, 32, 16, 8, 4, 2, 1))
    exact = op.equal(power, magnitude)
    return (
        op.select(exact, power, op.multiply(power, constant(2))),
        op.select(exact, exponent, op.add(exponent, constant(1))),
    )


def _e4m3(magnitude: Node) -> tuple[Node, Node]:
    """Bits 0 .. 126, as f32 numbers, and value of a magnitude of up to 448 rounded to E4M3."""
    power, exponent = power_of_two_below(magnitude, -6, (8, 4, 2, 1))
    unit = op.multiply(power, constant(0.125))
    count = rint(divide(magnitude, unit))  # 8 .. 16, the leading bit included; 0 .. 8 for subnormals
    return op.add(op.multiply(exponent, constant(8)), count), op.multiply(count, unit)


def _e4m3_scale(scale: Node, tensor_scale: Node | None) -> tuple[Node, Node]:
    """Bits and value of ``scale / tensor_scale`` rounded to E4M3, within 2^-9 .. 448."""
    return _e4m3(op.clamp(divide(op.abs(scale), tensor_scale), 2.0**-9, 448.0))


def _error_weights(
    groups: Node, absmax: Node, group: int, importance: Node | None, graph: bool, format: Format
) -> Node:
    """[n, g] weights of the elements' errors (``reference.group_weights``); ``absmax`` is [n]."""
    result = importance
    if graph:
        fraction = op.unsqueeze(divide(constant(1024), op.maximum(absmax, constant(2.0**-100))), 1)
        magnitude = rint(op.multiply(op.abs(groups), fraction))
        unit = 2.0 ** -max(0, int(np.ceil(np.log2(group))) - 4)
        squares = rint(op.multiply(op.multiply(magnitude, magnitude), constant(unit)))
        mean = divide(total(squares), constant(np.float32(group) * unit))
        shaped = op.add(magnitude, op.sqrt(mean))
        result = shaped if result is None else op.multiply(result, shaped)
    limit = np.float32(SUM_LIMIT // group / format.reach**2)
    if result is None:
        return constant([[limit]])
    return op.multiply(result, divide(constant(limit), op.maximum(largest(result), constant(2.0**-60))))


def _best_scales(
    groups: Node, group: int, scale: Node, zero_point: Node | None, weight: Node, spec: Spec, tensor_scale: Node | None
) -> Node:
    """[n] unrounded scale of each group's best candidate (``reference.best_scales``)."""
    factors = candidate_factors(spec)
    count = len(factors)
    # Rounded as [count, n], so that vectors run along the long axis, then turned round: they are few.
    candidates = op.multiply(op.unsqueeze(scale, 0), constant(factors[:, None]))
    values = op.transpose(_stored_value(candidates, spec, tensor_scale), [1, 0])  # [n, count]
    low = None if zero_point is None else op.unsqueeze(op.negative(zero_point), [1, 2])
    ratio = op.multiply(op.unsqueeze(groups, 1), op.unsqueeze(divide(constant(1), values), 2))  # [n, count, g]
    apart = _distance(ratio, low, spec.format)
    summands = op.multiply(op.multiply(apart, apart), op.unsqueeze(weight, 1))
    summands = rint(op.minimum(summands, constant(SUM_LIMIT // group)))
    relative = divide(values, op.unsqueeze(_stored_value(scale, spec, tensor_scale), 1))
    errors = op.multiply(op.multiply(op.squeeze(total(summands), -1), relative), relative)
    errors = op.multiply(errors, constant(np.where(np.arange(count) == 0, 1, MARGIN)[None]))
    return _first_of_least(op.transpose(candidates, [1, 0]), errors, count)


def _first_of_least(candidates: Node, errors: Node, count: int) -> Node:
    """[n]: of the candidates [n, count] of each group the first that has the least error [n, count]."""
    order = constant(np.arange(count)[None])
    least = op.reduce_min(errors, [1], keep_dims=True)
    place = op.reduce_min(op.select(op.less_equal(errors, least), order, constant(count)), [1], keep_dims=True)
    return op.reduce_sum(op.select(op.equal(order, place), candidates, constant(0)), [1], keep_dims=False)


def _refit(
    groups: Node,
    block: int,
    scale: Node,
    zero_point: Node | None,
    weight: Node,
    spec: Spec,
    tensor_scale: Node | None,
    starts: Sequence[float],
) -> Node:
    """[n] unrounded scales (``reference.refit``). What belongs to a start of a group is [n * starts], where vectors
    run on, and [n, starts, 1] beside the groups."""
    format, count = spec.format, len(starts)
    far, finer, unit = refit_units(format)
    plain = op.unsqueeze(_stored_value(scale, spec, tensor_scale), 1)
    first = op.reshape(op.multiply(plain, constant(np.ones((1, count)))), [block * count], special_zero=False)
    current = op.multiply(first, constant(np.tile(np.asarray(starts, dtype=np.float32), block)))
    low = None if zero_point is None else op.unsqueeze(op.negative(zero_point), [1, 2])
    groups, weight = op.unsqueeze(groups, 1), op.unsqueeze(op.multiply(weight, constant(finer)), 1)
    best = least = None
    for left in range(REFITS, -1, -1):
        value = _stored_value(current, spec, tensor_scale)
        ratio = op.multiply(groups, op.reshape(divide(constant(1), value), [block, count, 1], special_zero=False))
        levels, apart = _levels(ratio, low, format)
        apart = op.clamp(apart, -float(far), float(far))
        weighted = op.multiply(apart, weight)
        sums = [op.multiply(apart, weighted)]
        if left:
            levels = op.multiply(levels, constant(unit))
            sums += [op.multiply(levels, weighted), op.multiply(levels, op.multiply(levels, weight))]
        error, *fit = [op.reshape(total(rint(each)), [block * count], special_zero=False) for each in sums]
        relative = divide(value, first)
        error = op.multiply(op.multiply(error, relative), relative)
        if best is None:
            best, least = value, error
        else:
            best = op.select(op.less(error, least), value, best)
            least = op.minimum(error, least)
        if left:
            change = divide(op.multiply(fit[0], constant(unit)), op.maximum(fit[1], constant(1)))
            change = op.clamp(change, -float(LARGEST_CHANGE), float(LARGEST_CHANGE))
            current = op.multiply(value, op.add(change, constant(1)))
    if count == 1:
        return best
    return _first_of_least(
        op.reshape(best, [block, count], special_zero=False),
        op.reshape(least, [block, count], special_zero=False),
        count,
    )


def _levels(ratio: Node, low: Node | None, format: Format) -> tuple[Node, Node]:
    """The level nearest to each ``ratio`` and how far it is from there, in levels; both of the other sign perhaps.

    ``low`` is the lowest level of an asymmetric format's group, broadcast against ``ratio``.
    """
    if format.levels is None:
        levels = rint(ratio)
        if low is not None:
            levels = op.minimum(op.maximum(levels, low), op.add(low, constant(format.high)))
        else:
            levels = op.clamp(levels, float(format.low), float(format.high))
        return levels, op.subtract(ratio, levels)
    if format.levels == E2M1:
        magnitude = op.abs(ratio)
        code = _e2m1(magnitude)
        steep = op.subtract(op.multiply(code, constant(2)), constant(8))
        levels = op.maximum(op.maximum(op.multiply(code, constant(0.5)), op.subtract(code, constant(2))), steep)
        return levels, op.subtract(magnitude, levels)
    grid = level_grid(format)
    levels = constant(grid.values[0])
    for threshold, value in zip(grid.thresholds, grid.values[1:], strict=True):
        levels = op.select(op.greater(ratio, constant(threshold)), constant(value), levels)
    return levels, op.subtract(ratio, levels)
