"""Models and checkpoints without their weights, with holes in their place: what an exporter writes, and what it is
shown.

**A skeleton** is an IR whose .bin is a hole wherever a tensor of the checkpoint belongs.

    openvino_model.xml      as OpenVINO writes it
    openvino_model.bin      holes (no bytes on the disk) for tensors; constants that are none as they are
    Placed(offset, …)       of each hole: where it is in the .bin, and which tensor's bytes belong there

It is written where the exporter's memory is (`write_skeleton`) and read where the weights are wanted (`read_skeleton`),
which puts Constants that lie in the checkpoint's files in place of the holes (`fill`). What is read is, but for where
its constants lie, the model that reading an export of the usual kind gives.

**A virtual folder** is a quantised checkpoint as an exporter is shown it: a float checkpoint whose quantised weights
are holes.

    config.json                     the checkpoint's, without its quantization_config
    holes.safetensors               a float tensor in place of each quantised weight: a sparse file, which takes no
                                    disk, takes no memory when it is mapped, and is zeros when it is read
    kept-….safetensors              links to the checkpoint's files, for the tensors that are left in floats; what lies
                                    in a file that has quantised weights by the same names is a hole or a copy instead
    values.safetensors              quantised weights that an exporter computes with, dequantised
    model.safetensors.index.json    which of them counts for which tensor
    tokenizer.json …                links

Loaders need no patch, and where a constant of the exported graph lies in a hole, its place says which weight it is.

Two holes are as far apart as the window in which Linux maps pages around one that is read: so pages of a hole are there
if, and only if, somebody has read it. That proves that no constant was computed from a weight that is not there
(`holes_read`).
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import openvino as ov

from ov_weight_compression.checkpoints.constant_origins import FileSpans, Stretch, address_of, is_present
from ov_weight_compression.checkpoints.folder import QUANTIZATION_KEYS, Checkpoint
from ov_weight_compression.checkpoints.layouts.layout_choice import is_of_activations
from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight, row_blocks
from ov_weight_compression.checkpoints.safetensors_file import DTYPES, StoredTensor, mapped_constants, read_header
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.ir_file import read_model
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight
from ov_weight_compression.ir_utils.saving import make_room, stubbing
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.weight_source import widened
from ov_weight_compression.ir_utils.worker_pool import Job, Part, Pipeline, Task
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed


@dataclass(frozen=True)
class Placed:
    """A hole of a skeleton: where it is in the .bin, and what belongs there."""

    offset: int
    tensor: str
    begin: int
    nbytes: int
    names: tuple[str, ...] = ()
    """Of the constant's output: what is postponed loses them when a model is cloned."""
    turned: bool = False
    """Whether the graph has the last two axes of the tensor the other way round."""


@dataclass(frozen=True)
class Hole:
    """A constant of a skeleton, once it has been read, and what belongs there."""

    constant: Any
    placed: Placed


@dataclass(eq=False)
class _Room:
    """What room is left for. Implements `ir_utils.worker_pool.Encoding`, of which nobody asks to be computed."""

    name: str
    stretch: Stretch
    part: Part
    names: tuple[str, ...]
    turned: bool
    nbytes = 0
    together = None

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"weight": self.part}

    @property
    def identity(self) -> Hashable | None:
        return self.stretch, self.part, self.names, self.turned

    def begin(self, jobs: Sequence[Job]) -> tuple[Sequence[Task], Task]:
        raise NotImplementedError


def write_skeleton(
    model: Any, path: Path, stored: Sequence[tuple[Any, Stretch]], turned: Sequence[tuple[Any, Stretch]] = ()
) -> tuple[Placed, ...]:
    """Write a model as `path` (.xml) and its .bin, with holes for constants that are tensors, and for operations that
    are tensors with the last two axes turned. Changes the model.

    Raises:
        OSError: the files cannot be written.
    """
    pipeline = Pipeline()
    for constant, stretch in (*stored, *turned):
        part = Part(constant.get_output_element_type(0).to_string(), tuple(constant.get_output_shape(0)))
        names = tuple(sorted(constant.output(0).get_names()))
        room = _Room(constant.get_friendly_name(), stretch, part, names, constant.get_type_name() != "Constant")
        hole = LazyWeight(pipeline, room).constant("weight")
        hole.set_friendly_name(room.name)
        constant.output(0).replace(hole.output(0))
    stubs = path.with_suffix(".stubs.bin")
    with stubbing() as stood_for:
        ov.save_model(model, path, compress_to_fp16=False)
    path.with_suffix(".bin").replace(stubs)
    text, offsets = make_room(path.read_bytes(), stubs, path.with_suffix(".bin"), stood_for, sparse=True)
    path.write_bytes(text)
    stubs.unlink()
    placed = []
    for mark, offset in offsets.items():
        owner = stood_for[mark][0].encoding
        assert isinstance(owner, _Room)
        stretch = owner.stretch
        placed.append(Placed(offset, stretch.tensor.name, stretch.begin, stretch.nbytes, owner.names, owner.turned))
    return tuple(placed)


def read_skeleton(path: Path, placed: Sequence[Placed]) -> tuple[ov.Model, list[Hole]]:
    """A model with holes, and its constants that are some, bodies included.

    Raises:
        ModelError: it cannot be read, or has no constant at a hole.
    """
    model = read_model(path)
    by_offset = {one.offset: one for one in placed}
    spans, own = FileSpans(), str(path.with_suffix(".bin").resolve())
    holes = []
    for graph in graphs_of(model):
        for constant, kind in graph.constants:
            place = None if kind == "string" or is_postponed(constant) else spans.find(*address_of(constant))
            one = by_offset.get(place[1]) if place is not None and place[0] == own else None
            if one is not None and constant.get_byte_size() == one.nbytes:
                holes.append(Hole(constant, one))
    missing = set(by_offset.values()) - {hole.placed for hole in holes}
    if missing:
        first = min(one.tensor for one in missing)
        raise ModelError(f"{path}: {len(missing)} tensors of the checkpoint have no place in it, {first!r} among them")
    return model, holes


def fill(holes: Sequence[Hole], tensors: Mapping[str, StoredTensor]) -> None:
    """Put Constants that lie in the checkpoint's files in place of holes; of f32 that the checkpoint has in 16 bits,
    what stands for them (see `ir_utils.weight_source`)."""
    parts = [_part(tensors[hole.placed.tensor], hole) for hole in holes]
    shapes = [tuple(hole.constant.get_output_shape(0)) for hole in holes]
    for hole, constant in zip(holes, mapped_constants(parts, shapes), strict=True):
        constant.set_friendly_name(hole.constant.get_friendly_name())
        same = constant.get_element_type() == hole.constant.get_element_type()
        value = (constant if same else widened(constant)).output(0)
        hole.constant.output(0).replace(value)
        value.set_names(set(hole.placed.names))


def _part(tensor: StoredTensor, hole: Hole) -> StoredTensor:
    """The bytes of a tensor that a hole wants."""
    placed, bits = hole.placed, DTYPES[tensor.dtype].bits
    wider = hole.constant.get_element_type().bitwidth // bits
    begin, nbytes = placed.begin // wider, placed.nbytes // wider
    if (begin, nbytes) == (0, tensor.nbytes):
        return tensor
    return StoredTensor(tensor.name, tensor.file, tensor.offset + begin, nbytes, tensor.dtype, (nbytes * 8 // bits,))


HOLES = "holes.safetensors"
_GAP = "gap between holes "
_VALUES = "values.safetensors"
_LARGE_BYTES = 1 << 20
_WINDOW = 1 << 16
"""Linux maps the pages of so many bytes around one that is read."""
_MADV_DONTNEED = 4
_LEFT_OUT = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.index.json",
    "config.json",
    "quant*_config.json",
    "hf_quant*",
)


def write_virtual_folder(
    checkpoint: Checkpoint, weights: Mapping[str, QuantisedWeight], dequantised: Iterable[str], folder: Path
) -> tuple[str, ...]:
    """Write the folder.

    Args:
        checkpoint: what it stands for.
        weights: its quantised weights, by the names of the float tensors.
        dequantised: those tensors, quantised or not, that must not be holes.
        folder: an empty folder.

    Returns:
        The names of the tensors that count; the links show others too.
    """
    real = set(dequantised)
    parts = {name for weight in weights.values() for name in weight.tensors}
    kept = [one for name, one in checkpoint.tensors.items() if name not in parts and not is_of_activations(name)]
    dtype = "BF16" if checkpoint.config.get("torch_dtype", checkpoint.config.get("dtype")) == "bfloat16" else "F16"
    for file in checkpoint.folder.iterdir():
        if file.is_file() and not any(file.match(pattern) for pattern in _LEFT_OUT):
            (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").write_text(json.dumps(_float_config(checkpoint.config, dtype), indent=1))
    # A file that has a quantised weight by the float weight's name cannot be shown.
    hidden = {checkpoint.tensors[name].file for name in weights if name in checkpoint.tensors}
    holes = {name: (dtype, weight.float_shape or weight.shape) for name, weight in weights.items() if name not in real}
    written: dict[str, tuple[str, tuple[int, ...], Iterable[Array]]] = {
        name: ("F32", weight.float_shape or weight.shape, _values(weight))
        for name, weight in weights.items()
        if name in real
    }
    weight_map = {}
    for tensor in kept:
        if tensor.file not in hidden:
            # Not by the file's own name: a file called model.safetensors would be taken for the whole checkpoint.
            weight_map[tensor.name] = f"kept-{tensor.file.name}"
            link = folder / weight_map[tensor.name]
            if not link.is_symlink():
                link.symlink_to(tensor.file.resolve())
        elif tensor.nbytes > _LARGE_BYTES and tensor.name not in real:
            holes[tensor.name] = (tensor.dtype, tensor.shape)
        else:
            written[tensor.name] = (tensor.dtype, tensor.shape, [tensor.values()])
    _write_holes(folder / HOLES, holes)
    weight_map.update(dict.fromkeys(holes, HOLES))
    if written:
        _write_values(folder / _VALUES, written)
        weight_map.update(dict.fromkeys(written, _VALUES))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tuple(weight_map)


def _float_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A config that says nothing of quantised weights, in the type that the holes have."""
    said = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
    for key, value in said.items():
        if isinstance(value, dict):
            said[key] = {inner: one for inner, one in value.items() if inner not in QUANTIZATION_KEYS}
    name = {"BF16": "bfloat16", "F16": "float16"}[dtype]
    return {**said, "torch_dtype": name, "dtype": name}


def _write_holes(path: Path, holes: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """The format allows no gaps, so what is between two holes is a tensor as well."""
    entries: dict[str, Any] = {}
    place = 0
    for number, (name, (dtype, shape)) in enumerate(holes.items()):
        end = place + prod(shape) * DTYPES[dtype].bits // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end + _WINDOW
        entries[f"{_GAP}{number}"] = {"dtype": "U8", "shape": [_WINDOW], "data_offsets": [end, place]}
    with path.open("wb") as file:
        file.truncate(_write_header(file, entries, _WINDOW) + place)


def _write_values(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], Iterable[Array]]]) -> None:
    entries: dict[str, Any] = {}
    place = 0
    for name, (dtype, shape, _) in tensors.items():
        end = place + prod(shape) * DTYPES[dtype].bits // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    with path.open("wb") as file:
        _write_header(file, entries, 8)
        for _, _, pieces in tensors.values():
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).tobytes())


def _write_header(file: BinaryIO, entries: Mapping[str, Any], multiple: int) -> int:
    """Write a header that ends at a multiple of so many bytes, and return where that is."""
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-(len(text) + 8) % multiple)
    return file.write(len(text).to_bytes(8, "little") + text)


def _values(weight: QuantisedWeight) -> Iterator[Array]:
    """A weight dequantised, as f32 in the shape of the float weight."""
    if not weight.float_shape:
        for first, last in row_blocks(weight.row_count, weight.columns):
            yield weight.values(first, last)
        return
    rows = weight.shape[-2]
    for first in range(0, weight.row_count, rows):  # an expert, turned
        yield weight.values(first, first + rows).T


def forget_reads(folder: Path) -> None:
    """Unmap the pages of the holes that this process has read so far: loaders look at the first bytes of each."""
    for span in FileSpans().of(folder / HOLES):
        length = ctypes.c_size_t(span.stop - span.start)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(span.start), length, _MADV_DONTNEED)


def holes_read(folder: Path) -> list[str]:
    """The weights whose holes this process, or a library in it, has read since."""
    spans = FileSpans().of(folder / HOLES)
    if not spans:
        return []
    tensors = read_header(folder / HOLES).tensors.values()
    return [
        tensor.name
        for tensor in tensors
        if not tensor.name.startswith(_GAP)
        and any(
            span.offset <= tensor.offset < span.offset + span.stop - span.start
            and is_present(span.start + tensor.offset - span.offset, tensor.nbytes)
            for span in spans
        )
    ]
