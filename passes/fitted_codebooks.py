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
from dataclasses import replace

import numpy as np

from ov_weight_compression.passes.channel_importance import weigh_channels
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.option_values import CodebookSharing
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.plan import Algorithm, Plan, PlannedWeight
from ov_weight_compression.patterns import Weight
from ov_weight_compression.quantization.formats import Format
from ov_weight_compression.quantization.lloyd import Histogram, fitted_format, sample_step

_PIECE_ELEMENTS = 1 << 19
_BLOCK_NUMBER = re.compile(r"(?<=[./_])\d+(?=[./])")


def fit_codebooks(plan: Plan, options: Options, data: Measurements) -> Plan:
    """The plan with fitted tables of `codebook_size` entries in place of the stand-ins of `adaptive_codebook`, weighted
    as the scale search is."""
    if options.scale_search != "off":
        plan = weigh_channels(plan, data, Algorithm.CODEBOOK_FIT)
    sharing: dict[str, list[PlannedWeight]] = {}
    for planned in plan.weights:
        if Algorithm.CODEBOOK_FIT in planned.algorithms:
            sharing.setdefault(_key(planned.weight, options.codebook_sharing), []).append(planned)
    formats: dict[str, Format] = {}
    for together in sharing.values():
        fitted = fitted_format(
            together[0].spec.format,
            (_histogram(planned, plan) for planned in together),
            count=options.codebook_size,
            codebook_type=options.codebook_type,
            start=options.codebook,
        )
        formats.update((planned.weight.name, fitted) for planned in together)
    return replace(plan, weights=tuple(_with_format(planned, formats) for planned in plan.weights))


def _with_format(planned: PlannedWeight, formats: dict[str, Format]) -> PlannedWeight:
    format = formats.get(planned.weight.name)
    return planned if format is None else replace(planned, spec=replace(planned.spec, format=format))


def _key(weight: Weight, sharing: CodebookSharing) -> str:
    """The same text for all weights that share a table."""
    if sharing is not CodebookSharing.NONE:
        for name in (weight.consumers[0].name, weight.stored_name):
            number = _BLOCK_NUMBER.search(name)
            if number is not None:
                return name[: number.end()] if sharing is CodebookSharing.BLOCK else _BLOCK_NUMBER.sub("*", name)
    return f"own: {weight.name}"


def _histogram(planned: PlannedWeight, plan: Plan) -> Histogram:
    source, known = plan.sources[planned.weight], plan.importance.get(planned.weight.name)
    layout, importance = source.layout, None if known is None else known.energy()
    histogram = Histogram(planned.absmax, planned.spec.group_of(layout.columns))
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
