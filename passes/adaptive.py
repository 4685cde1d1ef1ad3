"""Tables of `adaptive_codebook`: each weight gets the one that suits a sample of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ov_weight_compression.ir_utils.constants import ConstantReader
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.passes.choice import Choice, Plan
from ov_weight_compression.patterns import Weight
from ov_weight_compression.quantization.lloyd import fitted_format, sample_step

__all__ = ["with_tables"]


def with_tables(plan: Plan, reader: Callable[[Weight], ConstantReader], size: int, table_type: str) -> Plan:
    """The plan with a fitted table of at most `size` entries in every choice of `adaptive_codebook`."""

    def fitted(choice: Choice) -> Choice:
        row = choice.spec.format
        if row.name != "adaptive_codebook":
            return choice
        source = reader(choice.weight)
        group = choice.spec.group_of(source.layout.columns)
        table = fitted_format(row, _sample(source), choice.absmax, group, count=size, table_type=table_type)
        return replace(choice, spec=replace(choice.spec, format=table))

    return replace(plan, choices=tuple(fitted(choice) for choice in plan.choices))


def _sample(reader: ConstantReader) -> Iterator[Array]:
    step = sample_step(reader.layout.rows, reader.layout.columns)
    for number, slab in enumerate(reader.layout.slabs(1 if step > 1 else max(1, reader.layout.rows))):
        if number % step == 0:
            yield reader.read(slab)
            reader.release(slab)
