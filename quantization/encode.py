"""Rows of a weight to stored arrays and back: the front door of this room.

A weight comes as its canonical matrix ``[rows, in]``, the reduction axis last; rows do not depend on each other, so a
caller may cut them as it likes and use as many threads as it likes: the bytes are the same.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.file_mappings import FileRows
from ov_weight_compression.ir_utils.types import Array, Float32, pack, packed_size, to_f32
from ov_weight_compression.quantization.formats import PER_CHANNEL, Encoded, Spec, stored_codebook
from ov_weight_compression.quantization.kernels import Kernel, Key, flip_mask, kernel_for, repeated
from ov_weight_compression.quantization.reference import (
    code_dtype,
    decode_codes,
    nearest_codes,
    plain_scales,
    scale_values,
    store_scales,
    tensor_scale_of,
)
from ov_weight_compression.quantization.scale_search import STARTS, best_scales, group_weights, refit

Weighting = Literal["graph", "data", "trial"]

_SCALE_DTYPES = {"f16": np.float16, "f32": np.float32, "f8e8m0": np.uint8, "f8e4m3": np.uint8}

# Elements that the reference works on at a time.
_REFERENCE_ELEMENTS = 1 << 17


def encode_rows(
    values: Array | FileRows,
    spec: Spec,
    *,
    importance: Float32 | None = None,
    weighting: Weighting = "graph",
    tensor_scale: np.float32 | None = None,
    packed: bool = False,
    into: Encoded | None = None,
) -> Encoded:
    """Quantise rows of a weight.

    Args:
        values: [rows, in] of any float type, all of them finite. float16 and float32 are read as they are, and may lie
            in a file still.
        spec: how to store them.
        importance: [in] f32 >= 0, what an error in each input channel weighs in the scale search; None for all alike.
            With ``"graph"`` also [blocks, in], for so many weights one below the other.
        weighting: ``"data"``: importance is E[x_j^2] of the layer's input and used as it is, and what the search finds
            is refitted (see ``refit``); ``"trial"``: the same in a third of the time and not quite as well, for codes
            that are improved afterwards or only measured; ``"graph"``: it is what the graph alone tells (squared gains
            of the norm in front) and is multiplied by ``|W| + rms(W)``.
        tensor_scale: ``tensor_scale_of`` the whole weight's largest magnitude, for formats that have one; by default
            that of these rows, which is right only where they are the whole weight.
        packed: return ``codes`` [rows, bytes of a row] uint8 as the tensor holds them: faster than packing later.
        into: contiguous arrays of the right shapes and types, to be filled and returned; new ones by default.

    Returns:
        The stored arrays for these rows.

    Raises:
        ValueError: the rows cannot be cut into groups as ``spec`` says, or packed rows are not whole bytes (blocks, for
            3 bits).
    """
    rows, width = values.shape
    group = spec.group_of(width)
    if not isinstance(values, FileRows):
        if values.dtype != np.float16:
            values = values.astype(np.float32, copy=False)
        values = np.ascontiguousarray(values)
    groups = values.reshape(-1, group)
    if spec.format.tensor_scale and tensor_scale is None:
        tensor_scale = tensor_scale_of(float(np.abs(np.asarray(groups)).max(initial=0.0)), spec.format)
    energy = _per_group(importance, spec, rows, group)
    starts: tuple[float, ...] = ()
    if energy is not None and weighting != "graph":
        starts = STARTS if weighting == "data" and spec.format.levels is None else STARTS[:1]
    parts = _Parts(rows, width, group, spec, packed, into)
    _encode(groups, spec, tensor_scale, energy, weighting == "graph", starts, parts)
    codes = parts.codes
    if packed and not parts.packs:
        codes = pack(codes, spec.format.bits, None if into is None else into.codes.reshape(-1))
    zero_point = parts.zero_point
    return Encoded(
        codes=codes.reshape(rows, packed_size(width, spec.format.bits) if packed else width),
        scale=parts.scale.reshape(rows, width // group),
        zero_point=None if zero_point is None else zero_point.reshape(rows, width // group),
        tensor_scale=tensor_scale if spec.format.tensor_scale else None,
        codebook=stored_codebook(spec.format),
    )


def decode_rows(encoded: Encoded, spec: Spec) -> Float32:
    """[rows, in] f32 from unpacked codes: exactly what OpenVINO computes from the stored chain with f32 inference."""
    rows, width = encoded.codes.shape
    zero_point = encoded.zero_point
    groups = decode_groups(
        encoded.codes.reshape(encoded.scale.size, -1),
        encoded.scale.reshape(-1),
        None if zero_point is None else zero_point.reshape(-1),
        spec,
        encoded.tensor_scale,
    )
    return groups.reshape(rows, width)


def turn_over_first_group(encoded: Encoded, spec: Spec, *, packed: bool) -> Encoded:
    """The same values with another zero point than 0 in the first group, for codes of u2 that have one in each group.

    Where all zero points of a tensor are 0 OpenVINO (2026.4) drops the Subtract, and u2 without one its CPU plugin does
    not compile. So a first group with zero point 0 is stored the other way round: codes `3 - q`, zero point 3, and the
    scale negative. Arrays that can be written to are changed in place.

    Args:
        encoded: the first rows of a weight.
        spec: how it is stored.
        packed: its codes are bytes as the tensor holds them.
    """
    if spec.format.storage != "u2" or encoded.zero_point is None or encoded.zero_point.reshape(-1)[:1].any():
        return encoded
    parts = (encoded.codes, encoded.scale, encoded.zero_point)
    codes, scale, zero_point = (part if part.flags.writeable else part.copy() for part in parts)
    group = spec.group_of(codes.shape[1] * 4 if packed else codes.shape[1])
    flat = codes.reshape(-1)
    if packed:
        flat[: group // 4] ^= 0xFF
        flat[group // 4 : group // 4 + 1] ^= (1 << 2 * (group % 4)) - 1
    else:
        flat[:group] ^= 3
    scale.reshape(-1)[:1] *= -1
    zero_point.reshape(-1)[:1] = 3
    return replace(encoded, codes=codes, scale=scale, zero_point=zero_point)


def encode_groups(
    groups: Float32,
    spec: Spec,
    tensor_scale: np.float32 | None = None,
    importance: Float32 | None = None,
    graph: bool = False,
    starts: tuple[float, ...] = (),
) -> tuple[Array, Array, npt.NDArray[np.uint8] | None]:
    """Scales, plain or searched, and the codes nearest for them.

    Args:
        groups: [n, g] f32, a group a row.
        spec: format, the scales' type, number of candidates.
        tensor_scale: of the whole weight, for formats that have one.
        importance: [n, g] f32 within [2^-40, 1] for a search, or None for all alike.
        graph: the search multiplies importance by ``|W| + rms(W)``.
        starts: of a refit of what the search finds; none for no refit.

    Returns:
        codes [n, g], stored scales [n], zero points [n] uint8 or None.
    """
    scale, zero_point = plain_scales(groups, spec.format)
    if spec.search > 1:
        weights = group_weights(groups, importance, graph, spec.format)
        scale = best_scales(groups, scale, zero_point, weights, spec, tensor_scale)
        if starts:
            scale = refit(groups, scale, zero_point, weights, spec, tensor_scale, starts)
    stored = store_scales(scale, spec, tensor_scale)
    values = scale_values(stored, spec, tensor_scale)[:, None]
    codes = nearest_codes(groups, values, None if zero_point is None else zero_point[:, None], spec.format)
    return codes, stored, None if zero_point is None else zero_point.astype(np.uint8)


def decode_groups(
    codes: Array,
    stored: Array,
    zero_point: npt.NDArray[np.uint8] | None,
    spec: Spec,
    tensor_scale: np.float32 | None = None,
) -> Float32:
    """[n, g] f32 from what ``encode_groups`` returned."""
    values = scale_values(stored, spec, tensor_scale)[:, None]
    return decode_codes(codes, values, None if zero_point is None else zero_point[:, None], spec.format)


def _encode(
    groups: Array | FileRows,
    spec: Spec,
    tensor_scale: np.float32 | None,
    importance: Float32 | None,
    graph: bool,
    starts: tuple[float, ...],
    parts: "_Parts",
) -> None:
    graph = graph and spec.search > 1
    kernel = _kernel(groups, spec, importance is not None, graph, starts)
    if kernel is not None:
        kernel.run(groups, importance, tensor_scale, parts.take)
        return
    step = max(1, _REFERENCE_ELEMENTS // groups.shape[1])
    for start in range(0, len(groups), step):
        block = to_f32(np.asarray(groups[start : start + step]))
        weights = None if importance is None else repeated(importance, start, start + len(block))
        codes, scale, zero_point = encode_groups(block, spec, tensor_scale, weights, graph, starts)
        mask = code_dtype(spec.format)(flip_mask(spec.format))
        parts.take(start, [codes ^ mask, scale, *([] if zero_point is None else [zero_point])])


def _kernel(
    groups: Array | FileRows, spec: Spec, importance: bool, graph: bool, starts: tuple[float, ...]
) -> Kernel | None:
    source = "f16" if groups.dtype == np.float16 else "f32"
    return kernel_for(_key(spec, groups.shape[1], source, graph, importance, starts), groups.size)


@lru_cache(maxsize=64)
def _key(spec: Spec, group: int, source: str, graph: bool, importance: bool, starts: tuple[float, ...]) -> Key:
    group_size = spec.format.default_group if spec.format.fixed_group else PER_CHANNEL
    own = replace(spec, group_size=group_size, search=spec.search if spec.search > 1 else 0)
    return Key(own, group, source, graph, importance, starts)


class _Parts:
    """The arrays of a result, filled block by block."""

    def __init__(self, rows: int, width: int, group: int, spec: Spec, packed: bool, into: Encoded | None) -> None:
        bits = spec.format.bits
        if packed and packed_size(width, bits) * 8 != width * bits:
            raise ValueError(f"a row of {width} codes of {bits} bits does not end on a whole byte")
        # Where groups end on whole bytes too, each block is packed while it is still in the cache.
        self.packs = packed and packed_size(group, bits) * 8 == group * bits
        self.bits = bits
        self.mask = flip_mask(spec.format)
        count = rows * (width // group)
        shape, dtype = (count, group), code_dtype(spec.format)
        if self.packs:
            shape, dtype = (count, group * bits // 8), np.uint8
            self.mask *= 0x11 if bits == 4 else 1  # signed codes are of 4 or 8 bits
        asymmetric = spec.format.asymmetric
        self.codes: Array
        self.scale: Array
        self.zero_point: Array | None
        if into is None or into.codes.size != count * shape[1]:
            self.codes = np.empty(shape, dtype=dtype)
        else:
            self.codes = into.codes.reshape(shape)
        if into is None:
            self.scale = np.empty(count, dtype=_SCALE_DTYPES[spec.scale_type])
            self.zero_point = np.empty(count, dtype=np.uint8) if asymmetric else None
        else:
            self.scale = into.scale.reshape(count)
            self.zero_point = None if into.zero_point is None else into.zero_point.reshape(count)

    def take(self, start: int, outputs: list[Array]) -> None:
        codes = outputs[0]
        stop = start + len(codes)
        target = self.codes[start:stop]
        if self.packs and self.bits != 8:
            pack(codes, self.bits, target.reshape(-1))
            codes = target
        if self.mask:
            np.bitwise_xor(codes, codes.dtype.type(self.mask), out=target)
        elif codes is not target:
            target[:] = codes
        self.scale[start:stop] = outputs[1]
        if self.zero_point is not None:
            self.zero_point[start:stop] = outputs[2]


def _per_group(importance: Float32 | None, spec: Spec, rows: int, group: int) -> Float32 | None:
    """[groups of a row, g], or of all rows where there are blocks: importance scaled to the block's largest, nothing
    counts for less than 2^-40 of it.

    None where the search has no use for it.
    """
    if importance is None or spec.search <= 1:
        return None
    blocks = np.atleast_2d(importance)
    largest = blocks.max(axis=1, initial=0.0, keepdims=True).astype(np.float64)
    known = (largest > 0) & (largest < np.inf)
    if not known.any():
        return None
    scaled = np.clip(np.where(known, blocks, 1) / np.where(known, largest, 1), 2.0**-40, 1).astype(np.float32)
    if len(scaled) > 1:
        scaled = np.repeat(scaled, rows // len(scaled), axis=0)
    return scaled.reshape(-1, group)
