"""One quantised layer of each kind that checkpoints have, with random codes, read back by the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ov_weight_compression.checkpoints.layouts.bitsandbytes_layout import bitsandbytes_weight
from ov_weight_compression.checkpoints.layouts.compressed_tensors_layout import (
    CompressedTensorsScheme,
    compressed_tensors_weight,
)
from ov_weight_compression.checkpoints.layouts.float_layouts import fp8_weight, mxfp4_weight
from ov_weight_compression.checkpoints.layouts.gptq_layout import GptqVariant, awq_weight, gptq_weight
from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight
from tests.checkpoints.quantised_writers import (
    E4M3_CODES,
    FP4_VALUES,
    NF4_VALUES,
    Array,
    awq,
    bitsandbytes,
    compressed_tensors_packed,
    gptq,
    nibble_pairs,
    tensor,
)

Make = Callable[[str, int, int], QuantisedWeight]


def gptq_layer(
    name: str,
    rows: int,
    columns: int,
    bits: int = 4,
    group: int = 32,
    symmetric: bool = False,
    order: Array | None = None,
) -> QuantisedWeight:
    """A layer of GPTQ's; `order` is a permutation of the channels' groups."""
    rng = np.random.default_rng(rows + columns + bits)
    index = np.arange(columns) // group
    index = index if order is None else index[order]
    codes, groups = rng.integers(0, 1 << bits, (rows, columns)), int(index.max()) + 1
    zeros = np.full((rows, groups), 1 << bits - 1) if symmetric else rng.integers(0, 1 << bits, (rows, groups))
    scales = (rng.random((rows, groups)) / 64 + 1 / 64).astype(np.float16)
    tensors = gptq(name.removesuffix(".weight"), codes, scales, zeros, bits, index)
    return gptq_weight(tensors, name.removesuffix(".weight"), GptqVariant(bits, group))


def _shuffled(name: str, rows: int, columns: int) -> QuantisedWeight:
    return gptq_layer(name, rows, columns, order=np.random.default_rng(columns).permutation(columns))


def _awq(name: str, rows: int, columns: int) -> QuantisedWeight:
    rng = np.random.default_rng(1)
    codes, zeros = rng.integers(0, 16, (rows, columns)), rng.integers(0, 16, (rows, columns // 16))
    scales = (rng.random((rows, columns // 16)) / 64 + 1 / 64).astype(np.float16)
    layer = name.removesuffix(".weight")
    return awq_weight(awq(layer, codes, scales, zeros), layer, 16)


def _packed(name: str, rows: int, columns: int) -> QuantisedWeight:
    """Scales that f16 cannot hold."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 256, (rows, columns))
    scales = tensor("F32", rng.random((rows, 1)) / 4096 + 1 / 4096)
    layer = name.removesuffix(".weight")
    return compressed_tensors_weight(
        compressed_tensors_packed(layer, codes, scales, None, 8), layer, CompressedTensorsScheme("pack-quantized", 8)
    )


def packed_layer(name: str, rows: int, columns: int) -> QuantisedWeight:
    """A layer of compressed-tensors', asymmetric, in groups."""
    rng, layer = np.random.default_rng(7), name.removesuffix(".weight")
    codes, zeros = rng.integers(0, 16, (rows, columns)), rng.integers(0, 16, (rows, columns // 32))
    scales = tensor("F16", rng.random((rows, columns // 32)) / 64 + 1 / 64)
    tensors = compressed_tensors_packed(layer, codes, scales, zeros, 4)
    return compressed_tensors_weight(tensors, layer, CompressedTensorsScheme("pack-quantized", 4))


def _fp8_blocks(name: str, rows: int, columns: int) -> QuantisedWeight:
    rng = np.random.default_rng(3)
    small = E4M3_CODES[(E4M3_CODES & 0x7F) < 0x48]
    tensors = {
        name: tensor("F8_E4M3", rng.choice(small, (rows, columns))),
        f"{name}_scale_inv": tensor("F32", rng.random((-(-rows // 32), -(-columns // 32))) / 64),
    }
    return fp8_weight(tensors, name, f"{name}_scale_inv", (32, 32))


def _mxfp4(name: str, rows: int, columns: int) -> QuantisedWeight:
    rng = np.random.default_rng(4)
    tensors = {
        "packed": tensor("U8", nibble_pairs(rng.integers(0, 16, (rows, columns)))),
        "scales": tensor("U8", rng.integers(118, 122, (rows, columns // 32))),
    }
    return mxfp4_weight(tensors, name, "packed", "scales")


def _nvfp4(name: str, rows: int, columns: int) -> QuantisedWeight:
    rng, layer = np.random.default_rng(5), name.removesuffix(".weight")
    tensors = {
        f"{layer}.weight_packed": tensor("U8", nibble_pairs(rng.integers(0, 16, (rows, columns)))),
        f"{layer}.weight_scale": tensor("F8_E4M3", rng.integers(0x30, 0x40, (rows, columns // 16))),
        f"{layer}.weight_global_scale": tensor("F32", np.array([77.0])),
    }
    return compressed_tensors_weight(tensors, layer, CompressedTensorsScheme("nvfp4-pack-quantized", 4))


def _bitsandbytes(table: Array) -> Make:
    def make(name: str, rows: int, columns: int) -> QuantisedWeight:
        rng = np.random.default_rng(6)
        codes = rng.integers(0, 16, (rows, columns))
        absmax = (rng.random(-(-rows * columns // 32)) / 8).astype(np.float32)
        return bitsandbytes_weight(bitsandbytes(name, codes, table, absmax, 32), name)

    return make


KINDS: dict[str, Make] = {
    "gptq 4": gptq_layer,
    "gptq 4 symmetric": lambda name, rows, columns: gptq_layer(name, rows, columns, symmetric=True),
    "gptq 4 act-order": _shuffled,
    "gptq 2": lambda name, rows, columns: gptq_layer(name, rows, columns, bits=2),
    "gptq 2 symmetric": lambda name, rows, columns: gptq_layer(name, rows, columns, bits=2, symmetric=True),
    "gptq 3": lambda name, rows, columns: gptq_layer(name, rows, columns, bits=3),
    "gptq 8": lambda name, rows, columns: gptq_layer(name, rows, columns, bits=8),
    "gptq 8 symmetric": lambda name, rows, columns: gptq_layer(name, rows, columns, bits=8, symmetric=True),
    "awq": _awq,
    "compressed-tensors 8": _packed,
    "fp8 blocks": _fp8_blocks,
    "mxfp4": _mxfp4,
    "nvfp4": _nvfp4,
    "nf4": _bitsandbytes(NF4_VALUES),
    "fp4": _bitsandbytes(FP4_VALUES),
}
"""A layer of each kind, `[rows, columns]`."""
