"""Quantises a small language model with one of the original tools, in its own interpreter, on the CPU.

    /tool/bin/python quantiser_worker.py TOOL SETTINGS SOURCE OUT

SOURCE is a float checkpoint, SETTINGS a JSON table for the tool. OUT gets the checkpoint that the tool saves, and
truth.npz: the weights that the tool itself dequantises from it when it loads it, by their float names.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "4")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import torch

SAMPLES, LENGTH, VOCABULARY = 16, 64, 300


def batches() -> list[torch.Tensor]:
    """Tokens to calibrate with."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, VOCABULARY, (1, LENGTH), generator=generator) for _ in range(SAMPLES)]


def layers_of(model: Any, has: str) -> dict[str, Any]:
    """The layers that have an attribute."""
    return {name: module for name, module in model.named_modules() if hasattr(module, has)}


def gptqmodel(settings: dict[str, Any], source: Path, out: Path) -> dict[str, Any]:
    """GPTQModel: GPTQ and AWQ."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # type: ignore[import-not-found]

    data = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in batches()]
    model = GPTQModel.load(str(source), QuantizeConfig(**settings), device="cpu")
    model.quantize(data, batch_size=1)
    model.save(str(out))
    backend = BACKEND.TORCH_AWQ if settings.get("method") == "awq" else BACKEND.TORCH
    loaded = GPTQModel.load(str(out), device="cpu", backend=backend, dtype=torch.float16)
    found = {}
    for name, module in layers_of(loaded.model, "qweight").items():
        if settings.get("method") == "awq":
            from gptqmodel.quantization.awq.utils.packing_utils import (  # type: ignore[import-not-found]
                dequantize_gemm,
            )

            value = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)
        else:
            value = module.dequantize_weight()
        found[name] = value.T
    return found


def autoround(settings: dict[str, Any], source: Path, out: Path) -> dict[str, Any]:
    """AutoRound, whose weights are known from the model that it has rounded, before any is packed."""
    from auto_round import AutoRound  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source)
    widths = {name: one.in_features for name, one in layers_of(model, "in_features").items() if name.endswith("_proj")}
    layout = settings.pop("format")
    tool = AutoRound(
        model,
        tokenizer,
        dataset=batches(),
        iters=2,
        nsamples=SAMPLES,
        seqlen=LENGTH,
        batch_size=4,
        device_map="cpu",
        **settings,
    )
    tool.quantize_and_save(str(out), format=layout)
    for path in [file for folder in out.iterdir() if folder.is_dir() for file in folder.iterdir()]:
        path.rename(out / path.name)  # it makes a folder in the folder
    loaded = AutoModelForCausalLM.from_pretrained(out, device_map="cpu", dtype=torch.float32)
    return by_ones(loaded, widths)


def by_ones(model: Any, widths: dict[str, int]) -> dict[str, Any]:
    """What layers make of the rows of the identity: their weights, whatever they are stored as."""
    with torch.no_grad():
        return {name: model.get_submodule(name)(torch.eye(width)).T for name, width in widths.items()}


def llmcompressor(settings: dict[str, Any], source: Path, out: Path) -> dict[str, Any]:
    """llm-compressor, and compressed-tensors, which it saves with."""
    from datasets import Dataset  # type: ignore[import-not-found]
    from llmcompressor import oneshot  # type: ignore[import-not-found]
    from llmcompressor.modifiers.quantization import (  # type: ignore[import-not-found]
        GPTQModifier,
        QuantizationModifier,
    )
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    named = {"gptq": GPTQModifier, "plain": QuantizationModifier}[settings.pop("modifier")]
    recipe = named(targets="Linear", ignore=["lm_head"], **settings)
    rows = [{"input_ids": one[0].tolist(), "attention_mask": [1] * LENGTH} for one in batches()]
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        max_seq_length=LENGTH,
        num_calibration_samples=SAMPLES,
    )
    model.save_pretrained(out, save_compressed=True)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    plain = CompressedTensorsConfig(run_compressed=False)
    loaded = AutoModelForCausalLM.from_pretrained(out, quantization_config=plain, dtype=torch.float32)
    return {name: module.weight for name, module in layers_of(loaded, "weight").items() if name.endswith("_proj")}


def torchao(settings: dict[str, Any], source: Path, out: Path) -> dict[str, Any]:
    """torchao, through transformers."""
    from torchao import quantization  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    kind = getattr(quantization, settings.pop("config"))
    if "weight_dtype" in settings:
        settings["weight_dtype"] = getattr(torch, settings["weight_dtype"])
    if "group" in settings:
        settings["granularity"] = quantization.PerGroup(settings.pop("group"))
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=TorchAoConfig(kind(**settings)), dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    layers = layers_of(model, "weight")
    return {name: one.weight.dequantize() for name, one in layers.items() if name.endswith("_proj")}


def bitsandbytes(settings: dict[str, Any], source: Path, out: Path) -> dict[str, Any]:
    """bitsandbytes, through transformers."""
    from bitsandbytes import functional, nn  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    config = BitsAndBytesConfig(**settings)
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear4bit):
            found[name] = functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        elif isinstance(module, nn.Linear8bitLt):
            found[name] = functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    return found


TOOLS: dict[str, Callable[[dict[str, Any], Path, Path], dict[str, Any]]] = {
    "gptqmodel": gptqmodel,
    "auto-round": autoround,
    "llm-compressor": llmcompressor,
    "torchao": torchao,
    "bitsandbytes": bitsandbytes,
}

if __name__ == "__main__":
    tool, said, source, out = sys.argv[1:]
    torch.manual_seed(0)
    truth = TOOLS[tool](json.loads(said), Path(source), Path(out))
    np.savez(
        Path(out) / "truth.npz",
        **{f"{name}.weight": value.detach().float().numpy() for name, value in truth.items()},
    )
