"""Rows of a weight to stored arrays and back: the front door of this room.

A weight comes as its canonical matrix ``[rows, in]``, the reduction axis last; rows do not depend on each other, so a
caller may cut them as it likes and use as many threads as it likes: the bytes are the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from ov_weight_compression.ir_utils.file_io import FileRows
from ov_weight_compression.ir_utils.types import Array, Float32, pack, tensor_bytes, to_f32
from ov_weight_compression.quantization.formats import Encoded, Spec
from ov_weight_compression.quantization.kernels import Key, kernel_for
from ov_weight_compression.quantization.reference import STARTS, decode_groups, encode_groups, tensor_scale_of

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
    copy: Callable[[Array, Array], None] = np.copyto
    if isinstance(values, FileRows):
        copy, values = values.read_into, values.mapped
    elif values.dtype != np.float16:
        values = values.astype(np.float32, copy=False)
    rows, width = values.shape
    format, bits, group = spec.format, spec.format.bits, spec.group_of(width)
    groups = np.ascontiguousarray(values).reshape(-1, group)
    if format.tensor_scale and tensor_scale is None:
        whole = np.empty_like(groups)
        copy(whole, groups)
        tensor_scale = tensor_scale_of(float(np.abs(whole).max(initial=0.0)), format)
    energy = None if importance is None or spec.search <= 1 else _per_group(importance, rows, group)
    starts: tuple[float, ...] = ()
    if energy is not None and weighting != "graph":
        starts = STARTS if weighting == "data" and format.levels is None else STARTS[:1]
    graph = weighting == "graph" and spec.search > 1

    row_bytes, group_bytes = tensor_bytes(width, bits), tensor_bytes(group, bits)
    if packed and row_bytes * 8 != width * bits:
        raise ValueError(f"a row of {width} codes of {bits} bits does not end on a whole byte")
    # Where groups end on whole bytes too, each block is packed while it is still in the cache.
    in_blocks = packed and group_bytes * 8 == group * bits
    shape = (len(groups), group_bytes if in_blocks else group)
    if into is not None and into.codes.size == shape[0] * shape[1]:
        codes = into.codes.reshape(shape)
    else:
        codes = np.empty(shape, dtype=np.uint8 if in_blocks else format.code_dtype)
    if into is not None:
        scale, zero_point = into.scale, into.zero_point
    else:
        scale = np.empty((rows, width // group), dtype=_SCALE_DTYPES[spec.scale_type])
        zero_point = np.empty(scale.shape, dtype=np.uint8) if format.asymmetric else None
    source = "f16" if groups.dtype == np.float16 else "f32"
    kernel = kernel_for(Key(spec, group, source, graph, energy is not None, starts), groups.size)
    if kernel is not None:
        blocks, flip = kernel.run(groups, copy, energy, tensor_scale), format.flip
    else:
        blocks, flip = _by_reference(groups, copy, spec, tensor_scale, energy, graph, starts), 0
    if in_blocks and bits == 4:
        flip *= 0x11
    for start, (block, *beside) in blocks:
        stop = start + len(block)
        target = codes[start:stop]
        if in_blocks and bits != 8:
            block = pack(block, bits, target.reshape(-1)).reshape(target.shape)
        if flip:
            np.bitwise_xor(block, block.dtype.type(flip), out=target)
        elif not in_blocks or bits == 8:
            target[:] = block
        scale.reshape(-1)[start:stop] = beside[0]
        if zero_point is not None:
            zero_point.reshape(-1)[start:stop] = beside[1]
    if packed and not in_blocks:
        codes = pack(codes, bits, None if into is None else into.codes.reshape(-1))
    return Encoded(
        codes=codes.reshape(rows, row_bytes if packed else width),
        scale=scale.reshape(rows, width // group),
        zero_point=None if zero_point is None else zero_point.reshape(rows, width // group),
        tensor_scale=tensor_scale if format.tensor_scale else None,
        codebook=format.table,
    )


def _by_reference(
    groups: Array,
    copy: Callable[[Array, Array], None],
    spec: Spec,
    tensor_scale: np.float32 | None,
    importance: Float32 | None,
    graph: bool,
    starts: tuple[float, ...],
) -> Iterator[tuple[int, list[Array]]]:
    """As `Kernel.run`, with codes as they are stored."""
    step = max(1, _REFERENCE_ELEMENTS // groups.shape[1])
    for start in range(0, len(groups), step):
        block = np.empty(groups[start : start + step].shape, groups.dtype)
        copy(block, groups[start : start + step])
        weights = None if importance is None else importance[np.arange(start, start + len(block)) % len(importance)]
        codes, scale, zero_point = encode_groups(to_f32(block), spec, tensor_scale, weights, graph, starts)
        yield start, [codes, scale] if zero_point is None else [codes, scale, zero_point]


def _per_group(importance: Float32, rows: int, group: int) -> Float32 | None:
    """[groups of a row, g], or of all rows where there are blocks: importance scaled to the block's largest, nothing
    counts for less than 2^-40 of it. None where nothing counts at all."""
    blocks = np.atleast_2d(importance)
    largest = blocks.max(axis=1, initial=0.0, keepdims=True).astype(np.float64)
    known = (largest > 0) & (largest < np.inf)
    if not known.any():
        return None
    scaled = np.clip(np.where(known, blocks, 1) / np.where(known, largest, 1), 2.0**-40, 1).astype(np.float32)
    if len(scaled) > 1:
        scaled = np.repeat(scaled, rows // len(scaled), axis=0)
    return scaled.reshape(-1, group)


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
        spec: how it is stored, in u2.
        packed: its codes are bytes as the tensor holds them.
    """
    if encoded.zero_point is None or encoded.zero_point.reshape(-1)[:1].any():
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
