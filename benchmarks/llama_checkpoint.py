"""Llama-shaped Hugging Face checkpoints of any size with random bf16 weights, written without torch and without holding
more than one of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.llama_graph import Shape
from benchmarks.llama_ir import NOISE, SHAPES, Noise

CHECKPOINT_SHAPES = {
    **SHAPES,
    "8.0": Shape(hidden=4096, layers=32, intermediate=14336, heads=32, kv_heads=8, vocabulary=128256, head=128),
}
SHARD_BYTES = 5_000_000_000  # what save_pretrained cuts at
_VERSION = 1


def config_of(shape: Shape) -> dict[str, Any]:
    """What transformers wants to know."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def tensors_of(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor by its name: the matrices of the exported graph, and norms."""
    found: dict[str, tuple[int, ...]] = {name.removeprefix("self."): size for name, size in shape.weights().items()}
    for layer in range(shape.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = (shape.hidden,)
    found["model.norm.weight"] = (shape.hidden,)
    return found


def build_checkpoint(shape: Shape, folder: Path, shard_bytes: int = SHARD_BYTES, noise: int = NOISE) -> Path:
    """Write the checkpoint into ``folder``, or leave the one that is there from the same shape. Returns the folder."""
    stamp = folder / "stamp.json"
    wanted = {**dataclasses.asdict(shape), "shard": shard_bytes, "noise": noise, "version": _VERSION}
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(shape), indent=2))
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, size in tensors_of(shape).items():
        nbytes = 2 * int(np.prod(size))
        if held + nbytes > shard_bytes and shards[-1]:
            shards.append({})
            held = 0
        shards[-1][name] = size
        held += nbytes
    numbers, weight_map = Noise(0, noise), {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
        _write(folder / name, tensors, numbers)
        weight_map.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    stamp.write_text(json.dumps(wanted))
    return folder


def _write(path: Path, tensors: dict[str, tuple[int, ...]], noise: Noise) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, size in tensors.items():
        end = place + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, size in tensors.items():
            values = np.ones(size, np.float16)
            if len(size) == 2:
                noise.matrix(name, size[0], size[1], values)
            for first in range(0, size[0], 4096):
                bits = values[first : first + 4096].astype(np.float32).view(np.uint32)
                file.write(((bits + 0x8000) >> 16).astype(np.uint16).tobytes())
