"""Scaling the channels of a float model at random: what shows whether the places that absorb it are the right ones."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as op

from ov_weight_compression.ir_utils.dequantization import replace_constant
from ov_weight_compression.passes.smoothing import Fold, Smoothing
from ov_weight_compression.patterns import find_weights
from ov_weight_compression.patterns.equalization import ScalingGroup, scaling_groups


def groups_of(model: ov.Model) -> dict[str, ScalingGroup]:
    """The groups of a model's weights, by the names of the weights."""
    weights, _ = find_weights(model)
    return {weight.name: group for group in scaling_groups(model, weights) for weight in group.weights}


def scale_at_random(model: ov.Model, *, completely: bool = True, seed: int = 3) -> int:
    """Scale every group's input channels by factors between 1/8 and 8; how many groups there are.

    Not `completely`: only the layers' columns, which changes what the model computes.
    """
    weights, _ = find_weights(model)
    random = np.random.default_rng(seed)
    folds = []
    for group in scaling_groups(model, weights):
        factors = np.exp2(random.uniform(-3, 3, max(group.classes) + 1)).astype(np.float32)
        folds.append(Fold(group, factors[list(group.classes)], 0.5))
    smoothing = Smoothing(folds)
    if not completely:
        smoothing.rows.clear()
    for weight in weights:
        if smoothing.touches(weight):
            reader = smoothing.reader(weight)
            values = reader.layout.from_matrix(reader.read_all())
            replace_constant(weight.constant, op.constant(values), weight.name)
    if completely:
        smoothing.apply()
    model.validate_nodes_and_infer_types()
    return len(folds)
