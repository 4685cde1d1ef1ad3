"""A checkpoint as an `ov.Model` whose constants lie in the checkpoint's own files."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import openvino as ov

from ov_weight_compression.checkpoints.export import Exported, export
from ov_weight_compression.checkpoints.folder import Checkpoint, read_checkpoint
from ov_weight_compression.checkpoints.skeleton import fill, read_skeleton
from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.publish import TemporaryFolder, expanded

__all__ = ["from_checkpoint", "open_checkpoint", "open_exported"]


def from_checkpoint(folder: str | PathLike[str], *, task: str | None = None, model: str | None = None) -> ov.Model:
    """The model of a Hugging Face folder, as optimum-intel exports it, without a copy of its weights.

        ov_model = from_checkpoint("Qwen3-0.6B")
        save_model(apply_weight_compression(ov_model, mode="int4_sym"), "int4/openvino_model.xml")

    Its constants are the mapped safetensors files, which must stay as they are for as long as it is used. It needs the
    packages of the extra `checkpoint`, which run in a process of their own and are gone when this returns. Nothing goes
    to the network, and no code that comes with the checkpoint is run.

    Args:
        folder: a config.json and *.safetensors, in the checkpoint's own type, sharded or not.
        task: what it is exported for, in optimum-intel's words; by default what its architecture is for.
        model: which of several (`"openvino_decoder_model"`), for architectures that are exported as such.

    Raises:
        OptionError: there is no such model, or it is not said which of several.
        ModelError: the checkpoint is damaged or incomplete, has tensors that nothing uses, or cannot be exported.
        MissingExtraError: the extra is not installed.
    """
    checkpoint = open_checkpoint(expanded("folder", Path(folder)))
    with TemporaryFolder() as scratch:  # what is mapped of it stays when it is gone
        exported = export(checkpoint.folder, scratch / "export", task)
        names = {Path(name).with_suffix("").as_posix(): name for name in exported.models}
        if model is None and len(names) > 1:
            raise OptionError(f"model: {checkpoint.folder} is exported as {', '.join(names)}; say which one is wanted")
        wanted = next(iter(names)) if model is None else model
        if wanted not in names:
            raise OptionError(f"model: {wanted!r} is none of {', '.join(names)}")
        return open_exported(exported, names[wanted], checkpoint)[0]


def open_checkpoint(folder: Path) -> Checkpoint:
    """A checkpoint whose weights are floats.

    Raises:
        ModelError: it is damaged or incomplete, or its weights are quantised.
    """
    checkpoint = read_checkpoint(folder)
    if checkpoint.quantization is not None:
        method = checkpoint.quantization.get("quant_method", "in an unknown way")
        raise ModelError(f"{folder}: its weights are quantised already ({method}); give the checkpoint in floats")
    return checkpoint


def open_exported(exported: Exported, name: str, checkpoint: Checkpoint) -> tuple[ov.Model, dict[str, str]]:
    """A model of an export with the checkpoint's weights, and where each of its constants comes from, by name.

    Raises:
        ModelError: it cannot be read.
    """
    skeleton = exported.models[name]
    model, holes = read_skeleton(exported.folder / name, skeleton.holes)
    origins = {copy: f"{checkpoint.place(checkpoint.tensors[one])}, cast" for copy, one in skeleton.copies.items()}
    for hole in holes:
        tensor, placed = checkpoint.tensors[hole.placed.tensor], hole.placed
        part = "" if placed.nbytes == tensor.nbytes else f", bytes {placed.begin} to {placed.begin + placed.nbytes}"
        origins[hole.constant.get_friendly_name()] = f"{checkpoint.place(tensor)}{part}"
    fill(holes, checkpoint.tensors)
    return model, origins
