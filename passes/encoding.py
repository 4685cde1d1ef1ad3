"""One weight's codes, scales and zero points: how they are computed, cut into pieces of rows, and where they wait."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Protocol

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.file_io import Spool, Spooled
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.lazy_weight import Part, Sink, filled
from ov_weight_compression.ir_utils.types import Array, Float32, element_type, pack
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.ir_utils.worker_pool import Task
from ov_weight_compression.passes.channel_importance import Importance
from ov_weight_compression.passes.plan import Plan, PlannedWeight, stored_parts
from ov_weight_compression.quantization.encode import decode_rows, encode_rows, turn_over_first_group
from ov_weight_compression.quantization.formats import Encoded, Spec
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
    """The codes, scales and zero points of one weight in a spool; scalars and tables as they are."""

    codes: Spooled
    scale: Spooled
    zero_point: Spooled | None
    rest: Encoded
    """`Encoded` without its arrays: tensor scale and table."""

    @property
    def tensor_scale(self) -> np.float32 | None:
        """The weight's f32 scalar, where its format has one."""
        return self.rest.tensor_scale

    def rows(self, slab: Slab) -> Encoded:
        """Some rows of the weight."""
        zero = None if self.zero_point is None else self.zero_point.rows(slab.start, slab.stop)
        return replace(
            self.rest,
            codes=self.codes.rows(slab.start, slab.stop),
            scale=self.scale.rows(slab.start, slab.stop),
            zero_point=zero,
        )

    def everything(self) -> Encoded:
        """All rows of the weight."""
        rows = self.codes.shape[0]
        return self.rows(Slab(0, rows, (slice(0, rows),)))


def keep(encoded: Encoded, spool: Spool) -> StoredWeight:
    """Move a weight's arrays to disk."""
    nothing = np.empty(0, dtype=np.uint8)
    return StoredWeight(
        codes=spool.put(encoded.codes),
        scale=spool.put(encoded.scale),
        zero_point=None if encoded.zero_point is None else spool.put(encoded.zero_point),
        rest=replace(encoded, codes=nothing, scale=nothing, zero_point=None),
    )


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
        unpacked = self.layout.rows * self.layout.columns * np.dtype(self._unpacked_type).itemsize
        return stored if self.layout.contiguous else stored + unpacked

    @property
    def together(self) -> Hashable | None:
        """Equal for small weights that one run of the quantiser encodes."""
        small = self.layout.rows * self.layout.columns <= _SMALL_ELEMENTS
        by_data = self.importance is not None and self.importance.seen is not None
        if not small or by_data or self.source is None or not self._packs or self.spec.format.tensor_scale:
            return None
        return self.source.element_type, self.layout, self.spec, self.scale_type

    def begin_into(
        self, sink: Sink, others: Sequence[tuple[WeightEncoding, Sink]] = ()
    ) -> tuple[Sequence[Task], Callable[[], Sequence[dict[str, Array]]]]:
        """One task for each piece of rows; the codes go to `sink`. With others, one for all of them."""
        if others:
            made: list[dict[str, Array]] = []
            return [lambda: made.extend(_encoded_together([(self, sink), *others]))], lambda: made
        layout = self.layout
        experts = 1 if self.importance is None else self.importance.experts
        format = self.spec.format
        scale_dtype = {"f16": np.float16, "f32": np.float32}.get(self.spec.scale_type, np.uint8)
        groups = layout.columns // self.spec.group_of(layout.columns)
        scales: Array = np.empty((layout.rows, groups), dtype=scale_dtype)
        zeros: Array | None = np.empty((layout.rows, groups), dtype=np.uint8) if format.zero_point == "group" else None
        unpacked: Array | None = None
        if not layout.contiguous:
            unpacked = np.empty(layout.shape, dtype=self._unpacked_type)
        tensor_scale = self._tensor_scale

        def run(slab: Slab) -> None:
            offset, size = (slab.start * layout.columns * format.bits // 8, (slab.stop - slab.start) * layout.columns)
            into = None
            if self._packs:
                into = Encoded(
                    codes=sink.room(offset, size * format.bits // 8),
                    scale=scales[slab.start : slab.stop],
                    zero_point=None if zeros is None else zeros[slab.start : slab.stop],
                )
            encoded = self._encode(slab, tensor_scale, into)
            if slab.start == 0:
                encoded = turn_over_first_group(encoded, self.spec, packed=self._packs)
            if unpacked is not None:
                target = layout.matrix_view(unpacked)[slab.index]
                target[...] = encoded.codes.reshape(target.shape)
            else:
                sink.write(offset, encoded.codes.reshape(-1) if self._packs else pack(encoded.codes, format.bits))
            if into is None:
                scales[slab.start : slab.stop] = encoded.scale
                if zeros is not None and encoded.zero_point is not None:
                    zeros[slab.start : slab.stop] = encoded.zero_point

        def finish() -> list[dict[str, Array]]:
            if unpacked is not None:
                sink.write(0, pack(unpacked, format.bits))
            return [self._beside_codes(scales, zeros)]

        return [partial(run, slab) for slab in layout.slabs(self._piece_rows(), layout.rows // experts)], finish

    def _beside_codes(self, scales: Array, zeros: Array | None) -> dict[str, Array]:
        """The bytes of scales and zero points `[rows, groups]`, which are looked at for the last time."""
        if unusable(scales, self.spec.scale_type):
            raise WorkError(f"{self.name}: a scale is not finite: give it a rule or ignore it, and please report this")
        layout, group, parts = self.layout, self.spec.group_size, self.parts
        wide = scales.astype(np.float32) if parts["scale"].type == "f32" else scales
        found = {"scale": layout.scales_in_place(wide, group)}
        if zeros is not None:
            bits = element_type(parts["zero_point"].type).bitwidth
            found["zero_point"] = pack(layout.scales_in_place(zeros, group), bits)
        return found

    @property
    def _unpacked_type(self) -> type[np.unsignedinteger[Any]]:
        """What holds one code: indices into tables of more than 256 entries take two bytes."""
        return np.uint16 if self.spec.format.bits == 16 else np.uint8

    def _piece_rows(self) -> int:
        rows = _BLOCK_ELEMENTS // max(1, self.layout.columns)
        return max(_ROWS_ALIGNMENT, rows // _ROWS_ALIGNMENT * _ROWS_ALIGNMENT) * _BLOCKS

    @property
    def _packs(self) -> bool:
        """Whether pieces come packed from the quantiser, which is faster: where every row ends on a whole byte."""
        layout = self.layout
        return self.stored is None and layout.contiguous and layout.columns % _ROWS_ALIGNMENT == 0

    def values(self) -> Float32:
        """What the stored weight stands for, `[rows, columns]`."""
        experts = 1 if self.importance is None else self.importance.experts
        whole = np.empty((self.layout.rows, self.layout.columns), np.float32)
        tensor_scale = self._tensor_scale
        for slab in self.layout.slabs(self._piece_rows(), self.layout.rows // experts):
            encoded = self._encode(slab, tensor_scale, None, packed=False)
            whole[slab.start : slab.stop] = decode_rows(encoded, self.spec)
        return whole

    def _encode(
        self, slab: Slab, tensor_scale: np.float32 | None, into: Encoded | None, *, packed: bool | None = None
    ) -> Encoded:
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
            tensor_scale=tensor_scale,
            packed=self._packs if packed is None else packed,
            into=into,
        )
        self.source.release(slab)
        return encoded

    @property
    def _tensor_scale(self) -> np.float32 | None:
        return tensor_scale_of(self.absmax, self.spec.format) if self.stored is None else self.stored.tensor_scale

    def known_parts(self) -> dict[str, ov.Tensor]:
        """The parts that are known before anything is computed: scalars and tables."""
        format, parts = self.spec.format, self.parts
        values: dict[str, Array] = {}
        if format.zero_point == "scalar":
            values["zero_point"] = np.array([format.zero_value], dtype=np.int8)
        tensor_scale = self._tensor_scale
        if tensor_scale is not None:
            values["tensor_scale"] = np.array([tensor_scale], dtype=np.float32)
        table = format.table
        if table is not None:
            values["table"] = table
        return {name: filled(parts[name], data) for name, data in values.items()}


def _encoded_together(weights: Sequence[tuple[WeightEncoding, Sink]]) -> list[dict[str, Array]]:
    """Encode small weights that are alike (see `WeightEncoding.together`) in one run, each one's codes into its sink;
    the bytes of each one's other parts."""
    first, rows = weights[0][0], weights[0][0].layout.rows
    whole = Slab(0, rows, (slice(0, rows),))
    values, importance = [], []
    for one, _ in weights:
        assert one.source is not None
        energy = None if one.importance is None else one.importance.energy()
        importance.append(np.ones(first.layout.columns, np.float32) if energy is None else energy)
        values.append(one.source.read(whole))
        one.source.release(whole)
    encoded = encode_rows(np.concatenate(values), first.spec, importance=np.stack(importance), packed=True)
    found = []
    for place, (one, sink) in enumerate(weights):
        own = encoded.rows(place * rows, (place + 1) * rows)
        own = turn_over_first_group(own, one.spec, packed=True)
        sink.write(0, own.codes.reshape(-1))
        found.append(one._beside_codes(own.scale, own.zero_point))
    return found
