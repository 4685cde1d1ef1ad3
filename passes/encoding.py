"""One weight's codes, scales and zero points: how they are computed, cut into pieces of rows, and where they wait."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Protocol

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.file_io import Spool, Spooled
from ov_weight_compression.ir_utils.types import Array, Float32, element_type, pack
from ov_weight_compression.ir_utils.weight_source import Layout, Slab, WeightSource
from ov_weight_compression.ir_utils.worker_pool import Job, Part, Sink, Task
from ov_weight_compression.passes.channel_importance import Importance
from ov_weight_compression.passes.plan import Plan, PlannedWeight, stored_parts
from ov_weight_compression.quantization.encode import decode_rows, encode_rows, turn_over_first_group
from ov_weight_compression.quantization.formats import SCALE_DTYPES, Encoded, Spec
from ov_weight_compression.quantization.reference import tensor_scale_of, unusable

_BLOCK_ELEMENTS = 1 << 19  # of the quantiser: what is cut into whole blocks leaves none half empty
_BLOCKS = 4
_SMALL_ELEMENTS = 1 << 16  # of a weight that is encoded together with others
_ROWS_ALIGNMENT = 8  # any number of columns times eight rows ends on a byte (and on u3's blocks of eight)


class StoredRows(Protocol):
    """A weight that is encoded already, whoever did it and wherever it lies."""

    @property
    def tensor_scale(self) -> np.float32 | None:
        """The weight's f32 scalar, where its format has one."""
        ...

    def rows(self, slab: Slab) -> Encoded:
        """Some rows of the weight, codes unpacked."""
        ...


@dataclass(frozen=True)
class StoredWeight:
    """The codes, scales and zero points of one weight in a spool; tensor scale and table as they are."""

    codes: Spooled
    scale: Spooled
    zero_point: Spooled | None
    tensor_scale: np.float32 | None
    codebook: Array | None

    def rows(self, slab: Slab) -> Encoded:
        """Some rows of the weight."""
        zero = None if self.zero_point is None else self.zero_point.rows(slab.start, slab.stop)
        codes, scale = (array.rows(slab.start, slab.stop) for array in (self.codes, self.scale))
        return Encoded(codes, scale, zero, self.tensor_scale, self.codebook)

    def everything(self) -> Encoded:
        """All rows of the weight."""
        rows = self.codes.shape[0]
        return self.rows(Slab(0, rows, (slice(0, rows),)))


def keep(encoded: Encoded, spool: Spool) -> StoredWeight:
    """Move a weight's arrays to disk."""
    codes, scale = spool.put(encoded.codes), spool.put(encoded.scale)
    zero = None if encoded.zero_point is None else spool.put(encoded.zero_point)
    return StoredWeight(codes, scale, zero, encoded.tensor_scale, encoded.codebook)


def encoding_of(planned: PlannedWeight, plan: Plan) -> WeightEncoding:
    """How a weight's constants are computed."""
    weight, stored = planned.weight, planned.stored
    return WeightEncoding(
        weight.name,
        weight.layout,
        planned.spec,
        planned.absmax,
        plan.sources[weight] if stored is None else None,
        stored,
        plan.importance.get(weight.name) if stored is None and planned.spec.search else None,
        planned.stored_scale_type,
    )


@dataclass(frozen=True, eq=False)
class WeightEncoding:
    """Quantise one weight. Implements `ir_utils.worker_pool.Encoding`."""

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

    parts: dict[str, Part] = field(init=False, repr=False)
    """Every part of the chain, described: what is computed, and `known_parts`."""
    nbytes: int = field(init=False, repr=False)
    """Bytes that the parts take, and the unpacked codes where the axes have to be permuted."""
    tensor_scale: np.float32 | None = field(init=False, repr=False)
    """The weight's f32 scalar, where its format has one."""
    packs: bool = field(init=False, repr=False)
    """Whether pieces come packed from the quantiser, which is faster: where every row ends on a whole byte."""
    together: Hashable | None = field(init=False, repr=False)
    """Equal for small weights that one run of the quantiser encodes."""
    pieces: tuple[int, int] = field(init=False, repr=False)
    """How rows are cut (see `Layout.slabs`): whole blocks of the quantiser, none of two experts with an importance
    each."""

    def __post_init__(self) -> None:
        layout, spec, elements = self.layout, self.spec, self.layout.rows * self.layout.columns
        parts = stored_parts(layout, spec, self.scale_type)
        nbytes = sum(part.nbytes for part in parts.values())
        if not layout.contiguous:
            nbytes += elements * np.dtype(spec.format.code_dtype).itemsize
        packs = self.stored is None and layout.contiguous and layout.columns % _ROWS_ALIGNMENT == 0
        together = None
        by_data = self.importance is not None and self.importance.seen is not None
        alone = elements > _SMALL_ELEMENTS or not packs or by_data or spec.format.tensor_scale
        if self.source is not None and not alone:
            together = self.source.element_type, layout, spec, self.scale_type
        scalar = tensor_scale_of(self.absmax, spec.format) if self.stored is None else self.stored.tensor_scale
        rows = _BLOCK_ELEMENTS // max(1, layout.columns)
        rows = max(_ROWS_ALIGNMENT, rows // _ROWS_ALIGNMENT * _ROWS_ALIGNMENT) * _BLOCKS
        seen = () if self.importance is None else (self.importance.seen, self.importance.factors)
        experts = max((len(part) for part in seen if part is not None and part.ndim == 2), default=1)
        follows = {
            "parts": parts,
            "nbytes": nbytes,
            "tensor_scale": scalar,
            "packs": packs,
            "together": together,
            "pieces": (rows, layout.rows // experts),
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)

    @property
    def identity(self) -> tuple[Hashable, Hashable] | None:
        """Equal for weights that are encoded to the same bytes: how they are encoded, and what their values are; None
        where that cannot be told beforehand."""
        values = None if self.source is None else self.source.identity
        if values is None or self.source is None:
            return None
        importance = None if self.importance is None else self.importance.identity
        how = self.source.element_type, self.layout, self.spec, self.scale_type, self.absmax, importance
        return how, values

    def begin(self, jobs: Sequence[Job]) -> tuple[Sequence[Task], Task]:
        """One task for each piece of rows; with other weights that are encoded together with this one, one for all."""
        if len(jobs) > 1:
            return [partial(_encode_together, jobs)], lambda: None
        layout, bits, columns = self.layout, self.spec.format.bits, self.layout.columns
        sink, shape = jobs[0].sink("codes"), (layout.rows, prod(self.parts["scale"].shape) // max(1, layout.rows))
        scales: Array = np.empty(shape, dtype=SCALE_DTYPES[self.spec.scale_type])
        zeros: Array | None = np.empty(shape, dtype=np.uint8) if self.spec.format.asymmetric else None
        unpacked: Array | None = None if layout.contiguous else np.empty(layout.shape, self.spec.format.code_dtype)

        def encode(slab: Slab) -> None:
            rows, offset = slice(slab.start, slab.stop), slab.start * columns * bits // 8
            into = None
            if self.packs:
                room = sink.room(offset, (slab.stop - slab.start) * columns * bits // 8)
                into = Encoded(room, scales[rows], None if zeros is None else zeros[rows])
            encoded = self._encode(slab, into, self.packs)
            if slab.start == 0 and self.spec.format.storage == "u2":
                encoded = turn_over_first_group(encoded, self.spec, packed=self.packs)
            if unpacked is not None:
                target = layout.matrix_view(unpacked)[slab.index]
                target[...] = encoded.codes.reshape(target.shape)
            else:
                sink.write(offset, encoded.codes.reshape(-1) if self.packs else pack(encoded.codes, bits))
            if into is None:
                scales[rows] = encoded.scale
                if zeros is not None and encoded.zero_point is not None:
                    zeros[rows] = encoded.zero_point

        finish = partial(self._finish, jobs[0], scales, zeros, None if unpacked is None else (sink, unpacked))
        return [partial(encode, slab) for slab in layout.slabs(*self.pieces)], finish

    def _finish(self, job: Job, scales: Array, zeros: Array | None, unpacked: tuple[Sink, Array] | None = None) -> None:
        """Write codes that could not be written in pieces, and scales and zero points `[rows, groups]`, which are
        looked at for the last time."""
        if unpacked is not None:
            sink, codes = unpacked
            sink.write(0, pack(codes, self.spec.format.bits))
        if unusable(scales, self.spec.scale_type):
            raise WorkError(f"{self.name}: a scale is not finite: give it a rule or ignore it, and please report this")
        part = self.parts["scale"]
        wide = scales.astype(np.float32) if part.type == "f32" else scales
        job.sink("scale").write(0, self.layout.scales_in_place(wide, part.shape))
        if zeros is not None:
            bits = element_type(self.parts["zero_point"].type).bitwidth
            job.sink("zero_point").write(0, pack(self.layout.scales_in_place(zeros, part.shape), bits))

    def values(self) -> Float32:
        """What the stored weight stands for, `[rows, columns]`."""
        whole = np.empty((self.layout.rows, self.layout.columns), np.float32)
        for slab in self.layout.slabs(*self.pieces):
            whole[slab.start : slab.stop] = decode_rows(self._encode(slab, None, packed=False), self.spec)
        return whole

    def _encode(self, slab: Slab, into: Encoded | None, packed: bool) -> Encoded:
        if self.stored is not None:
            return self.stored.rows(slab)
        assert self.source is not None
        importance = None if self.importance is None else self.importance.energy()
        if importance is not None and importance.ndim == 2:
            importance = importance[slab.start * len(importance) // self.layout.rows]
        encoded = encode_rows(
            self.source.unread(slab),
            self.spec,
            importance=importance,
            weighting="graph" if self.importance is None or self.importance.seen is None else "data",
            tensor_scale=self.tensor_scale,
            packed=packed,
            into=into,
        )
        self.source.release(slab)
        return encoded

    def known_parts(self) -> dict[str, ov.Tensor]:
        """The parts that are known before anything is computed: scalars and tables."""
        format = self.spec.format
        values: dict[str, Array] = {}
        if format.zero_point == "scalar":
            values["zero_point"] = np.array([format.zero_value], dtype=np.int8)
        if self.tensor_scale is not None:
            values["tensor_scale"] = np.array([self.tensor_scale], dtype=np.float32)
        if format.table is not None:
            values["table"] = format.table
        known = {}
        for name, data in values.items():
            part = self.parts[name]
            known[name] = ov.Tensor(element_type(part.type), ov.Shape(list(part.shape)))
            known[name].data.reshape(-1).view(np.uint8)[...] = data.reshape(-1).view(np.uint8)
        return known


def _encode_together(jobs: Sequence[Job]) -> None:
    """Encode small weights that are alike (see `WeightEncoding.together`) in one run."""
    first: WeightEncoding = jobs[0].encoding
    rows = first.layout.rows
    (whole,) = first.layout.slabs(rows)
    values, importance = [], []
    for job in jobs:
        one: WeightEncoding = job.encoding
        assert one.source is not None
        energy = None if one.importance is None else one.importance.energy()
        importance.append(np.ones(first.layout.columns, np.float32) if energy is None else energy)
        values.append(one.source.read(whole))
        one.source.release(whole)
    encoded = encode_rows(np.concatenate(values), first.spec, importance=np.stack(importance), packed=True)
    for place, job in enumerate(jobs):
        own = encoded.rows(place * rows, (place + 1) * rows)
        if first.spec.format.storage == "u2":
            own = turn_over_first_group(own, first.spec, packed=True)
        job.sink("codes").write(0, own.codes.reshape(-1))
        job.encoding._finish(job, own.scale, own.zero_point)
