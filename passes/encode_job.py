"""One weight's computation, cut into pieces of rows, as the pipeline wants it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.constants import ConstantReader
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.jobs import Task
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.packing import pack, packed_size
from ov_weight_compression.ir_utils.types import Array, element_type
from ov_weight_compression.passes.stored import StoredWeight
from ov_weight_compression.quantization.encode import Weighting, encode_rows, stored_table
from ov_weight_compression.quantization.scales import tensor_scale_of, unusable
from ov_weight_compression.quantization.spec import Encoded, Spec

__all__ = ["Part", "WeightJob", "filled", "stored_parts"]

_BLOCK_ELEMENTS = 1 << 19  # of the quantiser: what is cut into whole blocks leaves none half empty
_BLOCKS = 4
_ROWS_ALIGNMENT = 8  # any number of columns times eight rows ends on a byte (and on u3's blocks of eight)

Importance = Callable[[], Array | None]


@dataclass(frozen=True)
class Part:
    """One constant of a chain as it will be stored: OpenVINO's name of its type, and its shape."""

    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the .bin file."""
        count = int(np.prod(self.shape, dtype=np.int64))
        bits = element_type(self.type).bitwidth
        return packed_size(count, bits) if bits < 8 else count * bits // 8

    def tensor(self) -> ov.Tensor:
        """An empty tensor that owns its memory."""
        return ov.Tensor(element_type(self.type), ov.Shape(list(self.shape)))


def stored_parts(layout: Layout, spec: Spec) -> dict[str, Part]:
    """What a weight of this layout is stored as, by the part's name."""
    row, group = spec.format, spec.group_size
    scales = layout.scale_shape(group)
    parts = {"codes": Part(row.storage, layout.grouped_shape(group))}
    if row.zero_point == "group":
        parts["zero_point"] = Part(row.zero_type or row.storage, scales)
    elif row.zero_point == "scalar":
        parts["zero_point"] = Part("i8", ())
    parts["scale"] = Part(spec.scale_type, scales)
    if row.tensor_scale:
        parts["tensor_scale"] = Part("f32", ())
    table = stored_table(row)
    if table is not None and row.table_type is not None:
        parts["table"] = Part(row.table_type, (table.size,))
    return parts


class Sink(Protocol):
    """Where packed codes go piece by piece: a tensor, or the output file itself."""

    def room(self, offset: int, size: int) -> Array:
        """Memory (uint8) to put in what will be written at byte `offset`; this thread's until it asks again."""

    def write(self, offset: int, data: Array) -> None:
        """Put `data` (uint8) at byte `offset` of the codes."""


class _TensorSink:
    def __init__(self, tensor: ov.Tensor) -> None:
        self._bytes: Array = tensor.data.reshape(-1).view(np.uint8)

    def room(self, offset: int, size: int) -> Array:
        return self._bytes[offset : offset + size]

    def write(self, offset: int, data: Array) -> None:
        target = self._bytes[offset : offset + data.size]
        if not np.may_share_memory(target, data):  # it is `room`
            target[:] = data


@dataclass
class WeightJob:
    """Quantise one weight. Implements `ir_utils.pipeline.Job`."""

    name: str
    reader: ConstantReader
    spec: Spec
    absmax: float
    stored: StoredWeight | None = None
    """The weight's codes, where they have been computed already."""
    importance: Importance | None = None
    """What gives the importance of the input channels, `[columns]` or `[experts, columns]`, when it is needed."""
    weighting: Weighting = "graph"
    experts: int = 1
    """Into how many blocks of rows, each with an importance of its own, the weight falls."""

    @property
    def identity(self) -> Hashable | None:
        """Equal for weights that are encoded to the same bytes; None where that cannot be told beforehand."""
        values = self.reader.identity
        if values is None or self.stored is not None or self.importance is not None:
            return None
        return values, self.spec, self.absmax

    @property
    def parts(self) -> dict[str, Part]:
        """Every part of the chain, described: what `finish` and `known_parts` return."""
        return stored_parts(self.reader.layout, self.spec)

    @property
    def computed_parts(self) -> dict[str, Part]:
        """The parts that `finish` returns: those that depend on the weight's values."""
        known = self.known_parts()
        return {name: part for name, part in self.parts.items() if name not in known}

    @property
    def nbytes(self) -> int:
        """Bytes that the parts take, and the unpacked codes where the axes have to be permuted."""
        stored = sum(part.nbytes for part in self.parts.values())
        layout = self.reader.layout
        return stored if layout.contiguous else stored + layout.rows * layout.columns

    def begin(self) -> tuple[Sequence[Task], Callable[[], dict[str, Any]]]:
        """One task for each piece of rows."""
        tensor = self.parts["codes"].tensor()
        tasks, finish = self.begin_into(_TensorSink(tensor))
        return tasks, lambda: {"codes": tensor, **finish()}

    def begin_into(self, sink: Sink) -> tuple[Sequence[Task], Callable[[], dict[str, Any]]]:
        """As `begin`, but the codes go to `sink` and are not among the parts."""
        layout, parts = self.reader.layout, self.parts
        row, group = self.spec.format, self.spec.group_size
        scale_dtype = {"f16": np.float16, "f32": np.float32}.get(self.spec.scale_type, np.uint8)
        groups = layout.columns // self.spec.group_of(layout.columns)
        scales: Array = np.empty((layout.rows, groups), dtype=scale_dtype)
        zeros: Array | None = np.empty((layout.rows, groups), dtype=np.uint8) if row.zero_point == "group" else None
        unpacked: Array | None = None
        if not layout.contiguous:
            unpacked = np.empty(layout.shape, dtype=np.uint16 if row.bits == 16 else np.uint8)
        tensor_scale = tensor_scale_of(self.absmax, row)

        def run(slab: Slab) -> None:
            offset, size = (slab.start * layout.columns * row.bits // 8, (slab.stop - slab.start) * layout.columns)
            into = None
            if self._packs:
                into = Encoded(
                    codes=sink.room(offset, size * row.bits // 8),
                    scale=scales[slab.start : slab.stop],
                    zero_point=None if zeros is None else zeros[slab.start : slab.stop],
                )
            encoded = self._encode(slab, tensor_scale, into)
            if unusable(encoded.scale, self.spec.scale_type):  # the last look, whatever made them
                raise WorkError(
                    f"{self.name}: a scale is not finite: give it a rule or ignore it, and please report this"
                )
            if unpacked is not None:
                target = layout.matrix_view(unpacked)[slab.index]
                target[...] = encoded.codes.reshape(target.shape)
            else:
                sink.write(offset, encoded.codes.reshape(-1) if self._packs else pack(encoded.codes, row.bits))
            if into is None:
                scales[slab.start : slab.stop] = encoded.scale
                if zeros is not None and encoded.zero_point is not None:
                    zeros[slab.start : slab.stop] = encoded.zero_point

        def finish() -> dict[str, Any]:
            if unpacked is not None:
                sink.write(0, pack(unpacked, row.bits))
            tensors = {"scale": filled(parts["scale"], layout.scales_in_place(scales, group))}
            if zeros is not None:
                bits = element_type(parts["zero_point"].type).bitwidth
                packed = pack(layout.scales_in_place(zeros, group), bits)
                tensors["zero_point"] = filled(parts["zero_point"], packed)
            return tensors

        return [partial(run, slab) for slab in layout.slabs(self._piece_rows(), layout.rows // self.experts)], finish

    def _piece_rows(self) -> int:
        rows = _BLOCK_ELEMENTS // max(1, self.reader.layout.columns)
        return max(_ROWS_ALIGNMENT, rows // _ROWS_ALIGNMENT * _ROWS_ALIGNMENT) * _BLOCKS

    @property
    def _packs(self) -> bool:
        """Whether pieces come packed from the quantiser, which is faster: where every row ends on a whole byte."""
        layout = self.reader.layout
        return self.stored is None and layout.contiguous and layout.columns % _ROWS_ALIGNMENT == 0

    def _encode(self, slab: Slab, tensor_scale: np.float32 | None, into: Encoded | None) -> Encoded:
        if self.stored is not None:
            return self.stored.rows(slab)
        importance = self.importance() if self.importance is not None else None
        if importance is not None and importance.ndim == 2:
            importance = importance[slab.start * len(importance) // self.reader.layout.rows]
        encoded = encode_rows(
            self.reader.read(slab),
            self.spec,
            importance=importance,
            weighting=self.weighting,
            tensor_scale=tensor_scale,
            packed=self._packs,
            into=into,
        )
        self.reader.release(slab)
        return encoded

    def known_parts(self) -> dict[str, ov.Tensor]:
        """The parts that are known before anything is computed: scalars and tables."""
        row, parts = self.spec.format, self.parts
        values: dict[str, Array] = {}
        if row.zero_point == "scalar":
            values["zero_point"] = np.array([row.zero_value], dtype=np.int8)
        tensor_scale = tensor_scale_of(self.absmax, row)
        if tensor_scale is not None:
            values["tensor_scale"] = np.array([tensor_scale], dtype=np.float32)
        table = stored_table(row)
        if table is not None:
            values["table"] = table
        return {name: filled(parts[name], data) for name, data in values.items()}


def filled(part: Part, data: Array) -> ov.Tensor:
    """A part's tensor with these bytes."""
    tensor = part.tensor()
    tensor.data.reshape(-1).view(np.uint8)[...] = data.reshape(-1).view(np.uint8)
    return tensor
