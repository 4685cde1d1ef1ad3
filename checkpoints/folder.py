"""A checkpoint's folder as Hugging Face libraries write it: what model it is of, and which file has which tensor.

    config.json                          the architecture
    model.safetensors                    all tensors; or
    model.safetensors.index.json         {"weight_map": {"a tensor": "model-00001-of-00002.safetensors", …}}
    model-00001-of-00002.safetensors …   and those of each shard

Nothing of a folder is executed: weights that are pickles (`.bin`, `.pt`) are refused, and code that comes with a
checkpoint (`auto_map`) is not run. Of weights that are no checkpoint of transformers it is said what they are, and what
to do with them.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ov_weight_compression.checkpoints.safetensors_file import StoredTensor, read_header
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.model_folder import read_json
from ov_weight_compression.ir_utils.option_kinds import shown

_CONFIG = "config.json"
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_LARGEST_JSON = 200 << 20
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
"""What config.json, or a table in it, may call what it says of quantised weights."""
_QUANTIZATION_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder of which everything has been found that its own files name."""

    folder: Path
    config: dict[str, Any]
    """config.json."""
    files: tuple[Path, ...]
    """The safetensors files."""
    tensors: dict[str, StoredTensor]
    """Those of all files, by name."""
    metadata: dict[str, str]
    """Of the files, put together."""
    quantization: dict[str, Any] | None
    """What config.json, or a file of its own, says about quantised weights; it has a `quant_method` as far as that is
    known. None where nothing is said."""


def is_checkpoint(path: Path) -> bool:
    """Whether a path is meant as a checkpoint: a folder with a config.json and without a model of OpenVINO's beside it.

    A folder that OpenVINO's exporter has written has a config.json too, and is a model. One with weights in safetensors
    at its top is a checkpoint whatever lies below: many repositories carry exports in subfolders.
    """
    if not (path / _CONFIG).is_file() or any(path.glob("openvino_*.xml")):
        return False
    return any((path / name).is_file() for name in (_WHOLE, _INDEX)) or not any(path.rglob("openvino_*.xml"))


def read_checkpoint(folder: Path) -> Checkpoint:
    """What a checkpoint's folder holds.

    Raises:
        ModelError: there is no such folder, something that its files name is missing, a file is damaged, the weights
            are pickles, or the architecture is defined by code in the folder. Names the file.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder")
    config = _table_of(folder / _CONFIG)
    files, mapped = _files(folder)
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        read = read_header(file)
        for name, tensor in read.tensors.items():
            if name in tensors:
                raise ModelError(f"{folder}: tensor {shown(name)} is both in {tensors[name].file.name} and {file.name}")
            tensors[name] = tensor
        metadata.update(read.metadata)
    for name, file in mapped.items():
        if name not in tensors or tensors[name].file != file:
            raise ModelError(f"{file}: tensor {shown(name)} is missing, which {_INDEX} places there")
    if not tensors:
        raise ModelError(f"{folder}: there is no tensor in its safetensors files")
    return Checkpoint(folder, config, files, tensors, metadata, _quantization(folder, config))


def _table_of(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table.

    Raises:
        ModelError: it is missing, too large to be one, or something else.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelError(f"{path}: {path.stat().st_size} bytes are too many for such a file")
        read = read_json(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path}: there is no such file; a checkpoint has one") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(read, dict):
        raise ModelError(f"{path}: holds no table")
    return read


def _files(folder: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """The safetensors files, in the order that transformers looks for them, and where an index places each tensor."""
    if (folder / _ADAPTER).is_file() and any((folder / name).is_file() for name in (_WHOLE, _INDEX)):
        raise ModelError(
            f"{folder}: has an adapter ({_ADAPTER}) beside the model, which loaders may or may not apply: merge it, or "
            "move it elsewhere"
        )
    if (folder / _WHOLE).is_file():
        return (folder / _WHOLE,), {}
    if not (folder / _INDEX).is_file():
        reason = foreign_weights(folder) or f"neither {_WHOLE} nor {_INDEX} is there"
        raise ModelError(f"{folder}: {reason}")
    index = folder / _INDEX
    weight_map = _table_of(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: has no weight_map that says which file a tensor is in")
    places = {name: _inside(index, name, file) for name, file in weight_map.items()}
    files = tuple(sorted(set(places.values())))
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: there is no such file, which {_INDEX} names")
    return files, places


def _inside(index: Path, name: str, file: object) -> Path:
    """A file that an index names, which must lie in the index's own folder."""
    for kind in (PurePosixPath, PureWindowsPath):
        parts = kind(file).parts if isinstance(file, str) else ()
        if not parts or kind(str(file)).anchor or ".." in parts or "\0" in str(file):
            raise ModelError(f"{index}: places {shown(name)} in {shown(file)}, which is no file of this folder")
    if not str(file).endswith(".safetensors"):
        raise ModelError(f"{index}: places {shown(name)} in {shown(file)}, which is no safetensors file")
    return index.parent / str(file)


def _quantization(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    inner = config.get("text_config")
    for table in (config, inner if isinstance(inner, dict) else {}):
        for key in QUANTIZATION_KEYS:
            if isinstance(table.get(key), dict) and table[key]:
                return dict(table[key])
    for name, method in _QUANTIZATION_FILES.items():
        if (folder / name).is_file():
            said = _table_of(folder / name)
            nested = said.get("quantization")
            return {"quant_method": method, **(nested if isinstance(nested, dict) else said)}
    return None


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def foreign_weights(path: Path) -> str:
    """What a file, or a folder without safetensors by the names that transformers gives them, holds instead of a
    checkpoint, and what to do; "" for what is not known."""
    if path.is_file():
        names = [path.name]
        if path.suffix == ".safetensors":
            return "weights without a model: give the folder that they lie in, with its config.json"
        if path.suffix == ".bin" and path.with_suffix(".xml").is_file():
            return f"the weights of {path.with_suffix('.xml').name}: give that file, or the folder"
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


_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|masked_bias|(attn|attention)\.bias|position_ids|num_batches_tracked|relative_position_index)$"
)
_TRAINING = re.compile(r"(^|\.)masked_spec_embed$")
_HEADS = frozenset(
    {"pooler", "cls", "lm_head", "mlm", "nsp", "qa_outputs", "classifier", "vocab_projector", "vocab_transform"}
    | {"vocab_layer_norm", "discriminator_predictions", "post_layernorm"}
)


def is_buffer(name: str) -> bool:
    """Whether a tensor is no parameter: the graph computes it from the config, or has it as a mask."""
    return _BUFFERS.search(name) is not None


def is_training_only(name: str) -> bool:
    """Whether a tensor is used in training alone."""
    return _TRAINING.search(name) is not None


def unused_head(name: str, there: Set[str] = frozenset()) -> bool:
    """Whether a tensor belongs to a part that follows the last layers and that not every model of the architecture has;
    not where a part of that name is among those that are `there`."""
    parts = _HEADS.intersection(name.split("."))
    return bool(parts) and not parts & there
