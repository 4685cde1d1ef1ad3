"""A table that rows are picked from and that the head multiplies with: coded for what the head reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op

from ov_weight_compression.calibration import make_samples
from ov_weight_compression.calibration.collect import grams_of_inputs
from ov_weight_compression.passes import WeightCompression
from ov_weight_compression.passes.decompress import apply_weight_decompression
from ov_weight_compression.patterns import find_weights
from tests.running import constants

WIDTH, ROWS = 64, 96
RANDOM = np.random.default_rng(3)
TABLE = RANDOM.standard_normal((ROWS, WIDTH)).astype(np.float32)
FEW = (RANDOM.standard_normal((6, WIDTH)) * 4).astype(np.float32)
LAYER = (0.1 * RANDOM.standard_normal((WIDTH, WIDTH)) + RANDOM.standard_normal((WIDTH, 6)) @ FEW / 100).astype(
    np.float32
)
"""What it writes lies mostly in few directions: so there is much to gain for whoever reads it."""
IDS = [RANDOM.integers(0, ROWS, 64) for _ in range(8)]


def tied() -> ov.Model:
    ids = op.parameter([-1], np.int64, name="ids")
    table, layer = op.constant(TABLE, name="table"), op.constant(LAYER, name="layer")
    hidden = op.matmul(op.gather(table, ids, op.constant(0)), layer, False, True)
    return ov.Model([op.result(op.matmul(hidden, table, False, True))], [ids], "m")


def values(**options: Any) -> dict[str, np.ndarray]:
    """Of both weights, as they are stored."""
    model = tied()
    WeightCompression(mode="int4_sym", group_size=32, all_layers=True, dataset=IDS, **options).run_on_model(model)
    apply_weight_decompression(model, lazy=False)
    found = {node.get_output_shape(0)[0]: node.data for node in constants(model).values() if len(node.shape) == 2}
    return {"table": found[ROWS].astype(np.float32), "layer": found[WIDTH].astype(np.float32)}


def moved_in_the_head(table: np.ndarray) -> float:
    read = np.concatenate([TABLE[ids] @ LAYER.T for ids in IDS])
    return float(np.square(read @ (table - TABLE).T).sum())


def test_the_head_suffers_less_than_from_a_search() -> None:
    searched = moved_in_the_head(values(scale_estimation=True)["table"])
    assert moved_in_the_head(values(gptq=True)["table"]) < 0.7 * searched
    assert moved_in_the_head(values(accuracy="best")["table"]) < 0.7 * searched


def test_layers_behind_it_aim_at_the_float_model_from_the_rows_as_they_are_stored() -> None:
    def moved(found: dict[str, np.ndarray], table: np.ndarray) -> float:
        pairs = ((TABLE[ids] @ LAYER.T, table[ids] @ found["layer"].T) for ids in IDS)
        return sum(float(np.square(exact - own).sum()) for exact, own in pairs)

    best, gptq = values(accuracy="best"), values(gptq=True)
    assert moved(best, best["table"]) < 0.95 * moved(gptq, best["table"])


def test_what_the_head_reads_is_summed_up() -> None:
    model = tied()
    weights = [weight for weight in find_weights(model)[0] if weight.name == "table"]
    found = grams_of_inputs(model, weights, make_samples(model, IDS), quiet=True)
    read = np.concatenate([TABLE[ids] @ LAYER.T for ids in IDS])
    np.testing.assert_allclose(found["table"], read.T @ read, rtol=1e-4, atol=1e-2)
