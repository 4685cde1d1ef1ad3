"""Writers of quantised layers, each from its format's definition and readable rather than fast.

A row of codes is packed as one big whole number, code i at bit i·b; nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
DTYPES = {"F16": np.float16, "F32": np.float32, "BF16": np.uint16, "I32": np.int32, "I64": np.int64, "I8": np.int8,
          "U8": np.uint8, "F8_E4M3": np.uint8, "F8_E8M0": np.uint8, "I16": np.int16}  # fmt: skip


@dataclass(frozen=True, eq=False)
class MemoryTensor:
    """A tensor of a checkpoint that is an array."""

    dtype: str
    data: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def values(self) -> Array:
        return self.data


def tensor(dtype: str, data: Array) -> MemoryTensor:
    """A tensor of this type; what numpy lacks comes as bits."""
    return MemoryTensor(dtype, np.ascontiguousarray(data, dtype=DTYPES[dtype]))


def words(codes: Sequence[int], bits: int, word: int = 32) -> list[int]:
    """The words of a bit stream, as unsigned numbers; the last one is filled with zeros."""
    number = sum(int(code) << (place * bits) for place, code in enumerate(codes))
    count = -(-len(codes) * bits // word)
    return [(number >> (place * word)) & ((1 << word) - 1) for place in range(count)]


def packed_rows(codes: Array, bits: int, word: int = 32) -> Array:
    """[rows, n] codes → [rows, words] signed integers of `word` bits."""
    unsigned = np.array([words(row, bits, word) for row in codes.tolist()], dtype=f"u{word // 8}")
    return unsigned.view(f"i{word // 8}")


def bf16(values: Array) -> Array:
    """The bits of numbers that bf16 has."""
    return (np.ascontiguousarray(values, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def gptq(
    layer: str,
    codes: Array,
    scales: Array,
    zeros: Array | None,
    bits: int,
    index: Array | None = None,
    stored_zeros: Array | None = None,
    word: int = 32,
) -> dict[str, MemoryTensor]:
    """A layer as GPTQ has it: codes [out, in], scales and zero points [out, G].

    `stored_zeros` [G, words] in place of version 1's, which are one less, within the field.
    """
    kind = f"I{word}"
    made = {
        f"{layer}.qweight": tensor(kind, packed_rows(codes, bits, word).T),
        f"{layer}.scales": tensor("F16", scales.T),
    }
    if stored_zeros is None and zeros is not None:
        stored_zeros = packed_rows((zeros.T.astype(np.int64) - 1) % (1 << bits), bits, word)
    if stored_zeros is not None:
        made[f"{layer}.qzeros"] = tensor(kind, stored_zeros)
    if index is not None:
        made[f"{layer}.g_idx"] = tensor("I32", index)
    return made


def awq(layer: str, codes: Array, scales: Array, zeros: Array) -> dict[str, MemoryTensor]:
    """A layer as AWQ has it: nibble n of a word is the output channel AWQ_COLUMNS[n] of its eight."""

    def packed(matrix: Array) -> Array:  # [rows, out]
        eights = matrix.reshape(len(matrix), -1, 8)[..., list(AWQ_COLUMNS)]
        return packed_rows(eights.reshape(len(matrix), -1), 4)

    return {
        f"{layer}.qweight": tensor("I32", packed(codes.T)),
        f"{layer}.qzeros": tensor("I32", packed(zeros.T)),
        f"{layer}.scales": tensor("F16", scales.T),
    }
