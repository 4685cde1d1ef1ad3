"""Tables of `adaptive_codebook`: fitted to the weights that they are for, before anything is edited.

`codebook_sharing` says which weights have a table in common, by the names of the layers that read them; a number that
stands by itself between dots or slashes is that of a block:

    none            each weight has its own
    block           all weights of a transformer block        model.layers.3.…
    across_blocks   the same layer of every block             model.layers.*.mlp.down_proj

A weight without such a number in its name has a table of its own. Weights are looked at one after the other, in pieces,
and large ones by a sample of their rows, so any number of them takes the memory of one piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.weight_source import WeightSource
from ov_weight_compression.passes.choice import Choice, Plan
from ov_weight_compression.passes.modes import CodebookSharing
from ov_weight_compression.passes.options import Options
from ov_weight_compression.patterns import Sources, Weight
from ov_weight_compression.quantization.formats import Format
from ov_weight_compression.quantization.lloyd import Histogram, fitted_format, sample_step

__all__ = ["Importance", "with_tables"]

Importance = Callable[[Weight], "Array | None"]
"""What an error in each input channel of a weight costs, `[in]` or `[experts, in]`; None for all alike."""

_PIECE_ELEMENTS = 1 << 19
_BLOCK_NUMBER = re.compile(r"(?<=[./_])\d+(?=[./])")


def with_tables(plan: Plan, sources: Sources, options: Options, importance: Importance) -> Plan:
    """The plan with fitted tables of `codebook_size` entries in place of the stand-ins of `adaptive_codebook`."""
    sharing: dict[str, list[Choice]] = {}
    for choice in plan.choices:
        if choice.spec.format.name == "adaptive_codebook":
            sharing.setdefault(_key(choice.weight, options.codebook_sharing), []).append(choice)
    tables: dict[str, Format] = {}
    for choices in sharing.values():
        histograms = (_histogram(choice, sources[choice.weight], importance(choice.weight)) for choice in choices)
        row = choices[0].spec.format
        fitted = fitted_format(
            row, histograms, count=options.codebook_size, codebook_type=options.codebook_type, start=options.codebook
        )
        tables.update((choice.weight.name, fitted) for choice in choices)
    return replace(plan, choices=tuple(_with_table(choice, tables) for choice in plan.choices))


def _with_table(choice: Choice, tables: dict[str, Format]) -> Choice:
    table = tables.get(choice.weight.name)
    return choice if table is None else replace(choice, spec=replace(choice.spec, format=table))


def _key(weight: Weight, sharing: CodebookSharing) -> str:
    """The same text for all weights that share a table."""
    if sharing is not CodebookSharing.NONE:
        for name in (weight.consumers[0].name, weight.stored_name):
            number = _BLOCK_NUMBER.search(name)
            if number is not None:
                return name[: number.end()] if sharing is CodebookSharing.BLOCK else _BLOCK_NUMBER.sub("*", name)
    return f"own: {weight.name}"


def _histogram(choice: Choice, source: WeightSource, importance: Array | None) -> Histogram:
    layout = source.layout
    histogram = Histogram(choice.absmax, choice.spec.group_of(layout.columns))
    experts = 1 if importance is None or importance.ndim == 1 else len(importance)
    largest = 0.0 if importance is None else float(importance.max(initial=0.0))
    step = sample_step(layout.rows, layout.columns)
    elements = layout.columns if step > 1 else _PIECE_ELEMENTS
    for slab, piece in source.pieces(elements, layout.rows // experts, every=step):
        shares = None
        if importance is not None and largest > 0:
            own = importance if importance.ndim == 1 else importance[slab.start * experts // layout.rows]
            shares = (own / largest).astype(np.float32)
        histogram.add(piece, shares)
    return histogram
