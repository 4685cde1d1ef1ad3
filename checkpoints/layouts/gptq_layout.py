"""GPTQ's layout, and AWQ's ("gemm"): the matrix transposed, codes packed into words.

GPTQ packs codes down the input channels, zero points along the output channels:

    qweight   i32 [in·b/32, out]    a bit stream down each column
    qzeros    i32 [G, out·b/32]     a bit stream along each row; version 1 stores z − 1, version 2 stores z
    scales    f16 [G, out]
    g_idx     i32 [in]              each input channel's group; absent: i // g

    w[o, i] = scales[g_idx[i], o] · (q[i, o] − z[g_idx[i], o])

b is 2, 3, 4 or 8 (AutoRound also writes 5, 6 and 7); with 3 bits 32 codes lie in three words, some across two. Words
of 8, 16 or 64 bits hold the same stream.

Version 1's z − 1 wraps around within its field: a stored 2^b − 1 is z = 0. GPTQModel subtracts the ones from whole
words instead, where the field of a z of 0 borrows from its neighbour; what it wrote is read back by adding to the word.

AWQ packs eight output channels into a word, in an order made for a GPU kernel:

    qweight   i32 [in, out/8]
    qzeros    i32 [G, out/8]    z as it is
    scales    f16 [G, out]

    w[o, i] = scales[i // g, o] · (q[i, o] − z[i // g, o])

Nibble n of a word, from the low end, is output channel 0, 2, 4, 6, 1, 3, 5, 7 of its eight. AWQ's own scaling of
channels is folded into the float weights that are beside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    Grouping,
    LayoutRows,
    QuantisedWeight,
    Tensors,
    checked,
    codes_of,
    float_array,
    grouping_of,
    integer_weight,
    plain_grouping,
    required,
)
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array

WORD_BITS = {"I8": 8, "U8": 8, "I16": 16, "I32": 32, "U32": 32, "I64": 64}
"""Of each type that codes are packed into."""
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class GptqVariant:
    """What the checkpoint's configuration says of all its layers, and its tensors do not."""

    bits: int
    group_size: int
    zeros_less_one: bool = True
    """Version 1 of the layout: zero points are stored less one."""
    whole_words: bool = False
    """That one was subtracted from whole words: GPTQModel's version 1."""
    kind: str = "GPTQ"


def gptq_weight(tensors: Tensors, layer: str, variant: GptqVariant) -> QuantisedWeight:
    """The weight of the layer whose tensors are called `layer.qweight` and so on.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the others'.
    """
    bits = variant.bits
    qweight = required(tensors, f"{layer}.qweight")
    if qweight.dtype not in WORD_BITS or len(qweight.shape) != 2:
        raise ModelError(f"{layer}.qweight: is {qweight.dtype} {list(qweight.shape)}, must be a matrix of integers")
    word = WORD_BITS[qweight.dtype]
    packed, rows = qweight.shape
    if packed * word % bits or rows * bits % word:
        raise ModelError(f"{layer}.qweight: shape {[packed, rows]} holds no whole number of {bits}-bit codes")
    columns = packed * word // bits
    names = [f"{layer}.qweight", f"{layer}.scales"]
    scales = checked(tensors, f"{layer}.scales", ("F16", "BF16", "F32"), (None, rows))
    groups = scales.shape[0]
    grouping, has_index = _grouping(tensors, layer, columns, groups, variant)
    if has_index:
        names.append(f"{layer}.g_idx")
    zeros = None
    if f"{layer}.qzeros" in tensors:
        zeros = checked(tensors, f"{layer}.qzeros", (qweight.dtype,), (groups, rows * bits // word))
        names.append(f"{layer}.qzeros")

    def codes(first: int, last: int) -> npt.NDArray[np.uint8]:
        return codes_of(qweight.values()[:, first:last].T, bits, columns)

    def any_rows(numbers: Array) -> tuple[npt.NDArray[np.uint8], Array, npt.NDArray[np.uint8] | None]:
        own = None if zeros is None else _zero_points(zeros.values(), 0, rows, word, variant)[numbers]
        picked = np.take(qweight.values(), numbers, axis=1).T
        return codes_of(picked, bits, columns), float_array(scales, names[1])[:, numbers].T, own

    source = LayoutRows(
        any_rows=any_rows,
        codes=codes,
        scales=lambda first, last: float_array(scales, names[1])[:, first:last].T,
        zeros=None if zeros is None else lambda first, last: _zero_points(zeros.values(), first, last, word, variant),
    )
    kind = f"{variant.kind} {bits} bit"
    said = -(-columns // groups)  # what all groups but the last have
    return integer_weight(
        f"{layer}.weight", kind, (rows, columns), bits, grouping, source, tuple(names), said_group=said
    )


def _grouping(tensors: Tensors, layer: str, columns: int, groups: int, variant: GptqVariant) -> tuple[Grouping, bool]:
    name = f"{layer}.g_idx"
    if name in tensors:
        return grouping_of(checked(tensors, name, ("I32", "I64"), (columns,)).values(), name, groups), True
    return plain_grouping(columns, variant.group_size, groups, f"{layer}.scales"), False


def _zero_points(stored: Array, first: int, last: int, word: int, variant: GptqVariant) -> npt.NDArray[np.uint8]:
    """[last − first, G] z of these output channels."""
    bits = variant.bits
    start = first // word * word  # a whole number of words whatever the bits
    part = stored[:, start * bits // word : -(-last * bits // word)]
    if variant.zeros_less_one and variant.whole_words and 8 % bits == 0:
        kind = _UNSIGNED[part.dtype.itemsize]
        ones = sum(1 << place for place in range(0, word, bits))
        zeros = codes_of(part.view(kind) + kind(ones), bits, last - start)
    else:
        one = np.uint8(variant.zeros_less_one)
        zeros = (codes_of(part, bits, last - start) + one) & np.uint8((1 << bits) - 1)
    return zeros[:, first - start :].T


_BITS, _WORD = 4, 8
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""The nibble that holds each of eight output channels."""


def awq_weight(tensors: Tensors, layer: str, group_size: int, kind: str = "AWQ") -> QuantisedWeight:
    """The weight of the layer whose tensors are called `layer.qweight` and so on; 4 bits.

    Raises:
        ModelError: a tensor is missing, or its type or shape contradicts the others'.
    """
    qweight = checked(tensors, f"{layer}.qweight", ("I32",), (None, None))
    columns, rows = qweight.shape[0], qweight.shape[1] * _WORD
    scales = checked(tensors, f"{layer}.scales", ("F16", "BF16", "F32"), (None, rows))
    groups = scales.shape[0]
    grouping = plain_grouping(columns, group_size, groups, f"{layer}.scales")
    names = [f"{layer}.qweight", f"{layer}.scales"]
    zeros = None
    if f"{layer}.qzeros" in tensors:
        zeros = checked(tensors, f"{layer}.qzeros", ("I32",), (groups, rows // _WORD))
        names.append(f"{layer}.qzeros")
    source = LayoutRows(
        codes=lambda first, last: _channels(qweight.values(), first, last),
        scales=lambda first, last: float_array(scales, names[1])[:, first:last].T,
        zeros=None if zeros is None else lambda first, last: _channels(zeros.values(), first, last),
    )
    shape = (rows, columns)
    return integer_weight(f"{layer}.weight", f"{kind} {_BITS} bit", shape, _BITS, grouping, source, tuple(names))


def _channels(words: Array, first: int, last: int) -> npt.NDArray[np.uint8]:
    """[rows, out/8] words → [last − first, rows], these output channels of them."""
    start = first // _WORD
    part = words[:, start : -(-last // _WORD)]
    nibbles = codes_of(part, _BITS, part.shape[1] * _WORD).T.reshape(-1, _WORD, len(part))
    channels = nibbles[:, _PLACES].reshape(-1, len(part))
    return channels[first - start * _WORD : last - start * _WORD]
