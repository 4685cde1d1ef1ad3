"""Writers of quantised layers, each from its format's definition and readable rather than fast.

A row of codes is packed as one big whole number, code i at bit i·b; nothing of the package is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints.files import write_file

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


def compressed_tensors_packed(
    layer: str,
    codes: Array,
    scales: MemoryTensor,
    zeros: Array | None,
    bits: int,
    index: Array | None = None,
    wasteful: bool = False,
) -> dict[str, MemoryTensor]:
    """A layer in `pack-quantized`: codes and zero points counted from 0; `wasteful`: no code across two words."""

    def packed(matrix: Array) -> Array:
        if not wasteful:
            return packed_rows(matrix, bits)
        each = 32 // bits
        padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % each)))
        return packed_rows(padded.reshape(-1, each), bits).reshape(len(matrix), -1)

    made = {
        f"{layer}.weight_packed": tensor("I32", packed(codes)),
        f"{layer}.weight_shape": tensor("I64", np.array(codes.shape)),
        f"{layer}.weight_scale": scales,
    }
    if zeros is not None:
        made[f"{layer}.weight_zero_point"] = tensor("I32", packed(zeros.T).T)
    if index is not None:
        made[f"{layer}.weight_g_idx"] = tensor("I32", index)
    return made


def nibble_pairs(codes: Array, high_first: bool = False) -> Array:
    """Codes of 4 bits two to a byte, along the last axis."""
    even, odd = codes[..., 0::2], codes[..., 1::2]
    return (even * 16 + odd if high_first else even + odd * 16).astype(np.uint8)


E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NF4_VALUES = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)  # fmt: skip
FP4_VALUES = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, -0.0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / 12


def e4m3_value(code: int) -> float:
    """What eight bits of f8_e4m3 stand for."""
    sign, exponent, mantissa = code >> 7, code >> 3 & 15, code & 7
    size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return -size if sign else size


E4M3_VALUES = np.array([e4m3_value(code) for code in range(256)], np.float32)
E4M3_CODES = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)


def bitsandbytes(name: str, codes: Array, table: Array, absmax: Array, block: int) -> dict[str, MemoryTensor]:
    """A weight of 4 bits as bitsandbytes has it, its scales not quantised in turn."""
    kind = "nf4" if table is NF4_VALUES else "fp4"
    said = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(codes.shape)}
    state = np.frombuffer(json.dumps(said).encode(), np.uint8)
    return {
        name: tensor("U8", nibble_pairs(codes.reshape(-1), high_first=True)[:, None]),
        f"{name}.quant_map": tensor("F32", table),
        f"{name}.absmax": tensor("F32", absmax),
        f"{name}.quant_state.bitsandbytes__{kind}": tensor("U8", state),
    }


def write_checkpoint(
    folder: Path, tensors: Mapping[str, MemoryTensor], config: Mapping[str, Any], shards: int = 1
) -> Path:
    """A checkpoint's folder with these tensors, in so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05}-of-{shards:05}.safetensors"
        entries, data = {}, b""
        for name in names[number::shards]:
            values = tensors[name].data.tobytes()
            place = [len(data), len(data) + len(values)]
            entries[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": place}
            data += values
            weight_map[name] = file
        write_file(folder / file, entries, data)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
