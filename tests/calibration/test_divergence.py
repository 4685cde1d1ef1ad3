"""How far outputs move, and what each window says of it."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.calibration import divergence_of, make_samples
from ov_weight_compression.calibration.divergence import DivergenceSum, MeasuredDivergence, ScoredOutputs, kl_divergence
from tests.calibration import small


def moved(model: ov.Model, samples: object, name: str, factor: float = 1.3) -> MeasuredDivergence:
    """With one weight larger."""
    weights = small.weights_of(model)
    (weight,) = (weight for weight in weights if weight.name == name)
    values = np.asarray(weight.constant.data, np.float32) * np.float32(factor)
    return divergence_of(model, weights, samples, lambda asked: values if asked == name else None, quiet=True)


def test_windows_side_by_side_count_one_by_one() -> None:
    model = small.language_model()
    rows = [np.random.default_rng(seed).integers(0, small.VOCABULARY, 20) for seed in range(4)]
    together = moved(model, make_samples(model, rows), "down_0")
    alone = np.array([moved(model, make_samples(model, [row]), "down_0").total for row in rows])
    assert together.value == together.total == pytest.approx(alone.mean(), rel=1e-4)
    assert together.deviations == pytest.approx((alone - alone.mean()) / 4, rel=1e-2)


def test_what_rounding_makes_of_nothing_is_nothing() -> None:
    """KL of logits that differ in their last bits may come out below 0."""
    random, total = np.random.default_rng(0), DivergenceSum(ScoredOutputs((0,), True))
    rows = [random.standard_normal((1, 96)).astype(np.float32) for _ in range(200)]
    pairs = [(one, one * (1 + np.float32(2**-22))) for one in rows]
    below = next(pair for pair in pairs if kl_divergence(*pair)[0] < 0)
    total.add(0, *below)
    assert total.sums[0, 0] < 0
    assert total.total == 0


def test_other_outputs_are_weighed_by_their_size() -> None:
    x = op.parameter([-1, 64], np.float32, name="x")
    model = ov.Model([op.result(op.matmul(x, small.constant((64, 64), "layer"), False, True))], [x], "m")
    inputs = [scale * np.random.default_rng(7).standard_normal((1, 64)).astype(np.float32) for scale in (1, 3)]
    found = moved(model, make_samples(model, inputs), "layer", 1.1)
    assert found.value == pytest.approx(0.1, rel=1e-3)
    assert found.total == pytest.approx(0.01, rel=1e-3)
    assert found.deviations == pytest.approx([0, 0], abs=1e-6)


def test_a_difference_is_sure_where_all_windows_say_so() -> None:
    noise = np.array([0.3, -0.3, 0.1, -0.1])
    other_noise = noise + np.array([0.02, -0.02, 0, 0])
    first, other = MeasuredDivergence(1.0, 1.0, noise), MeasuredDivergence(1.1, 1.1, other_noise)
    assert first.difference_error(other) == pytest.approx((2 * 0.02**2 * 4 / 3) ** 0.5)
    assert first.surely_less(other)
    assert not other.surely_less(first)
    assert not first.surely_less(MeasuredDivergence(1.1, 1.1, -noise))
    assert not first.surely_less(first)
    one = np.zeros(1)
    assert MeasuredDivergence(1.0, 1.0, one).surely_less(MeasuredDivergence(1.01, 1.01, one))
