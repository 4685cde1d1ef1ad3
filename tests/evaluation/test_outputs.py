"""Comparing the outputs of models that are no language models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.evaluation import ComparisonProtocol, compare
from ov_weight_compression.evaluation.layers import SignalNoise
from ov_weight_compression.evaluation.outputs import OutputTotals
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from tests import models
from tests.evaluation.small import EXACT, perceptron

INPUT = np.random.default_rng(2).standard_normal((40, 24)).astype(np.float32)


def run(model: ov.Model, values: np.ndarray) -> list[np.ndarray]:
    found = ov.Core().compile_model(model, "CPU", EXACT)([values])
    return [np.array(found[place], dtype=np.float64) for place in range(len(found))]


def plain_overlap(a: np.ndarray, b: np.ndarray) -> float:
    shares = []
    for row in range(len(a)):
        nearest = []
        for side in (a, b):
            cosines = side @ side[row] / np.linalg.norm(side, axis=1) / np.linalg.norm(side[row])
            nearest.append(set(np.argsort([-c if n != row else 9 for n, c in enumerate(cosines)], kind="stable")[:10]))
        shares.append(len(nearest[0] & nearest[1]) / 10)
    return float(np.mean(shares))


@pytest.mark.parametrize("batch", [None, 7])
def test_figures_equal_plain_arithmetic(batch: int | None) -> None:
    base, other = perceptron(), perceptron(noise=0.1)
    found = compare(base, other, {"x": INPUT}, layers=False, protocol=ComparisonProtocol(batch=batch))
    assert found.language is None
    assert [one.name for one in found.outputs] == ["embedding", "scores"]
    for one, a, b in zip(found.outputs, run(base, INPUT), run(other, INPUT), strict=True):
        cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert one.rows == 40
        assert one.cosine_mean == pytest.approx(cosines.mean(), rel=1e-6)
        assert one.cosine_min == pytest.approx(cosines.min(), rel=1e-6)
        assert one.cosine_p1 == pytest.approx(np.percentile(cosines, 1), rel=1e-6)
        relative = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert one.relative_l2 == pytest.approx(relative, rel=1e-5)
        assert one.snr_db == pytest.approx(-20 * math.log10(relative), rel=1e-5)
    embedding, scores = found.outputs
    assert embedding.neighbours == pytest.approx(plain_overlap(*(run(model, INPUT)[0] for model in (base, other))))
    assert 0.3 < embedding.neighbours < 1
    assert embedding.samples == 40
    assert scores.neighbours is None, "three numbers are no embedding"


def test_equal_models() -> None:
    found = compare(perceptron(), perceptron(), INPUT).outputs[0]
    assert found.snr_db == math.inf
    assert found.relative_l2 == 0
    assert found.cosine_min == pytest.approx(1)
    assert found.neighbours == 1


def test_rows_of_every_rank() -> None:
    random = np.random.default_rng(0)
    for shape, rows in [((), 1), ((5,), 1), ((4, 6), 4), ((2, 3, 6), 6), ((2, 3, 4, 5), 2)]:
        totals = OutputTotals("y")
        values = random.standard_normal(shape).astype(np.float32)
        totals.add(values, 2 * values, None)
        figures = totals.figures()
        assert figures.rows == rows
        assert figures.cosine_min == pytest.approx(1)
        assert figures.relative_l2 == pytest.approx(1)


def test_positions_are_averaged_under_their_mask() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal((12, 5, 8))
    mask = np.ones((12, 5))
    mask[:, 3:] = 0
    disturbed = values.copy()
    disturbed[:, 3:] = 100 * random.standard_normal((12, 2, 8))
    with_mask, without = OutputTotals("y"), OutputTotals("y")
    with_mask.add(values, disturbed, mask)
    without.add(values, disturbed, None)
    assert with_mask.figures().neighbours == 1
    assert without.figures().neighbours != 1


def test_eleven_samples_are_too_few_for_neighbours() -> None:
    assert compare(perceptron(), perceptron(), INPUT[:11], layers=False).outputs[0].neighbours is None
    assert compare(perceptron(), perceptron(), INPUT[:12], layers=False).outputs[0].neighbours == 1


def test_zeros() -> None:
    totals = OutputTotals("y")
    totals.add(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0]]), None)
    assert totals.figures().cosine_mean == pytest.approx(1 / 3)
    assert SignalNoise(0, 0).snr_db is None
    assert SignalNoise(0, 1).snr_db == -math.inf


def test_a_convolution_on_pictures_made_up_from_its_shapes() -> None:
    base, other = models.convolution(), models.convolution()
    found = compare(base, other, layers=False, windows=3)
    assert found.data.synthesised
    assert found.data.samples == 3
    assert found.outputs[0].row == "a sample, flattened"
    assert found.outputs[0].rows == 3


def test_outputs_are_paired_by_name() -> None:
    base = perceptron()
    turned = perceptron()
    turned = ov.Model(turned.get_results()[::-1], turned.get_parameters())
    assert [one.snr_db for one in compare(base, turned, INPUT, layers=False).outputs] == [math.inf, math.inf]


class TestErrors:
    def test_another_number_of_outputs(self) -> None:
        half = perceptron()
        half = ov.Model(half.get_results()[:1], half.get_parameters())
        with pytest.raises(ModelError, match="different outputs: base 2, compressed 1"):
            compare(perceptron(), half, INPUT)

    def test_a_shape_that_does_not_fit(self) -> None:
        with pytest.raises(OptionError, match=r"'x' is \[3, 5\], but the base model takes \[\?,24\]"):
            compare(perceptron(), perceptron(), np.zeros((3, 5), dtype=np.float32))

    def test_nothing(self) -> None:
        with pytest.raises(OptionError, match="it is empty"):
            compare(perceptron(), perceptron(), [])
        with pytest.raises(OptionError, match="it is empty"):
            compare(perceptron(), perceptron(), np.zeros((0, 3, 24)))

    def test_nan(self) -> None:
        with pytest.raises(WorkError, match="output 'embedding' holds NaN"):
            compare(perceptron(), perceptron(noise=math.nan), INPUT)

    def test_kept_logits_are_for_language_models(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="only a language model's logits"):
            compare(perceptron(), perceptron(), INPUT, protocol=ComparisonProtocol(save_base=tmp_path / "x"))

    def test_a_size_that_cannot_be_guessed(self) -> None:
        with pytest.raises(OptionError, match="has no input 'y'"):
            compare(perceptron(), perceptron(), protocol=ComparisonProtocol(shapes={"y": (1, 2)}))
        found = compare(perceptron(), perceptron(), windows=2, protocol=ComparisonProtocol(shapes={"x": (5, 24)}))
        assert found.outputs[0].rows == 10
