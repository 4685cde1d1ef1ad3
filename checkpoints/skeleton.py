"""A model without its weights: an IR whose .bin is a hole wherever a tensor of the checkpoint belongs.

    openvino_model.xml      as OpenVINO writes it
    openvino_model.bin      holes (no bytes on the disk) for tensors; constants that are none as they are
    Placed(offset, …)       of each hole: where it is in the .bin, and which tensor's bytes belong there

It is written where the exporter's memory is (`write_skeleton`) and read where the weights are wanted (`read_skeleton`),
which puts Constants that lie in the checkpoint's files in place of the holes (`fill`). What is read is, but for where
its constants lie, the model that reading an export of the usual kind gives.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openvino as ov

from ov_weight_compression.checkpoints.explain import FileSpans, Stretch, address_of
from ov_weight_compression.checkpoints.safetensors_file import DTYPES, StoredTensor, mapped_constants
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.ir_file import read_model
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.postponed_constants import postponed_constant
from ov_weight_compression.ir_utils.saving import find_stubs, make_room
from ov_weight_compression.ir_utils.stubs import FileSink, active_stubs, stubbing
from ov_weight_compression.ir_utils.widened_constants import widened
from ov_weight_compression.ir_utils.worker_pool import Job
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
    """What `save_model` leaves room for. Implements `StubbedWeight`, of which nobody asks to be computed."""

    name: str
    stretch: Stretch
    kind: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    turned: bool

    @property
    def pipeline(self) -> Pipeline:
        raise NotImplementedError

    @property
    def identity(self) -> Hashable | None:
        return self.stretch, self.kind, self.shape, self.names, self.turned

    def job(self, sinks: Mapping[str, FileSink]) -> Job:
        raise NotImplementedError


def write_skeleton(
    model: Any, path: Path, stored: Sequence[tuple[Any, Stretch]], turned: Sequence[tuple[Any, Stretch]] = ()
) -> tuple[Placed, ...]:
    """Write a model as `path` (.xml) and its .bin, with holes for constants that are tensors, and for operations that
    are tensors with the last two axes turned. Changes the model.

    Raises:
        OSError: the files cannot be written.
    """
    for constant, stretch in (*stored, *turned):
        kind, shape = constant.get_output_element_type(0), constant.get_output_shape(0)
        names = tuple(sorted(constant.output(0).get_names()))
        is_turned = constant.get_type_name() != "Constant"
        room = _Room(constant.get_friendly_name(), stretch, kind.to_string(), tuple(shape), names, is_turned)
        hole = postponed_constant(kind, shape, partial(_stub, room, kind), name=room.name)
        constant.output(0).replace(hole.output(0))
    stubs = path.with_suffix(".stubs.bin")
    with stubbing() as stubbed:
        ov.save_model(model, path, compress_to_fp16=False)
    path.with_suffix(".bin").replace(stubs)
    text = path.read_bytes()
    found = find_stubs(text, stubs, stubbed.stubs)
    text, offsets = make_room(text, stubs, path.with_suffix(".bin"), found, stubbed.stubs, sparse=True)
    path.write_bytes(text)
    stubs.unlink()
    placed = []
    for mark, offset in offsets.items():
        owner = stubbed.stubs[mark].owner
        assert isinstance(owner, _Room)
        stretch = owner.stretch
        placed.append(Placed(offset, stretch.tensor.name, stretch.begin, stretch.nbytes, owner.names, owner.turned))
    return tuple(placed)


def _stub(room: _Room, kind: ov.Type) -> ov.Tensor:
    stubbed = active_stubs()
    assert stubbed is not None
    return stubbed.stub(room, "weight", kind, room.shape)


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
    what stands for them (see `ir_utils.widened_constants`)."""
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
