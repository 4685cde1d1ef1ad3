"""A small Llama through the pass, with data: what the tests of AWQ and of LoRA correction share."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.passes import Report, WeightCompression
from tests.running import run


def windows(count: int = 4) -> list[np.ndarray]:
    return [row[None] for row in np.random.default_rng(2).integers(0, 160, (count, 24))]


def compressed(model: ov.Model, **options: Any) -> tuple[ov.Model, Report]:
    own = WeightCompression(**{"mode": "int4_sym", "group_size": 32, **options})
    own.run_on_model(model)
    return model, own.report


def error(model: ov.Model, **options: Any) -> float:
    """Mean square error of the logits on other tokens than those of calibration."""
    feed = {0: np.random.default_rng(9).integers(0, 160, (4, 24))}
    expected = run(model, feed)[0]
    return float(np.square(run(compressed(model, **options)[0], feed)[0] - expected).mean())
