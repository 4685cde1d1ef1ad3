"""Weights of fp8 checkpoints: stored in eight bits already, and meant to be compressed further.

    Constant f8e4m3 ─ Convert ─ [Multiply(scale)] ─ [Reshape] ─▸ layer

The scale is one for all, one per channel or one per block. What a compressor makes can look the same (fp8 with a scale
per channel), but leaves a recipe in the model's rt_info: in a model with such a recipe nothing is a source, so that
compressing twice changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

import openvino as ov

from ov_weight_compression.ir_utils.recipe import is_compressed
from ov_weight_compression.patterns.compressed import CompressedWeight
from ov_weight_compression.patterns.graphs import Graph, bytes_of
from ov_weight_compression.patterns.judge import Candidate, judge
from ov_weight_compression.patterns.weight import Skip, Weight

__all__ = ["has_sources", "settle_source"]


def has_sources(model: ov.Model) -> bool:
    """Whether fp8 weights of this model are there to be compressed, as far as its recipe tells."""
    return not is_compressed(model)


def settle_source(graph: Graph, one: CompressedWeight, rules: dict[str, str]) -> Weight | Skip:
    """The weight that an fp8 source is, or why it is left alone; `rules` as `judge` takes them.

    Its `constant` is the operation whose output stands for the float weight, behind any Reshape of blocks.
    """
    candidate = Candidate.of(graph, one.end, one.storage)
    if one.name in rules:
        found: Weight | str = f"ignored: {rules[one.name]}"
    else:
        found = judge(candidate, rules)
    if isinstance(found, Weight):
        return replace(found, name=one.name, parts=one.constants)
    size = sum(bytes_of(part) for part in one.constants)
    return Skip(one.name, one.consumers[0].name, one.shape, one.storage, found, size)
