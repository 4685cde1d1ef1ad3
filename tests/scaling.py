"""Scaling the channels of a float model at random: what shows whether the places that take it are the right ones."""

from __future__ import annotations

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.dequantization import replace_constant
from ov_weight_compression.passes.scale_folding import ScaleFolding
from ov_weight_compression.patterns import find_weights, sources_of
from ov_weight_compression.patterns.equalization import EqualizationGroup, equalization_groups


def groups_of(model: ov.Model) -> dict[str, EqualizationGroup]:
    """The groups of a model's weights, by the names of the weights."""
    weights, _ = find_weights(model)
    return {weight.name: group for group in equalization_groups(model, weights) for weight in group.weights}


def scale_at_random(model: ov.Model, *, completely: bool = True, seed: int = 3) -> int:
    """Scale every group's input channels by powers of two between 1/8 and 8; how many groups there are.

    Not `completely`: only the layers' columns, which changes what the model computes.
    """
    random = np.random.default_rng(seed)

    def factors(group: EqualizationGroup) -> np.ndarray:
        return np.exp2(random.integers(-3, 4, max(group.classes) + 1)).astype(np.float32)[list(group.classes)]

    if completely:
        folding = ScaleFolding(factors, insert=True)
        folding.run_on_model(model)
        return len(folding.folded)
    weights, _ = find_weights(model)
    groups = equalization_groups(model, weights)
    columns = {weight.name: found for group in groups for found in [factors(group)] for weight in group.weights}
    sources = sources_of(weights).folded(columns, {})
    for weight in weights:
        if weight.name in columns:
            replace_constant(weight.constant, sources.constant(weight), weight.name)
    return len(groups)
