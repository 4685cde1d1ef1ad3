"""A checkpoint as an `ov.Model` whose constants lie in the checkpoint's own files.

Its graph is optimum-intel's export, run in a process of its own (see `export_worker`), which writes a folder like
optimum-intel's, whose models are skeletons: everything but the weights.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

import openvino as ov

from ov_weight_compression.checkpoints.folder import Checkpoint, read_checkpoint
from ov_weight_compression.checkpoints.insertion import insert_codes, turned_in_place
from ov_weight_compression.checkpoints.layouts.layout_choice import is_of_activations, quantised_weights
from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight
from ov_weight_compression.checkpoints.skeleton import Placed, fill, read_skeleton, write_virtual_folder
from ov_weight_compression.ir_utils.errors import MissingExtraError, ModelError, OptionError, WorkError, one_line
from ov_weight_compression.ir_utils.publish import TemporaryFolder, expanded
from ov_weight_compression.passes.option_values import Devices
from ov_weight_compression.passes.report import Report

_TURNED = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Architectures whose float weights are [in, out] (transformers' Conv1D)."""


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
    opened = open_checkpoint(expanded("folder", Path(folder)))
    checkpoint = opened.checkpoint
    with TemporaryFolder() as scratch:  # what is mapped of it stays when it is gone
        exported = export_opened(opened, scratch / "export", task)
        names = {Path(name).with_suffix("").as_posix(): name for name in exported.models}
        if model is None and len(names) > 1:
            raise OptionError(f"model: {checkpoint.folder} is exported as {', '.join(names)}; say which one is wanted")
        wanted = next(iter(names)) if model is None else model
        if wanted not in names:
            raise OptionError(f"model: {wanted!r} is none of {', '.join(names)}")
        return open_exported(exported, names[wanted], opened).model


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint, and its quantised weights by the names of the float tensors that they stand for."""

    checkpoint: Checkpoint
    quantised: Mapping[str, QuantisedWeight]

    def place(self, name: str) -> str:
        """`model-00002-of-00005.safetensors: model.layers.3.mlp.up_proj.weight`, also of a weight that is quantised."""
        weight = self.quantised.get(name)
        tensor = self.checkpoint.tensors[name if weight is None else weight.tensors[0]]
        return f"{tensor.file.relative_to(self.checkpoint.folder).as_posix()}: {name}"


@dataclass(frozen=True)
class OpenedModel:
    """A model of an export, with the checkpoint's weights."""

    model: ov.Model
    origins: Mapping[str, str]
    """Where each of its constants comes from, by name."""
    kept: Report | None
    """What became of its quantised weights, perhaps none; None where the checkpoint has no such weights."""


def open_checkpoint(folder: Path) -> OpenedCheckpoint:
    """A checkpoint in floats or quantised.

    Raises:
        ModelError: it is damaged or incomplete, or its weights are quantised in a way that is not read.
    """
    checkpoint = read_checkpoint(folder)
    if checkpoint.quantization is None:
        return OpenedCheckpoint(checkpoint, {})
    try:
        quantised = quantised_weights(checkpoint.quantization, checkpoint.tensors, checkpoint.metadata)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    if checkpoint.config.get("model_type") in _TURNED:
        quantised = {name: replace(one, float_shape=one.shape[::-1]) for name, one in quantised.items()}
    return OpenedCheckpoint(checkpoint, quantised)


def export_opened(opened: OpenedCheckpoint, output: Path, task: str | None = None) -> Exported:
    """Export a checkpoint into the folder `output`, without its weights; see `export`.

    The exporter is shown a float checkpoint with holes for quantised weights. Those that it computes with, which shows
    in that it reads them, are dequantised, and it is run again.

    Raises:
        MissingExtraError, ModelError, WorkError: as `export`.
    """
    checkpoint = opened.checkpoint
    if not opened.quantised:
        return export(checkpoint.folder, output, task)
    dequantised: set[str] = set()
    while True:
        with TemporaryFolder() as shown:
            tensors = write_virtual_folder(checkpoint, opened.quantised, dequantised, shown)
            try:
                exported = export(shown, output, task, tensors)
                beside = filter(is_of_activations, checkpoint.tensors)
                unused = {**exported.unused, **dict.fromkeys(beside, "of activations, which stay floats")}
                return replace(exported, unused=unused)
            except HolesReadError as error:
                if dequantised.issuperset(error.names):
                    raise
                dequantised.update(error.names)
                shutil.rmtree(output, ignore_errors=True)
                output.mkdir(exist_ok=True)
            except (ModelError, WorkError) as error:
                raise type(error)(str(error).replace(str(shown.resolve()), str(checkpoint.folder))) from error


def open_exported(exported: Exported, name: str, opened: OpenedCheckpoint, devices: Devices = ()) -> OpenedModel:
    """A model of an export with the checkpoint's weights, quantised ones as the checkpoint's own codes.

    Raises:
        ModelError: it cannot be read, or a quantised weight cannot stand where it belongs.
    """
    checkpoint, skeleton = opened.checkpoint, exported.models[name]
    model, holes = read_skeleton(exported.folder / name, skeleton.holes)
    origins = {copy: f"{opened.place(one)}, cast or rearranged" for copy, one in skeleton.copies.items()}
    quantised: dict[ov.op.Constant, QuantisedWeight] = {}
    in_floats = []
    for hole in holes:
        placed = hole.placed
        whole, size = opened.quantised.get(placed.tensor), hole.constant.get_element_type().size
        constant = hole.constant
        elements = checkpoint.tensors[placed.tensor].elements if whole is None else prod(whole.shape)
        first, last = placed.begin // size, (placed.begin + placed.nbytes) // size
        part = "" if last - first == elements else f", elements {first} to {last}"
        if part and whole is not None:
            raise ModelError(f"{placed.tensor}: the graph has it in parts, which cannot be made of its codes")
        if whole is not None and placed.turned != bool(whole.float_shape) and len(whole.shape) > 2:
            constant = None if placed.turned else turned_in_place(constant)
            if constant is None:
                raise ModelError(
                    f"{placed.tensor}: the graph has it with its axes turned, which cannot be made of its codes"
                )
        if whole is None:
            in_floats.append(hole)
        else:
            quantised[constant] = whole
        origins[constant.get_friendly_name()] = f"{opened.place(placed.tensor)}{part}"
    fill(in_floats, checkpoint.tensors)
    kept = insert_codes(model, quantised, devices) if opened.quantised else None
    return OpenedModel(model, origins, kept)


_PACKAGES = ("torch", "transformers", "optimum-intel")
_WORKER = """
import sys
sys.modules["openvino_telemetry"] = None  # OpenVINO imports it if it can, and its converter reports with it
from ov_weight_compression.checkpoints.export_worker import watch_caller, work
watch_caller()
sys.exit(work(sys.argv[1:]))
"""
_NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_KILLED = -9


@dataclass(frozen=True)
class Skeleton:
    """One model of an export."""

    holes: tuple[Placed, ...]
    copies: Mapping[str, str]
    """Of constants that are copies of tensors in another type: their names, and those tensors'."""


@dataclass(frozen=True)
class Exported:
    """What an export has written."""

    folder: Path
    models: Mapping[str, Skeleton]
    """By the .xml's path relative to the folder."""
    unused: Mapping[str, str]
    """Tensors of the checkpoint that are in no model, and why."""


def missing_package() -> str | None:
    """The first of the packages that an export needs and that is not installed; none of them is imported."""
    for package in _PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            return package
    return None


class HolesReadError(ModelError):
    """The exporter computes with weights that are not there."""

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


def export(folder: Path, output: Path, task: str | None = None, tensors: Sequence[str] | None = None) -> Exported:
    """Export the checkpoint in `folder` into the folder `output`, without its weights.

    `task` is optimum-intel's word; by default what the architecture is for. Nothing goes to the network, and nothing
    that comes with the checkpoint is run. `tensors` are those that count of a `virtual_folder`.

    Raises:
        HolesReadError: the exporter computes with weights of a `virtual_folder` that are holes.
        MissingExtraError: torch, transformers or optimum-intel are not installed.
        ModelError: the checkpoint lacks a tensor, has one that nothing uses, or cannot be exported.
        WorkError: the export ended before it was done.
    """
    package = missing_package()
    if package is not None:
        raise MissingExtraError(package, "checkpoint", "a model from a checkpoint")
    with TemporaryFolder() as scratch:
        asked, answered, log = scratch / "request.json", scratch / "answer.json", scratch / "log"
        request = {"folder": str(folder.resolve()), "output": str(output), "task": task}
        asked.write_text(json.dumps({**request, "tensors": None if tensors is None else list(tensors)}))
        code = run_worker([str(asked), str(answered)], log)
        answer = json.loads(answered.read_text()) if answered.exists() else {}
        if "models" not in answer:
            raise _failure(folder, code, answer, log)
    models = {
        name: Skeleton(
            tuple(
                Placed(place, tensor, begin, size, tuple(words), turned)
                for place, tensor, begin, size, words, turned in found["holes"]
            ),
            found["copies"],
        )
        for name, found in answer["models"].items()
    }
    return Exported(output, models, answer["unused"])


def run_worker(arguments: list[str], log: Path) -> int:
    """Run the worker in its own process until it ends. Its standard input is a pipe that closes with this process."""
    environment = {**os.environ, **_NO_NETWORK, "PYTHONSAFEPATH": "1"}
    environment.pop("HF_TOKEN", None)
    with log.open("wb") as told:
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _failure(folder: Path, code: int, answer: dict[str, Any], log: Path) -> ModelError | WorkError:
    if answer.get("holes_read"):
        return HolesReadError(f"{folder}: optimum-intel cannot export it: {answer['error']}", answer["holes_read"])
    if answer.get("kind") == "model":
        return ModelError(answer["error"])
    if "error" in answer:
        return ModelError(f"{folder}: optimum-intel cannot export it: {answer['error']}")
    if code == _KILLED:
        return WorkError(f"{folder}: the export was killed; for want of memory, most likely")
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return WorkError(
        f"{folder}: the export ended with code {code}: {one_line((lines or ['nothing was said'])[-1], 200)}"
    )
