"""The layouts held against the tools whose they are: what each of them packs, and what it dequantises that to.

    python -m venv TOOLS && TOOLS/bin/pip install --no-deps compressed-tensors bitsandbytes torchao loguru pydantic …
    PYTHONPATH=TOOLS/lib/python3.…/site-packages python -m benchmarks.original_quantisers

It needs an interpreter that has torch and transformers; a tool that is not there is said to be missing. Random weights
are quantised on the CPU by the tool itself; printed is the largest difference between its own dequantised weight and
what the layout reads, over the largest weight. Exit code 1 where that is above what the tool's own type rounds away.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ov_weight_compression.checkpoints.layouts.bitsandbytes_layout import bitsandbytes_int8, bitsandbytes_weight
from ov_weight_compression.checkpoints.layouts.compressed_tensors_layout import (
    CompressedTensorsScheme,
    compressed_tensors_weight,
)
from ov_weight_compression.checkpoints.layouts.float_layouts import gpt_oss_weight
from ov_weight_compression.checkpoints.layouts.layout_choice import quantised_weights
from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight
from tests.checkpoints.quantised_writers import MemoryTensor

ROWS, COLUMNS = 48, 128
BF16_ROUNDS = 2.0**-8
Case = tuple[str, QuantisedWeight, Any, float]


def stored(tensor: Any) -> MemoryTensor:
    """A torch tensor as a checkpoint has it."""
    import torch

    names = {
        torch.int32: "I32",
        torch.int64: "I64",
        torch.float16: "F16",
        torch.float32: "F32",
        torch.int8: "I8",
        torch.uint8: "U8",
    }
    bits = {torch.bfloat16: ("BF16", torch.int16, np.uint16), torch.float8_e4m3fn: ("F8_E4M3", torch.uint8, np.uint8)}
    tensor = tensor.detach().contiguous()
    if tensor.dtype in bits:
        name, seen, kind = bits[tensor.dtype]
        return MemoryTensor(name, tensor.view(seen).numpy().view(kind))
    return MemoryTensor(names[tensor.dtype], tensor.numpy())


def of_compressed_tensors() -> Iterator[Case]:
    """Every format and width, symmetric or not."""
    import compressed_tensors.compressors  # noqa: F401  (registers them)
    from compressed_tensors.compressors.base import BaseCompressor

    plain = [("group", 32), ("channel", None)]
    cases: list[tuple[str, dict[str, Any]]] = [
        ("pack-quantized", {"num_bits": bits, "type": "int", "symmetric": even, "strategy": form, "group_size": group})
        for bits in range(2, 9)
        for even in (True, False)
        for form, group in plain
    ]
    eight = {"num_bits": 8, "type": "int"}
    cases += [
        ("int-quantized", {**eight, "symmetric": even, "strategy": form})
        for even in (True, False)
        for form in ("tensor", "channel")
    ]
    floats = {"num_bits": 8, "type": "float", "symmetric": True}
    cases += [("float-quantized", {**floats, "strategy": form}) for form in ("tensor", "channel")]
    cases.append(("float-quantized", {**floats, "strategy": "block", "block_structure": [16, 32]}))
    cases.append(("nvfp4-pack-quantized", {**floats, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}))
    cases.append(("mxfp4-pack-quantized", {**floats, "num_bits": 4, "strategy": "group", "group_size": 32}))
    cases.append(("mxfp8-quantized", {**floats, "strategy": "group", "group_size": 32}))
    for layout, arguments in cases:
        state, scheme = _state(layout, arguments)
        tool = BaseCompressor.get_value_from_registry(layout)
        packed = tool.compress(state, scheme)
        own = CompressedTensorsScheme(layout, arguments["num_bits"], (16, 32))
        weight = compressed_tensors_weight({f"l.{key}": stored(one) for key, one in packed.items()}, "l", own)
        # It dequantises nvfp4 to bf16.
        allowed = BF16_ROUNDS if layout.startswith("nvfp4") else 0.0
        yield f"compressed-tensors {layout}", weight, tool.decompress(packed, scheme)["weight"], allowed


def _state(layout: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A weight with scales, and zero points, for a scheme."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
    groups = COLUMNS // (arguments.get("group_size") or COLUMNS)
    shape = {"tensor": (1,), "channel": (ROWS, 1), "block": (-(-ROWS // 16), -(-COLUMNS // 32))}.get(
        arguments["strategy"], (ROWS, groups)
    )
    bits = arguments["num_bits"]
    top = 2 ** (bits - 1) - 0.5 if arguments["type"] == "int" else 448.0 if bits == 8 else 6.0
    scale = (torch.rand(shape) + 0.5) * (3 / top)
    state = {"weight": torch.randn(ROWS, COLUMNS)}
    if layout.startswith("nvfp4"):
        state["weight_global_scale"] = torch.tensor([77.0])
        scale = (scale * 77).to(torch.float8_e4m3fn).float()
    if layout.startswith("mx"):
        scale = 2.0 ** torch.round(torch.log2(scale))
    state["weight_scale"] = scale
    if not arguments["symmetric"]:
        state["weight_zero_point"] = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).to(torch.int8)
    return state, scheme


def of_bitsandbytes() -> Iterator[Case]:
    """4 bits, scales quantised in turn or not; 8 bits. (Blocks that run across rows its CPU code dequantises wrong.)"""
    import torch
    from bitsandbytes import functional

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            codes, state = functional.quantize_4bit(
                torch.randn(ROWS, COLUMNS), blocksize=64, compress_statistics=nested, quant_type=kind
            )
            tensors = {"w": stored(codes)} | {
                f"w.{key}": stored(one) for key, one in state.as_dict(packed=True).items()
            }
            truth = functional.dequantize_4bit(codes, state)
            yield f"bitsandbytes {kind}{' nested' * nested}", bitsandbytes_weight(tensors, "w"), truth, 0.0
    codes, maxima, _ = functional.int8_vectorwise_quant(torch.randn(ROWS, COLUMNS, dtype=torch.float16))
    weight = bitsandbytes_int8({"l.weight": stored(codes), "l.SCB": stored(maxima)}, "l")
    yield "bitsandbytes int8", weight, functional.int8_vectorwise_dequant(codes, maxima), 2.0**-22


def of_torchao() -> Iterator[Case]:
    """What its safetensors hold of plain tensors."""
    import torch
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
        quantize_,
    )

    configs = {
        "int8": Int8WeightOnlyConfig(version=2),
        "int4 in int8": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
        "float8": Float8WeightOnlyConfig(),
    }
    for name, config in configs.items():
        model = torch.nn.Sequential(torch.nn.Linear(COLUMNS, ROWS, bias=False))
        quantize_(model, config)
        tensors, metadata = flatten_tensor_state_dict(model.state_dict())
        read = {key: stored(one) for key, one in tensors.items()}
        (weight,) = quantised_weights({"quant_method": "torchao"}, read, metadata).values()
        yield f"torchao {name}", weight, model[0].weight.dequantize(), 0.0


def of_transformers() -> Iterator[Case]:
    """gpt-oss's experts."""
    import torch
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 16, 4, 16), dtype=torch.uint8)
    scales = torch.randint(110, 135, (3, 16, 4), dtype=torch.uint8)
    truth = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).swapaxes(1, 2).reshape(ROWS, COLUMNS)
    yield (
        "transformers MXFP4",
        gpt_oss_weight({"e_blocks": stored(blocks), "e_scales": stored(scales)}, "e"),
        truth,
        0.0,
    )


TOOLS: tuple[Callable[[], Iterator[Case]], ...] = (of_transformers, of_compressed_tensors, of_bitsandbytes, of_torchao)


def main() -> int:
    """Print a line for each case; the exit code."""
    import torch

    torch.manual_seed(0)
    bad = 0
    for tool in TOOLS:
        try:
            for name, weight, truth, allowed in tool():
                expected = truth.detach().float().numpy()
                difference = np.abs(weight.values(0, ROWS) - expected).max() / np.abs(expected).max()
                wrong = "" if difference <= allowed else "WRONG "
                bad += bool(wrong)
                print(f"{name:36} {wrong}{difference:.1e}  {weight.described}", flush=True)
        except ImportError as error:
            print(f"{tool.__name__.removeprefix('of_'):36} missing: {error}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
