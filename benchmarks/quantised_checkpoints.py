"""Quantised checkpoints of a small Llama (or gpt-oss), one of each kind, converted and held against the dequantised
torch model.

    python -m benchmarks.quantised_checkpoints [KIND …]      exit code 1 where outputs or what runs from codes differ

Each is written here, from the definition of its format, with weights rounded plainly; so the values that its codes
stand for are known, and transformers computes with them. The logits of the converted model are compared in f32. It
needs an interpreter that has torch, transformers and optimum-intel; the package is imported from where it is run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.runner import EXACT
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.passes.recipe import Recipe
from tests.checkpoints import quantised_writers as writers
from tests.checkpoints.quantised_writers import Array, MemoryTensor, tensor

TOLERANCE = 2e-5
HIDDEN, INNER, VOCABULARY, LENGTH = 256, 512, 320, 96
Layer = tuple[dict[str, MemoryTensor], Array]
Write = Callable[[str, Array, np.random.Generator], Layer]


def rounded(weight: Array, index: Array, bits: int, symmetric: bool) -> tuple[Array, Array, Array, Array]:
    """Codes [out, in], zero points and f16 scales [out, groups], and their values, of plainly rounded weights."""
    groups, top = int(index.max()) + 1, (1 << bits) - 1
    low = np.stack([weight[:, index == group].min(1) for group in range(groups)], 1)
    high = np.stack([weight[:, index == group].max(1) for group in range(groups)], 1)
    if symmetric:
        scales = (np.maximum(-low, high) / (top / 2)).astype(np.float16)
        zeros = np.full(scales.shape, (top + 1) // 2)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = ((high - low) / top).astype(np.float16)
        zeros = np.clip(np.rint(-low / scales.astype(np.float32)), 0, top).astype(int)
    wide = scales.astype(np.float32)[:, index]
    codes = np.clip(np.rint(weight / wide) + zeros[:, index], 0, top).astype(int)
    return codes, zeros, scales, wide * (codes - zeros[:, index]).astype(np.float32)


def gptq(bits: int, symmetric: bool, group: int = 128, order: bool = False, version: int = 1) -> Write:
    """GPTQ's; with `order` channels belong to groups in an order that layers of one input share."""

    def write(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
        columns = weight.shape[1]
        index = np.arange(columns) // (columns if group < 0 else group)
        if order:
            index = np.random.default_rng(columns).permutation(index)
        codes, zeros, scales, values = rounded(weight, index, bits, symmetric)
        stored = writers.packed_rows(zeros.T, bits) if version == 2 else None
        return writers.gptq(layer, codes, scales, zeros, bits, index, stored), values

    return write


def awq(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
    """AWQ's, without the scaling."""
    codes, zeros, scales, values = rounded(weight, np.arange(weight.shape[1]) // 64, 4, False)
    return writers.awq(layer, codes, scales, zeros), values


def packed(bits: int, symmetric: bool, group: int, order: bool = False) -> Write:
    """compressed-tensors' pack-quantized, with scales in f32."""

    def write(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
        columns = weight.shape[1]
        index = np.arange(columns) // (columns if group < 0 else group)
        if order:
            index = np.random.default_rng(columns).permutation(index)
        codes, zeros, scales, values = rounded(weight, index, bits, symmetric)
        stored = tensor("F32", scales.astype(np.float32))
        made = writers.compressed_tensors_packed(
            layer, codes, stored, None if symmetric else zeros, bits, index if order else None
        )
        return made, values

    return write


def plain_int8(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
    """compressed-tensors' int-quantized."""
    scales = (np.abs(weight).max(1, keepdims=True) / 127).astype(np.float32)
    codes = np.clip(np.rint(weight / scales), -128, 127).astype(np.float32)
    made = {f"{layer}.weight": tensor("I8", codes), f"{layer}.weight_scale": tensor("F32", scales)}
    return made, codes * scales


def nearest(values: Array, levels: Array) -> Array:
    """The code of the level nearest to each value."""
    rising = np.argsort(levels, kind="stable")
    middles = (levels[rising][1:] + levels[rising][:-1]) / 2
    return np.asarray(rising[np.searchsorted(middles, values)])


def e4m3(weight: Array, scales: Array) -> tuple[Array, Array]:
    """Codes and values for scales of the weight's shape."""
    codes = writers.E4M3_CODES[nearest(weight / scales, writers.E4M3_VALUES[writers.E4M3_CODES])]
    return codes, writers.E4M3_VALUES[codes] * scales


def fp8(form: str, name: str) -> Write:
    """8-bit floats with scales for the tensor, for channels or for blocks of 128."""

    def write(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
        rows, columns = weight.shape
        tall, wide = {"tensor": (rows, columns), "channel": (1, columns), "block": (128, 128)}[form]
        grid = np.abs(weight).reshape(rows // tall, tall, columns // wide, wide).max((1, 3)) / np.float32(448)
        codes, values = e4m3(weight, np.repeat(np.repeat(grid, tall, 0), wide, 1))
        stored = grid.reshape(-1) if form == "tensor" else grid
        return {f"{layer}.weight": tensor("F8_E4M3", codes), f"{layer}.{name}": tensor("F32", stored)}, values

    return write


def mxfp4(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
    """compressed-tensors' mxfp4-pack-quantized."""
    blocks = weight.reshape(len(weight), -1, 32)
    exponents = np.ceil(np.log2(np.abs(blocks).max(2) / 6)).astype(int)
    wide = np.repeat((np.float32(2) ** exponents).astype(np.float32), 32, 1)
    codes = nearest(weight / wide, writers.E2M1_VALUES)
    made = {
        f"{layer}.weight_packed": tensor("U8", writers.nibble_pairs(codes)),
        f"{layer}.weight_scale": tensor("U8", exponents + 127),
    }
    return made, writers.E2M1_VALUES[codes] * wide


def nvfp4(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
    """compressed-tensors' nvfp4-pack-quantized."""
    whole = np.float32(448 * 6 / np.abs(weight).max())
    blocks = np.abs(weight).reshape(len(weight), -1, 16).max(2) / 6 * whole
    scales = writers.E4M3_CODES[nearest(blocks, writers.E4M3_VALUES[writers.E4M3_CODES])]
    wide = np.repeat(writers.E4M3_VALUES[scales] / whole, 16, 1)
    codes = nearest(weight / np.maximum(wide, 1e-12), writers.E2M1_VALUES)
    made = {
        f"{layer}.weight_packed": tensor("U8", writers.nibble_pairs(codes)),
        f"{layer}.weight_scale": tensor("F8_E4M3", scales),
        f"{layer}.weight_global_scale": tensor("F32", np.array([whole])),
    }
    return made, writers.E2M1_VALUES[codes] * wide


def gpt_oss(name: str, weight: Array, rng: np.random.Generator) -> Layer:
    """The experts of gpt-oss, whose float weight is [experts, in, out]."""
    experts, columns, rows = weight.shape
    blocks = weight.transpose(0, 2, 1).reshape(experts, rows, columns // 32, 32)
    exponents = np.ceil(np.log2(np.abs(blocks).max(3) / 6)).astype(int)
    wide = (np.float32(2) ** exponents).astype(np.float32)[..., None]
    codes = nearest(blocks / wide, writers.E2M1_VALUES)
    made = {
        f"{name}_blocks": tensor("U8", writers.nibble_pairs(codes)),
        f"{name}_scales": tensor("U8", exponents + 127),
    }
    return made, (writers.E2M1_VALUES[codes] * wide).reshape(experts, rows, columns).transpose(0, 2, 1)


def four_bits(table: Array) -> Write:
    """bitsandbytes' nf4 and fp4."""

    def write(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
        absmax = np.abs(weight.reshape(-1, 64)).max(1)
        wide = np.repeat(absmax, 64).reshape(weight.shape)
        codes = nearest(weight / wide, table)
        return writers.bitsandbytes(f"{layer}.weight", codes, table, absmax, 64), table[codes] * wide

    return write


def bitsandbytes_int8(layer: str, weight: Array, rng: np.random.Generator) -> Layer:
    """bitsandbytes' 8 bits."""
    maxima = np.abs(weight).max(1)
    codes = np.rint(weight * 127 / maxima[:, None]).astype(np.float32)
    return (
        {f"{layer}.weight": tensor("I8", codes), f"{layer}.SCB": tensor("F32", maxima)},
        codes * (maxima / np.float32(127))[:, None],
    )


def of_gptq(**more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, **more}


def of_compressed_tensors(layout: str, bits: int, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, **weights}}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


PACKED = "pack-quantized"
KINDS: dict[str, tuple[Write, dict[str, Any], str]] = {
    "gptq 4 asym": (gptq(4, False), of_gptq(), "u4"),
    "gptq 4 sym": (gptq(4, True), of_gptq(sym=True), "i4"),
    "gptq 4 act-order": (gptq(4, False, order=True), of_gptq(desc_act=True), "u4"),
    "gptq 4 v2": (gptq(4, False, 64, version=2), of_gptq(group_size=64, checkpoint_format="gptq_v2"), "u4"),
    "gptq 4 per channel": (gptq(4, True, -1), of_gptq(group_size=-1), "i4"),
    "gptq 2": (gptq(2, False, 32), of_gptq(bits=2, group_size=32), "u2"),
    "gptq 3": (gptq(3, False), of_gptq(bits=3), "u4"),
    "gptq 8": (gptq(8, True), of_gptq(bits=8), "i8"),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm"}, "u4"),
    "auto-round": (
        gptq(4, True),
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "packing_format": "auto_round:auto_gptq"},
        "i4",
    ),
    "compressed-tensors 4": (packed(4, True, 128), of_compressed_tensors(PACKED, 4), "i4"),
    "compressed-tensors 4 asym": (packed(4, False, 32), of_compressed_tensors(PACKED, 4), "u4"),
    "compressed-tensors 4 order": (packed(4, True, 64, order=True), of_compressed_tensors(PACKED, 4), "i4"),
    "compressed-tensors 8": (packed(8, True, -1), of_compressed_tensors(PACKED, 8), "i8"),
    "compressed-tensors int8": (plain_int8, of_compressed_tensors("int-quantized", 8), "i8"),
    "compressed-tensors fp8": (fp8("channel", "weight_scale"), of_compressed_tensors("float-quantized", 8), ""),
    "compressed-tensors nvfp4": (nvfp4, of_compressed_tensors("nvfp4-pack-quantized", 4), "f4e2m1"),
    "compressed-tensors mxfp4": (mxfp4, of_compressed_tensors("mxfp4-pack-quantized", 4), "f4e2m1"),
    "gpt-oss": (gpt_oss, {"quant_method": "mxfp4"}, ""),
    "fp8 tensor": (fp8("tensor", "weight_scale"), {"quant_method": "fp8"}, ""),
    "fp8 blocks": (
        fp8("block", "weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        "",
    ),
    "bitsandbytes nf4": (four_bits(writers.NF4_VALUES), {"quant_method": "bitsandbytes", "load_in_4bit": True}, "nf4"),
    "bitsandbytes fp4": (four_bits(writers.FP4_VALUES), {"quant_method": "bitsandbytes", "load_in_4bit": True}, ""),
    "bitsandbytes int8": (bitsandbytes_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "i8"),
}
"""By name what writes a layer, the quantization_config, and what is executed from codes ("": none, CPUs expand it)."""


def model(kind: str = "") -> Any:
    """A small Llama, or gpt-oss for its own kind, with weights that differ between channels."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
    }
    if kind == "gpt-oss":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}
        made = GptOssForCausalLM(GptOssConfig(**sizes, **experts, rope_scaling={"rope_type": "default"})).eval()
    else:
        made = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(2 * torch.exp(torch.randn(1, parameter.shape[-1]) / 2))
            else:
                parameter.add_(torch.randn_like(parameter) / 10)
            parameter.copy_(parameter.half().float())
    return made


def write(kind: str, own: Any, folder: Path) -> dict[str, Array]:
    """A checkpoint of this kind; returns the values that it stands for."""
    layer_of, quantization, _ = KINDS[kind]
    rng = np.random.default_rng(0)
    tensors, values = {}, {}
    for name, value in own.state_dict().items():
        weight = value.numpy()
        if name.endswith("up_proj" if kind == "gpt-oss" else "_proj.weight") or name.endswith("experts.down_proj"):
            made, values[name] = layer_of(name.removesuffix(".weight"), weight, rng)
            tensors.update(made)
        else:
            tensors[name], values[name] = tensor("F16", weight), weight
    config = {**json.loads(own.config.to_json_string(use_diff=False)), "quantization_config": quantization}
    config.update(architectures=[type(own).__name__], torch_dtype="float16", dtype="float16")
    writers.write_checkpoint(folder, tensors, config, shards=2)
    return values


def logits_of(xml: Path, ids: Array) -> tuple[Array, list[str]]:
    """The converted model's logits in f32, and what its layers read their weights as."""
    compiled = ov.Core().compile_model(str(xml), "CPU", EXACT)
    feed = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    names = {name for port in compiled.inputs for name in port.get_names()}
    result = compiled.create_infer_request().infer({name: value for name, value in feed.items() if name in names})
    kinds = {
        node.get_input_element_type(1).get_type_name()
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_rt_info()["layerType"].astype(str) == "FullyConnected"
    }
    return np.asarray(result["logits"]), sorted(kinds - {"f16", "f32", "bf16"})


def check(kind: str, work: Path) -> str:
    """Convert a checkpoint and say how far off its logits are; begins with "WRONG" where they are too far."""
    import torch

    own = model(kind)
    values = write(kind, own, work / "hf")
    own.load_state_dict({name: torch.from_numpy(np.array(value, np.float32)) for name, value in values.items()})
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, LENGTH)).astype(np.int64)
    with torch.no_grad():
        truth = own(torch.from_numpy(ids)).logits.numpy()
    (result,) = compress_path(work / "hf", work / "ov", Recipe({"mode": "none"}))
    got, types = logits_of(work / "ov" / "openvino_model.xml", ids)
    difference = float(np.abs(got - truth).max() / np.abs(truth).max())
    expected = [KINDS[kind][2]] if KINDS[kind][2] else []
    wrong = "" if difference < TOLERANCE and types == expected else "WRONG "
    reasons = sorted({row.reason for row in result.report.rows})
    return f"{wrong}{difference:.1e}, codes executed: {', '.join(types) or 'none'}; {' | '.join(reasons)}"


def main() -> int:
    """Print a line for each kind; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--work", type=Path, help="folder to work in")
    arguments = parser.parse_args()
    bad = 0
    print("largest difference of the logits / largest logit")
    for kind in arguments.kinds or KINDS:
        begun, work = time.perf_counter(), Path(tempfile.mkdtemp(prefix="quantised-", dir=arguments.work))
        try:
            said = check(kind, work)
        except Exception as error:  # whatever happens to one of them, the others are looked at
            said = f"WRONG {type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
        finally:
            shutil.rmtree(work, ignore_errors=True)
        bad += said.startswith("WRONG")
        print(f"{kind:28} {time.perf_counter() - begun:5.1f} s  {said}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
