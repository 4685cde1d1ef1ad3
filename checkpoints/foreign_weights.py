"""Weights that are no checkpoint of transformers: what they are, and what to do with them."""

from __future__ import annotations

from pathlib import Path

from ov_weight_compression.ir_utils.option_kinds import shown

__all__ = ["foreign_weights"]

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def foreign_weights(path: Path) -> str:
    """What a file, or a folder without safetensors by the names that transformers gives them, holds instead of a
    checkpoint, and what to do; "" for what is not known."""
    if path.is_file():
        names = [path.name]
        if path.suffix == ".safetensors":
            return "weights without a model: give the folder that they lie in, with its config.json"
    else:
        names = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and "adapter_config.json" in names:
        return "an adapter, not a model: merge it into its base model and save_pretrained that"
    if path.is_dir() and "model_index.json" in names:
        return "a pipeline of several models; export it with optimum-cli and compress what that writes"
    pickles = [name for name in names if any((folder / name).match(pattern) for pattern in _PICKLES)]
    if pickles:
        return (
            f"its weights are pickles ({shown(pickles[0])}), which run code when they are read; load them "
            "where you trust them and save_pretrained(folder, safe_serialization=True)"
        )
    for ending, what in ((".gguf", "GGUF"), (".h5", "TensorFlow's"), (".msgpack", "Flax's")):
        found = [name for name in names if name.endswith(ending)]
        if found:
            return f"its weights are {what} ({shown(found[0])}), which are not read; take the model's safetensors"
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (
            f"neither model.safetensors nor model.safetensors.index.json is there, only {shown(others[0])}: no "
            "checkpoint of transformers"
        )
    return ""
