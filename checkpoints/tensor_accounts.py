"""What became of each tensor of a checkpoint, while optimum-intel exports its model (see `export_worker`).

Loaders are watched, and what OpenVINO's frontend asks for; of each constant of a finished model it is found which
tensor's bytes it is, has the numbers of, or was computed from. A tensor that is in no model, a parameter that the
checkpoint does not have and a weight that has been read where only a hole is are errors.
"""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import astuple, replace
from itertools import takewhile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ov_weight_compression.checkpoints.constant_origins import (
    FileSpans,
    Stretch,
    TensorPlaces,
    address_of,
    explain_constants,
    folded_when_written,
    sum_of_bits,
)
from ov_weight_compression.checkpoints.folder import Checkpoint, is_buffer, is_training_only, unused_head
from ov_weight_compression.checkpoints.safetensors_file import StoredTensor
from ov_weight_compression.checkpoints.skeleton import HOLES, forget_reads, holes_read, write_skeleton
from ov_weight_compression.checkpoints.widening import Widening
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import FLOAT_TYPES, float_values, to_f32

_NUMBER = re.compile(r"\.\d+(?=\.)")
_LEAST_COMPARED, _COMPARED = 1024, 1 << 20  # numbers of a constant: of few, the sum says little


class ComputedWith(Exception):  # noqa: N818 (the worker alone sees it)
    """The exporter computes with tensors whose casts are places only."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)


class ReadHoles(Exception):  # noqa: N818 (the worker alone sees it)
    """The exporter computes with weights that are holes."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"it computes with {names[0]}, of which there are only codes")
        self.holes = names


class TensorAccounts:
    """What became of each tensor of the checkpoint, while it is exported."""

    def __init__(self, checkpoint: Checkpoint, beside: Set[str], computed: Set[str] = frozenset()) -> None:
        self.checkpoint = checkpoint
        self._beside = beside
        """Names in the folder's files that are none of its tensors."""
        self.models: dict[Path, Any] = {}
        self._widening = Widening(TensorPlaces(checkpoint.tensors.values()), computed)
        self._used: set[str] = set()
        self._unexpected: set[str] = set()
        self._run: set[str] = set()
        """Those of layers that the model calls."""
        self._made_up: dict[str, Any] = {}
        """Parameters that the checkpoint lacks, by name: the loader has filled them with random numbers."""
        self._copies: dict[int, tuple[str, Any]] = {}
        """Addresses of parameters that are not in the files (they were cast to another type), with their names and weak
        references to them: an exporter may cast them once more, and others come to lie where they were."""
        self._spans = FileSpans()
        self._sums: dict[str, int] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, models that are loaded and tensors that OpenVINO's frontend asks for are noted."""
        import torch
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
        from openvino.frontend.pytorch.utils import get_value_from_getattr
        from transformers import PreTrainedModel

        load, decode = PreTrainedModel.__dict__["from_pretrained"], TorchScriptPythonDecoder.try_decode_get_attr
        trace = TorchScriptPythonDecoder._get_scripted_model

        def loaded(cls: Any, *arguments: Any, **named: Any) -> Any:
            named.update(output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True)
            model, told = load.__func__(cls, *arguments, **named)
            self._note_loaded(model, told)
            return model

        def decoded(decoder: Any) -> Any:
            value, path = get_value_from_getattr(decoder.graph_element, decoder.pt_module)
            if isinstance(value, torch.Tensor):
                self._note_used(value, path)
            return decode(decoder)

        def traced(decoder: Any, *arguments: Any, **named: Any) -> Any:
            self._spans = FileSpans()  # what was mapped when the model was loaded may have gone since
            with self._widening.tracing():
                return trace(decoder, *arguments, **named)

        PreTrainedModel.from_pretrained = classmethod(loaded)
        TorchScriptPythonDecoder._get_scripted_model = traced
        TorchScriptPythonDecoder.try_decode_get_attr = decoded
        try:
            with self._widening.casting():
                yield
        finally:
            TorchScriptPythonDecoder._get_scripted_model = trace
            PreTrainedModel.from_pretrained = load
            TorchScriptPythonDecoder.try_decode_get_attr = decode

    def save(self, model: Any, path: Path) -> None:
        """Write a model that the exporter has made as a skeleton.

        Raises:
            ModelError: a constant of it was made from numbers that are not the checkpoint's.
            ReadHoles: a weight has been read that is not there.
        """
        read = holes_read(self.checkpoint.folder)
        if read:
            raise ReadHoles(read)
        explained = explain_constants(model, self._widening)
        # Of codes the turned tensor is what is wanted; of floats the turned numbers are nowhere.
        suspected = [stretch.tensor.name for _, stretch in explained.turned if stretch.tensor.file.name != HOLES]
        suspected += [name for constant in explained.computed for name in self._computed_with(constant)]
        if suspected:
            raise ComputedWith(suspected)
        for constant in explained.computed:
            self._check_computed(constant, path.stem)
        found = [(constant, self._equal_stretch(constant)) for constant in explained.computed]
        stored = [*explained.stored, *((constant, stretch) for constant, stretch in found if stretch is not None)]
        computed = [constant for constant, stretch in found if stretch is None]
        self._used |= {stretch.tensor.name for _, stretch in (*stored, *explained.turned)}
        copies = {constant.get_friendly_name(): self._copied(constant) for constant in computed}
        placed = write_skeleton(model, path, stored, explained.turned)
        self.models[path] = {
            "holes": [astuple(one) for one in placed],
            "copies": {name: tensor for name, tensor in copies.items() if tensor},
        }
        gc.collect()

    def unused(self) -> dict[str, str]:
        """The tensors that no constant of any model was made from, and why that is.

        Raises:
            ModelError: the architecture has no use for a tensor, or the graph leaves one out, and nothing explains it.
        """
        unexpected = {self._tensor_of(name) for name in self._unexpected}
        alike = {_NUMBER.sub(".N", name): name for name in self._used}
        found = {}
        for name, tensor in sorted(self.checkpoint.tensors.items()):
            if name in self._used:
                continue
            what, sibling = f"{self.checkpoint.folder}: {name} ({tensor.file.name})", alike.get(_NUMBER.sub(".N", name))
            if is_buffer(name) or is_training_only(name):
                found[name] = "a buffer, or for training alone"
            elif name in unexpected and unused_head(name):
                found[name] = "the architecture has no such part"
            elif name in unexpected and name.endswith(".bias") and not tensor.values().any():
                found[name] = "all zeros, and the architecture has no such part"
            elif name in unexpected:
                raise ModelError(f"{what} is a tensor that the architecture has no place for")
            elif sibling is not None:
                raise ModelError(f"{what} is in no exported graph, and {sibling} is: the export is incomplete")
            elif name in self._run and not unused_head(name):
                raise ModelError(f"{what} is in no exported graph, though the model uses it")
            else:
                found[name] = "no output of the model needs it"
        return found

    def _computed_with(self, constant: Any) -> Iterable[str]:
        """The tensors that a constant may have been computed with though their casts are places only: those that have
        as many numbers, or of which it may be a part, or else all."""
        tensors = self._widening.tensors
        if not tensors or constant.get_element_type().to_string() not in FLOAT_TYPES:
            return ()
        if not np.isnan(float_values(constant)).any():
            return ()
        count = prod(constant.get_output_shape(0))
        equal = [tensor.name for tensor in tensors if tensor.elements == count]
        return equal or [one.name for one in tensors if one.elements % count == 0] or [one.name for one in tensors]

    def _equal_stretch(self, constant: Any) -> Stretch | None:
        """The tensor, or the part of one, whose numbers a constant holds in their order, in its type or widened."""
        kind, count = constant.get_element_type().to_string(), prod(constant.get_output_shape(0))
        if kind not in FLOAT_TYPES or count < _LEAST_COMPARED or folded_when_written(constant) is not None:
            return None
        values, width = constant.data.reshape(-1), constant.get_element_type().size
        for tensor in self.checkpoint.tensors.values():
            own = tensor.openvino_type
            wide = kind == "f32" and own in ("f16", "bf16")
            if tensor.elements % count or tensor.file.name == HOLES or not (wide or own == kind):
                continue
            stored = tensor.values().reshape(-1)
            for first in range(0, tensor.elements, count):
                if _are_equal(values, stored[first : first + count], str(own) if wide else ""):
                    dtype = "F32" if wide else tensor.dtype
                    whole = replace(tensor, dtype=dtype, nbytes=width * tensor.elements)
                    return Stretch(whole, width * first, width * count)
        return None

    def _copied(self, constant: Any) -> str:
        """The tensor whose numbers a constant holds, in another type or another order; "" where that is not clear.

        It is the one that the constant is named for, or the only one of which all bits have the same sum.
        """
        count, kind = prod(constant.get_output_shape(0)), constant.get_element_type().to_string()
        named = self._tensor_of(_own_name(constant.get_friendly_name()))
        if named and self.checkpoint.tensors[named].elements == count:
            return named
        if kind not in FLOAT_TYPES or count < _LEAST_COMPARED:
            return ""
        total = sum_of_bits(constant.data, kind)
        alike = [name for name, tensor in self._floats(count).items() if self._sum(tensor) == total]
        return alike[0] if len(alike) == 1 else ""

    def _floats(self, count: int) -> dict[str, StoredTensor]:
        """The tensors of so many floats."""
        found = self.checkpoint.tensors.items()
        return {n: one for n, one in found if one.elements == count and one.openvino_type in FLOAT_TYPES}

    def _sum(self, tensor: StoredTensor) -> int:
        if tensor.name not in self._sums:
            self._sums[tensor.name] = sum_of_bits(tensor.values(), str(tensor.openvino_type))
        return self._sums[tensor.name]

    def _check_computed(self, constant: Any, model: str) -> None:
        if not self._made_up or constant.get_element_type().to_string() not in FLOAT_TYPES:
            return
        first, nbytes = address_of(constant)
        for name, value in self._made_up.items():
            start = value.data_ptr()
            if start < first + nbytes and first < start + value.numel() * value.element_size():
                raise ModelError(f"{self.checkpoint.folder}: there is no tensor for {name}, which {model} needs")
        if np.isnan(float_values(constant)).any():
            names = ", ".join(sorted(self._made_up)[:3])
            raise ModelError(
                f"{self.checkpoint.folder}: there is no tensor for {names}, from which {model} has "
                f"{constant.get_friendly_name()} computed"
            )

    def _note_loaded(self, model: Any, told: dict[str, Any]) -> None:
        import torch

        named = dict(model.named_parameters(remove_duplicate=False))
        for entry in told["mismatched_keys"]:
            self._refuse_shape(named, entry if isinstance(entry, str) else entry[0])
        for name in set(told["missing_keys"]) & named.keys():
            with torch.no_grad():  # whatever is computed from it can be told by its values
                named[name].fill_(float("nan"))
            self._made_up[name] = named[name]
        self._unexpected |= set(told["unexpected_keys"]) - self._beside
        forget_reads(self.checkpoint.folder)
        self._spans = FileSpans()
        for name, module in model.named_modules():
            own = {self._tensor_of(f"{name}.{last}".lstrip(".")) for last in (*module._parameters, *module._buffers)}
            module.register_forward_pre_hook(lambda _module, _inputs, own=own: self._run.update(own))
        for name, value in named.items():
            if self._stretch_of(value) is None and not self._copy_at(value.data_ptr()):
                self._copies[value.data_ptr()] = name, weakref.ref(value)

    def _refuse_shape(self, named: dict[str, Any], name: str) -> None:
        tensor = self.checkpoint.tensors.get(self._tensor_of(name))
        stored = "of another shape" if tensor is None else list(tensor.shape)
        wanted = list(named[name].shape) if name in named else "something else"
        what = name if tensor is None else tensor.name
        raise ModelError(f"{self.checkpoint.folder}: {what} is {stored}, and config.json asks for {wanted}")

    def _note_used(self, value: Any, path: str) -> None:
        """A tensor that the frontend asks for under a path in the traced model, `self.model.norm.weight`."""
        stretch = self._stretch_of(value)
        if stretch is not None:
            self._used.add(stretch.tensor.name)
            return
        own = self._copy_at(value.data_ptr()) or _own_name(path)
        self._used.add(self._tensor_of(own) or self._equal_tensor(value, own))

    def _copy_at(self, address: int) -> str:
        """The name of the parameter that lies there now and lay there when it was loaded; "" for none."""
        name, reference = self._copies.get(address, ("", lambda: None))
        value = reference()
        return name if value is not None and value.data_ptr() == address else ""

    def _equal_tensor(self, value: Any, name: str) -> str:
        """The tensor with the numbers of a parameter, of several the one whose name ends most alike; "" for none."""
        if not value.is_floating_point():
            return ""
        floats, total = self._floats(value.numel()), sum_of_bits(value.detach().float().numpy(), "f32")
        alike = [one for one, tensor in floats.items() if self._sum(tensor) == total]
        return max(alike, key=lambda one: _common_end(one, name), default="")

    def _stretch_of(self, value: Any) -> Stretch | None:
        return self._widening.find(self._spans, value.data_ptr(), value.numel() * value.element_size())

    def _tensor_of(self, name: str) -> str:
        """The tensor that a loader's name means: its own, or the longest that ends alike; "" for none.

        Loaders add or leave out what comes before the layers' own names (`model.`, `bert.`).
        """
        if name in self.checkpoint.tensors:
            return name
        alike = [one for one in self.checkpoint.tensors if one.endswith(f".{name}") or name.endswith(f".{one}")]
        return max(alike, key=len) if alike else ""


def _own_name(path: str) -> str:
    """A parameter's name from its path in the traced model."""
    return path.removeprefix("self.").replace("._openvino_orig_", ".")


def _are_equal(values: Any, stored: Any, kind: str) -> bool:
    """Whether a constant has the bits that are stored, as f32 where a `kind` says what they are in the file."""
    for first in [0, *range(_LEAST_COMPARED, values.size, _COMPARED)]:
        size = _COMPARED if first else _LEAST_COMPARED
        one, other = values[first : first + size], stored[first : first + size]
        wide = to_f32(other, kind) if kind else other
        if not np.array_equal(one.view(np.uint8), wide.view(np.uint8)):
            return False
    return True


def _common_end(one: str, other: str) -> int:
    """How many parts two names have in common at their ends."""
    pairs = zip(reversed(one.split(".")), reversed(other.split(".")), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
