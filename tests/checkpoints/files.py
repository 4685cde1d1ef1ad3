"""Checkpoints for tests, written byte by byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"float32": "F32", "float16": "F16", "uint16": "BF16", "uint8": "U8", "int32": "I32", "bool": "BOOL"}


def header_of(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The entries of tensors that lie one after the other; uint16 stands for bf16."""
    entries, place = {}, 0
    for name, values in tensors.items():
        end = place + values.nbytes
        entries[name] = {"dtype": NAMES[values.dtype.name], "shape": list(values.shape), "data_offsets": [place, end]}
        place = end
    return entries


def write_file(path: Path, header: Mapping[str, Any] | bytes, data: bytes, length: int | None = None) -> Path:
    """A file with this header, which may say that it has another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """A safetensors file."""
    return write_file(path, header_of(tensors), b"".join(values.tobytes() for values in tensors.values()))


def write_folder(folder: Path, shards: Mapping[str, Mapping[str, np.ndarray]], config: Mapping[str, Any]) -> Path:
    """A checkpoint with a config and shards, and an index where there is more than model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensors in shards.items():
        write_tensors(folder / name, tensors)
    if list(shards) != ["model.safetensors"]:
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
