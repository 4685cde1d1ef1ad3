"""One weight's computation, cut into pieces of rows, as the pipeline wants it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.lazy_weight import Part, Sink, filled
from ov_weight_compression.ir_utils.packing import pack
from ov_weight_compression.ir_utils.types import Array, element_type
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.ir_utils.worker_pool import Task
from ov_weight_compression.passes.channel_importance import ChannelImportance
from ov_weight_compression.passes.stored import StoredRows
from ov_weight_compression.quantization.encode import encode_rows, turn_over_first_group
from ov_weight_compression.quantization.formats import stored_codebook
from ov_weight_compression.quantization.reference import tensor_scale_of, unusable
from ov_weight_compression.quantization.spec import Encoded, Spec

__all__ = ["Importance", "WeightJob", "stored_parts"]

_BLOCK_ELEMENTS = 1 << 19  # of the quantiser: what is cut into whole blocks leaves none half empty
_BLOCKS = 4
_ROWS_ALIGNMENT = 8  # any number of columns times eight rows ends on a byte (and on u3's blocks of eight)


def stored_parts(layout: Layout, spec: Spec, scale_type: str | None = None) -> dict[str, Part]:
    """What a weight of this layout is stored as, by the part's name; scales in another type where one is given."""
    row, group = spec.format, spec.group_size
    scales = layout.scale_shape(group)
    parts = {"codes": Part(row.storage, layout.grouped_shape(group))}
    if row.zero_point == "group":
        parts["zero_point"] = Part(row.zero_type or row.storage, scales)
    elif row.zero_point == "scalar":
        parts["zero_point"] = Part("i8", ())
    parts["scale"] = Part(scale_type or spec.scale_type, scales)
    if row.tensor_scale:
        parts["tensor_scale"] = Part("f32", ())
    table = stored_codebook(row)
    if table is not None and row.codebook_type is not None:
        parts["table"] = Part(row.codebook_type, (table.size,))
    return parts


@dataclass(frozen=True, eq=False)
class Importance:
    """Where the importance of a weight's input channels comes from."""

    seen: Array | None = None
    """E[x²] of the input, `[columns]` or `[experts, columns]`, where data have shown it."""
    channels: ChannelImportance | None = None
    """What the graph says, where they have not."""
    weight: str = ""
    """Whose channels."""
    factors: Array | None = None
    """`[columns]` or `[experts, columns]`: the values that are quantised have been multiplied by them."""

    @property
    def experts(self) -> int:
        """Into how many blocks of rows, each with an importance of its own, the weight falls."""
        return max(1 if part is None or part.ndim == 1 else len(part) for part in (self.seen, self.factors))

    def energy(self) -> Array | None:
        """What an error in each column of the values that are quantised costs; None for all alike."""
        energy = self.seen if self.channels is None else self.channels.of(self.weight)
        if self.factors is None:
            return energy
        return np.asarray((1 if energy is None else energy) / np.square(self.factors))

    @property
    def identity(self) -> Hashable:
        """Equal for weights that count alike, if their values are the same."""
        arrays = [None if one is None else one.tobytes() for one in (self.seen, self.factors)]
        return (*arrays, None if self.channels is None else self.channels.identity(self.weight))


@dataclass(frozen=True, eq=False)
class WeightJob:
    """Quantise one weight. Implements `ir_utils.lazy_weight.Encoding`."""

    bulk: ClassVar[str] = "codes"

    name: str
    layout: Layout
    spec: Spec
    absmax: float
    source: WeightSource | None = None
    """What its values are read from; None where they are `stored`."""
    stored: StoredRows | None = None
    """The weight's codes, where they have been computed already."""
    importance: Importance | None = None
    """Of the input channels, for a scale search."""
    scale_type: str | None = None
    """What scales are stored in, where that is wider than what they are rounded to."""

    @property
    def alike(self) -> Hashable | None:
        """Equal for weights that are encoded to the same bytes if their values are equal; None where that cannot be
        told beforehand."""
        if self.stored is not None or self.source is None or self.source.identity is None:
            return None
        importance = None if self.importance is None else self.importance.identity
        return self.source.element_type, self.layout, self.spec, self.scale_type, self.absmax, importance

    @property
    def identity(self) -> Hashable | None:
        """Equal for weights that are encoded to the same bytes; None where that cannot be told beforehand."""
        alike = self.alike
        return None if alike is None or self.source is None else (alike, self.source.identity)

    @cached_property
    def parts(self) -> dict[str, Part]:
        """Every part of the chain, described: what `finish` and `known_parts` return."""
        return stored_parts(self.layout, self.spec, self.scale_type)

    @cached_property
    def nbytes(self) -> int:
        """Bytes that the parts take, and the unpacked codes where the axes have to be permuted."""
        stored = sum(part.nbytes for part in self.parts.values())
        return stored if self.layout.contiguous else stored + self.layout.rows * self.layout.columns

    def begin_into(self, sink: Sink) -> tuple[Sequence[Task], Callable[[], dict[str, ov.Tensor]]]:
        """One task for each piece of rows; the codes go to `sink`."""
        layout, parts = self.layout, self.parts
        experts = 1 if self.importance is None else self.importance.experts
        row, group = self.spec.format, self.spec.group_size
        scale_dtype = {"f16": np.float16, "f32": np.float32}.get(self.spec.scale_type, np.uint8)
        groups = layout.columns // self.spec.group_of(layout.columns)
        scales: Array = np.empty((layout.rows, groups), dtype=scale_dtype)
        zeros: Array | None = np.empty((layout.rows, groups), dtype=np.uint8) if row.zero_point == "group" else None
        unpacked: Array | None = None
        if not layout.contiguous:
            unpacked = np.empty(layout.shape, dtype=np.uint16 if row.bits == 16 else np.uint8)
        tensor_scale = self._tensor_scale

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
            if slab.start == 0:
                encoded = turn_over_first_group(encoded, self.spec, packed=self._packs)
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

        def finish() -> dict[str, ov.Tensor]:
            if unpacked is not None:
                sink.write(0, pack(unpacked, row.bits))
            wide = scales.astype(np.float32) if parts["scale"].type == "f32" else scales
            tensors = {"scale": filled(parts["scale"], layout.scales_in_place(wide, group))}
            if zeros is not None:
                bits = element_type(parts["zero_point"].type).bitwidth
                packed = pack(layout.scales_in_place(zeros, group), bits)
                tensors["zero_point"] = filled(parts["zero_point"], packed)
            return tensors

        return [partial(run, slab) for slab in layout.slabs(self._piece_rows(), layout.rows // experts)], finish

    def _piece_rows(self) -> int:
        rows = _BLOCK_ELEMENTS // max(1, self.layout.columns)
        return max(_ROWS_ALIGNMENT, rows // _ROWS_ALIGNMENT * _ROWS_ALIGNMENT) * _BLOCKS

    @property
    def _packs(self) -> bool:
        """Whether pieces come packed from the quantiser, which is faster: where every row ends on a whole byte."""
        layout = self.layout
        return self.stored is None and layout.contiguous and layout.columns % _ROWS_ALIGNMENT == 0

    def _encode(self, slab: Slab, tensor_scale: np.float32 | None, into: Encoded | None) -> Encoded:
        if self.stored is not None:
            return self.stored.rows(slab)
        assert self.source is not None
        importance = None if self.importance is None else self.importance.energy()
        if importance is not None and importance.ndim == 2:
            importance = importance[slab.start * len(importance) // self.layout.rows]
        encoded = encode_rows(
            self.source.read(slab),
            self.spec,
            importance=importance,
            weighting="graph" if self.importance is None or self.importance.seen is None else "data",
            tensor_scale=tensor_scale,
            packed=self._packs,
            into=into,
        )
        self.source.release(slab)
        return encoded

    @property
    def _tensor_scale(self) -> np.float32 | None:
        return tensor_scale_of(self.absmax, self.spec.format) if self.stored is None else self.stored.tensor_scale

    def known_parts(self) -> dict[str, ov.Tensor]:
        """The parts that are known before anything is computed: scalars and tables."""
        row, parts = self.spec.format, self.parts
        values: dict[str, Array] = {}
        if row.zero_point == "scalar":
            values["zero_point"] = np.array([row.zero_value], dtype=np.int8)
        tensor_scale = self._tensor_scale
        if tensor_scale is not None:
            values["tensor_scale"] = np.array([tensor_scale], dtype=np.float32)
        table = stored_codebook(row)
        if table is not None:
            values["table"] = table
        return {name: filled(parts[name], data) for name, data in values.items()}
