"""A checkpoint's weights in an IR that is there already, of the same architecture.

    from openvino.passes import Manager
    manager = Manager()
    manager.register_pass(WeightsFromCheckpoint("Qwen3-8B-GPTQ-Int4"))
    manager.run_passes(model)

Float tensors become constants in the checkpoint's own files, quantised ones the chains that compression makes; nothing
is computed, and nothing but this package is needed. What belongs where `tensor_matching` finds. Nothing is put in while
anything is left: a layer without a tensor, or a tensor without a place, is an error that names it, unless the caller
says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import ModelPass

from ov_weight_compression.checkpoints.folder import is_buffer, is_training_only, unused_head
from ov_weight_compression.checkpoints.insertion import insert_codes
from ov_weight_compression.checkpoints.layouts.layout_choice import is_of_activations
from ov_weight_compression.checkpoints.opening import OpenedCheckpoint, open_checkpoint
from ov_weight_compression.checkpoints.safetensors_file import StoredTensor, mapped_constants
from ov_weight_compression.checkpoints.tensor_matching import Match, Place, match_tensors, places_of
from ov_weight_compression.ir_utils.dequantization import replace_constant
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.option_kinds import check_model, flag, shown
from ov_weight_compression.ir_utils.publish import expanded
from ov_weight_compression.ir_utils.types import FLOAT_TYPES, to_f32
from ov_weight_compression.passes.option_values import DEVICES, Device, Devices
from ov_weight_compression.passes.rewrite import hold_small_constants, take_over_transpose
from ov_weight_compression.patterns import Kind, Weight, find_compressed, find_weights

_ONE_PLUS = ("gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma")
"""Architectures whose norms multiply by 1 + weight, which exporters compute."""
_SAMPLE = 4096


@dataclass(frozen=True)
class Transplanted:
    """One constant and what took its place."""

    constant: str
    shape: tuple[int, ...]
    tensor: str
    """`model-00002-of-00005.safetensors: model.layers.3.mlp.up_proj.weight`."""
    stored: str
    """The float type, or what is known of the codes: `GPTQ 4 bit g128, codes kept`."""
    rule: str
    """How it was found: own name, layer's name, value, order, tied to the embeddings."""


@dataclass(frozen=True)
class TransplantReport:
    """What came from a checkpoint, and what did not."""

    rows: tuple[Transplanted, ...]
    kept: tuple[str, ...]
    """Float constants that stayed as they were, because no tensor of the checkpoint is theirs."""
    unused: Mapping[str, str]
    """Tensors that no constant took, and why."""

    def __str__(self) -> str:
        lines = [f"{row.constant} ← {row.tensor} ({row.stored}; by {row.rule})" for row in self.rows]
        lines += [f"{name}: stays as it was" for name in self.kept]
        lines += [f"{name}: not used, {reason}" for name, reason in self.unused.items()]
        return "\n".join(lines)


class WeightsFromCheckpoint(ModelPass):
    """Put the weights of a checkpoint into a model of the same architecture: a pass for `openvino.passes.Manager`.

    Args:
        folder: a Hugging Face folder, quantised or not.
        allow_unmatched: put in what fits, and leave layers without a tensor, and tensors without a place, alone.
        device: where the model will run, for codes that a CPU would misread; by default anywhere.
        lazy: False reads and repacks quantised weights now.

    Attributes:
        report: what matched how, and what is left, after the pass has run.

    Raises:
        ModelError: when it runs: something is left, or the checkpoint cannot be read; the model is unchanged.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        allow_unmatched: bool = False,
        device: Device | str | Sequence[str] = (),
        lazy: bool = True,
    ) -> None:
        super().__init__()
        self.folder = expanded("folder", Path(folder))
        self.allow_unmatched: bool = flag().parse("allow_unmatched", allow_unmatched)
        self.devices: Devices = DEVICES.parse("device", device) if device else ()
        self.lazy: bool = flag().parse("lazy", lazy)
        self.report: TransplantReport | None = None

    def run_on_model(self, model: Any) -> bool:
        """Change `model` in place; whether anything changed."""
        source = _Source(open_checkpoint(self.folder))
        compressed = find_compressed(model)
        if compressed:
            raise ModelError(
                f"{shown(compressed[0].name)} of the model is compressed already: put a checkpoint's weights into the "
                "float model, or decompress it first"
            )
        places = places_of(model)
        matches, left, unused = match_tensors(places, source.shapes, source.has_values_of)
        weights = {weight.source: weight for weight in find_weights(model)[0]}
        there = {part for place in places for name in (place.own_name, *place.layer_names) for part in name.split(".")}
        explained = {name: source.why_unused(name, matches, there) for name in unused}
        if not self.allow_unmatched:
            _refuse_what_is_left(source, weights, left, explained)
        quantised = {
            match.place.node: source.quantised[match.tensor] for match in matches if match.tensor in source.quantised
        }
        floats = [match for match in matches if match.place.node not in quantised]
        constants = _constants(floats, source)
        rows = {row.name: row.reason for row in insert_codes(model, quantised, self.devices, self.lazy).rows}
        said = {node: rows[weights[node].name] for node in quantised}
        for match, constant in zip(floats, constants, strict=True):
            _replace(match, constant, weights.get(match.place.node))
        hold_small_constants(model)
        self.report = TransplantReport(
            tuple(source.row(match, said.get(match.place.node)) for match in matches),
            tuple(place.name for place in left),
            {name: reason or "nothing in the graph is it" for name, reason in explained.items()},
        )
        return bool(matches)


def apply_weights_from_checkpoint(
    model: ov.Model,
    folder: str | Path,
    *,
    allow_unmatched: bool = False,
    device: Device | str | Sequence[str] = (),
    lazy: bool = True,
) -> ov.Model:
    """Put the weights of a checkpoint into a model of the same architecture, in place; see `WeightsFromCheckpoint`.

    Raises:
        ModelError: something is left over, or the checkpoint cannot be read; the model is unchanged.
    """
    check_model(model)
    WeightsFromCheckpoint(folder, allow_unmatched=allow_unmatched, device=device, lazy=lazy).run_on_model(model)
    return model


class _Source:
    """A checkpoint's weights by the names of the float tensors that they are, or stand for."""

    def __init__(self, opened: OpenedCheckpoint) -> None:
        self.opened, self.quantised = opened, opened.quantised
        checkpoint = opened.checkpoint
        parts = {name for weight in self.quantised.values() for name in weight.tensors}
        self.floats: dict[str, StoredTensor] = {
            name: tensor
            for name, tensor in checkpoint.tensors.items()
            if name not in parts and tensor.openvino_type in FLOAT_TYPES
        }
        shapes = {name: weight.float_shape or weight.shape for name, weight in self.quantised.items()}
        self.shapes = shapes | {name: tensor.shape for name, tensor in self.floats.items()}
        self._one_plus = checkpoint.config.get("model_type") in _ONE_PLUS

    def is_one_plus(self, match: Match) -> bool:
        """Whether the graph has 1 + the tensor."""
        return self._one_plus and "norm" in match.tensor and match.rule != "own name"

    def has_values_of(self, place: Place, name: str) -> bool:
        """Whether a constant has a tensor's values, as f16 rounds them."""
        if name not in self.floats:
            return False
        mine = to_f32(place.node.data, place.type).reshape(-1)
        theirs = self.floats[name].floats().reshape(-1)
        return _equal(mine[:_SAMPLE], theirs[:_SAMPLE]) and _equal(mine, theirs)

    def why_unused(self, name: str, matches: Sequence[Match], there: Set[str]) -> str:
        """Why a tensor without a place may be left out; empty where it may not. `there` are the parts of the names of
        the model's constants and of what reads them."""
        if unused_head(name, there) and name not in self.quantised:
            return "the model has no such part"
        if is_buffer(name):
            return "a buffer that the graph computes"
        if is_training_only(name):
            return "for training alone"
        if name in self.quantised:
            return ""
        if self.quantised and is_of_activations(name):
            return "of activations, which stay floats"
        stored = self.floats[name]
        taken = [self.floats[match.tensor] for match in matches if match.tensor in self.floats]
        alike = [one for one in taken if (one.shape, one.dtype) == (stored.shape, stored.dtype) and len(one.shape) > 1]
        twin = next((one for one in alike if np.array_equal(one.values(), stored.values())), None)
        if twin is not None:
            return f"the same values as {twin.name}"
        neutral = 0 if name.endswith("bias") else 1
        if len(stored.shape) == 1 and bool((stored.floats() == neutral).all()):
            return f"all {'ones' if neutral else 'zeros'}, which exporters leave out"
        return ""

    def row(self, match: Match, said: str | None) -> Transplanted:
        """A pair as a line of the report."""
        name = match.tensor
        stored = said or f"{self.floats[name].openvino_type}{', plus 1' if self.is_one_plus(match) else ''}"
        return Transplanted(match.place.name, match.place.shape, self.opened.place(name), stored, match.rule)


def _refuse_what_is_left(
    source: _Source, weights: Mapping[Any, Weight], left: Sequence[Place], unused: Mapping[str, str]
) -> None:
    folder = source.opened.checkpoint.folder
    advice = "; allow_unmatched=True leaves it as it is"
    for place in left:
        near = next((name for name in (place.own_name, *place.layer_names) if name in unused), None)
        if near is not None:
            raise ModelError(
                f"{folder}: {near} has shape {list(source.shapes[near])}, which does not fit the model's "
                f"{shown(place.name)} {list(place.shape)}{advice}"
            )
        if place.node in weights and not _is_own_table(place, weights[place.node], unused):
            raise ModelError(
                f"{folder}: has nothing for {shown(place.name)} {list(place.shape)}, a layer's weight of the model"
                + advice
            )
    lost = [name for name, reason in unused.items() if not reason]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise ModelError(
            f"{folder}: {lost[0]} {list(source.shapes[lost[0]])}{more} has no place in the model; "
            "allow_unmatched=True leaves it out"
        )


def _is_own_table(place: Place, weight: Weight, unused: Mapping[str, str]) -> bool:
    """Whether a table without a name is the graph's own (angles): all that the checkpoint has is placed."""
    return weight.kind is Kind.GATHER and "." not in place.own_name and all(unused.values())


def _constants(matches: Sequence[Match], source: _Source) -> list[Any]:
    """Constants in the checkpoint's own files, in its types, and in memory where the graph has something else."""
    stored = [source.floats[match.tensor] for match in matches]
    shapes = [one.shape if match.turned else match.place.shape for one, match in zip(stored, matches, strict=True)]
    constants = mapped_constants(stored, shapes)
    for number, (one, match) in enumerate(zip(stored, matches, strict=True)):
        if source.is_one_plus(match):
            constants[number] = ops.constant((1 + one.floats()).reshape(match.place.shape))
    return constants


def _replace(match: Match, constant: Any, weight: Weight | None) -> None:
    name = match.place.name
    constant.set_friendly_name(name)
    value = constant
    if match.turned:
        rank = len(constant.shape)
        value = ops.transpose(constant, ops.constant(np.array([*range(rank - 2), rank - 1, rank - 2])))
        value.set_friendly_name(f"{name}/transpose")
        if tuple(value.shape) != match.place.shape:
            value = ops.reshape(value, ops.constant(np.array(match.place.shape)), False)
    replace_constant(match.place.node, value, name)
    for consumer in weight.consumers if weight is not None and match.turned else ():
        take_over_transpose(consumer)


def _equal(mine: Any, theirs: Any) -> bool:
    """Whether numbers are equal, or would be in f16, whose smallest OpenVINO and numpy round differently."""
    if prod(mine.shape) != prod(theirs.shape):
        return False
    if np.array_equal(mine, theirs):
        return True
    with np.errstate(over="ignore"):
        rounded = theirs.astype(np.float16).astype(np.float32)
    return bool(np.abs(rounded - mine).max(initial=0) < 2.0**-24)
