"""Cutting text into windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ov_weight_compression.evaluation.samples import (
    Batch,
    CompareRequest,
    Windows,
    batches_of,
    cut_windows,
)
from ov_weight_compression.ir_utils.errors import OptionError

STREAM = np.arange(1000, dtype=np.int32)


def cut(window: int | None = None, windows: int | None = None, **protocol: Any) -> CompareRequest:
    return CompareRequest(window=window, windows=windows, **protocol)


def lengths(options: CompareRequest, *arrays: np.ndarray, usual: int = 256) -> list[int]:
    return [len(tokens) for tokens in cut_windows(arrays or (STREAM,), options, usual).tokens]


def run(windows: Windows) -> list[Batch]:
    sets = ({"input_ids": tokens[None]} for tokens in windows.tokens)
    return list(batches_of(sets, "input_ids", windows.context, windows.score_last))


def test_whole_windows_of_a_stream() -> None:
    found = cut_windows([STREAM], cut())
    assert [tokens[0] for tokens in found.tokens] == [0, 256, 512]
    assert (found.window, found.stride, found.context, found.score_last) == (256, 256, 0, True)
    assert found.tokens[0].dtype == np.int64


def test_the_window_that_was_asked_for_comes_first() -> None:
    assert lengths(cut(), usual=100) == [100] * 10
    assert lengths(cut(window=300), usual=100) == [300] * 3


def test_overlapping_windows_score_each_token_once() -> None:
    found = cut_windows([STREAM], cut(window=100, stride=40))
    assert found.context == 60
    scored = np.concatenate([batch.tokens[batch.chosen] for batch in run(found)])
    assert len(set(scored)) == len(scored)
    assert scored.tolist() == list(range(60, 980))


def test_llama_cpp_scores_the_second_half() -> None:
    found = cut_windows([STREAM], cut(window=100, context=50, score_last=False))
    batch = run(found)[1]
    assert batch.tokens[batch.chosen].tolist() == list(range(150, 199))
    assert batch.following.tolist() == list(range(151, 200))
    assert found.positions == 49 * 10


def test_the_last_position_has_no_next_token() -> None:
    found = cut_windows([np.array([5, 6, 7])], cut())
    assert run(found)[0].following.tolist() == [6, 7, -1]


def test_arrays_of_windows_and_lists_are_taken_as_they_are() -> None:
    assert lengths(cut(), STREAM.reshape(10, 100)) == [100] * 10
    assert lengths(cut(window=300), STREAM[:40], STREAM[:700], STREAM[:1]) == [40, 300, 300]
    assert lengths(cut(windows=2), STREAM.reshape(10, 100)) == [100] * 2


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(10), "whole numbers"),
        (np.zeros((2, 3, 4), dtype=int), r"\[2, 3, 4\]"),
        (np.array([3, -1]), "negative"),
        (np.array([3]), "no window of at least 2"),
        (np.zeros((4, 1), dtype=int), "no window of at least 2"),
    ],
)
def test_what_is_not_text(array: np.ndarray, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        cut_windows([array], cut())


@pytest.mark.parametrize("options", [{"window": 1}, {"stride": 0}, {"context": -1}, {"windows": 0}])
def test_options_that_cannot_be(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=rf"{name}: must be a whole number of at least \d, got {options[name]}"):
        cut(**options)


def test_a_context_that_leaves_nothing() -> None:
    with pytest.raises(OptionError, match="context=256: no window of 256 tokens"):
        cut_windows([STREAM], cut(context=256))
    with pytest.raises(OptionError, match="context=255"):
        cut_windows([STREAM], cut(context=255))


def test_the_digest_knows_tokens_and_lengths() -> None:
    digests = {cut_windows([part], cut(window=window)).digest for part in (STREAM, STREAM + 1) for window in (50, 100)}
    assert len(digests) == 4
    assert cut_windows([STREAM.astype(np.uint16)], cut(window=50)).digest in digests
