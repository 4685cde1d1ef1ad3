"""What a model with a cache read step by step, as one window."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.calibration.record import joined_calls
from tests.calibration.small import EXACT, VOCABULARY, language_model


def call(ids: list[list[int]], past: int, beams: list[int], **more: Any) -> dict[str, np.ndarray]:
    tokens = np.array(ids, np.int64)
    rows, length = tokens.shape
    return {
        "input_ids": tokens,
        "attention_mask": np.ones((rows, past + length), np.int64),
        "position_ids": np.broadcast_to(np.arange(past, past + length), (rows, length)),
        "beam_idx": np.array(beams, np.int32),
        **more,
    }


def test_steps_are_joined_in_turn() -> None:
    found = joined_calls([call([[5, 6, 7]], 0, [0]), call([[8]], 3, [0]), call([[9]], 4, [0])])
    assert found is not None
    assert found["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert found["position_ids"].tolist() == [[0, 1, 2, 3, 4]]
    assert found["attention_mask"].shape == (1, 5)
    assert list(found) == ["input_ids", "attention_mask", "position_ids", "beam_idx"]


def test_a_beam_that_took_over_another_has_its_past() -> None:
    """The joined window gives the logits that the steps gave at the end."""
    random = np.random.default_rng(3)
    steps = [call(random.integers(0, VOCABULARY, (2, 4)).tolist(), 0, [0, 1])]
    for past, beams in ((4, [1, 1]), (5, [1, 0]), (6, [0, 0])):
        steps.append(call(random.integers(0, VOCABULARY, (2, 1)).tolist(), past, beams))
    request = ov.Core().compile_model(language_model(), "CPU", EXACT).create_infer_request()
    for step in steps:
        last = np.array(request.infer(step)[0])
    request.reset_state()
    found = joined_calls(steps)
    assert found is not None
    assert found["beam_idx"].tolist() == [0, 1]
    np.testing.assert_allclose(np.array(request.infer(found)[0])[:, -1], last[:, -1], atol=1e-5)


def test_other_inputs() -> None:
    states = np.ones((1, 9, 4))
    vectors = [np.full((1, length, 4), length, np.float32) for length in (3, 1)]
    steps = [
        {"inputs_embeds": vectors[0], "position_ids": np.zeros((3, 1, 3)), "encoder_hidden_states": states},
        {"inputs_embeds": vectors[1], "position_ids": np.ones((3, 1, 1)), "encoder_hidden_states": states},
    ]
    features = [{**steps[0], "features": np.ones((2, 6, 4))}, {**steps[1], "features": np.ones((2, 0, 4))}]
    found = joined_calls(features)
    assert found is not None
    assert {name: array.shape for name, array in found.items()} == {
        "inputs_embeds": (1, 4, 4),
        "position_ids": (3, 1, 4),
        "encoder_hidden_states": (1, 9, 4),
        "features": (2, 6, 4),
    }


@pytest.mark.parametrize("other", [np.ones((2, 5, 4)), np.ones((1, 6, 4))])
def test_what_does_not_fit_together_is_none(other: np.ndarray) -> None:
    steps = [call([[1, 2, 3]], 0, [0], features=np.ones((2, 6, 4))), call([[4]], 3, [0], features=other)]
    assert joined_calls(steps) is None
