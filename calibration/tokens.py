"""Token ids as windows, and windows as batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ov_weight_compression.calibration.language import LanguageModel
from ov_weight_compression.ir_utils.errors import OptionError

__all__ = ["as_windows", "batches"]

_TOKENS_A_RUN = 1024
"""Enough rows for a matrix product to run at full speed, few enough for activations to stay small."""


def as_windows(
    dataset: Iterable[Any], language: LanguageModel, context_length: int, limit: int
) -> list[NDArray[np.int64]]:
    """Token ids, flat or in rows, as at most `limit` windows `[length]`.

    A flat array is cut into windows of `context_length`, of which `limit` are taken at equal distances from all over
    it; its last tokens, too few for a window, are left out. Rows are taken as they are, from the first on.
    """
    rows = [np.asarray(row) for row in dataset] if not isinstance(dataset, np.ndarray) else dataset
    if (isinstance(rows, np.ndarray) and rows.ndim == 1) or all(np.ndim(row) == 0 for row in rows):
        flat = np.asarray(rows).astype(np.int64)
        length = min(language.length or context_length, language.positions or context_length, flat.size)
        whole = flat[: flat.size // length * length].reshape(-1, length)
        taken = np.linspace(0, len(whole) - 1, min(limit, len(whole))).round().astype(int)
        windows = list(whole[taken])
    else:
        windows = [line for row in rows for line in np.atleast_2d(np.asarray(row, np.int64))][:limit]
    for window in windows:
        _check(window, language)
    return windows


def batches(windows: Iterable[NDArray[Any]], batch: int | None) -> Iterator[NDArray[Any]]:
    """Windows of one length side by side, `[batch, length]`: `batch` of them, or as many as make about 1,024 tokens.

    With a prescribed batch, windows that do not fill the last one are left out, unless there would be none.
    """
    by_length: dict[int, list[NDArray[Any]]] = {}
    for window in windows:
        by_length.setdefault(window.size, []).append(window)
    for length, group in by_length.items():
        size = batch or max(1, _TOKENS_A_RUN // length)
        if batch and len(group) < batch:
            group = (group * batch)[:batch]
        for begin in range(0, len(group), size):
            part = group[begin : begin + size]
            if batch is None or len(part) == batch:
                yield np.stack(part)


def _check(window: NDArray[np.int64], language: LanguageModel) -> None:
    if window.ndim != 1 or window.size == 0:
        raise OptionError(f"dataset: a window of token ids has the shape {list(window.shape)}: give [length]")
    low, high = int(window.min()), int(window.max())
    if low < 0 or high >= language.vocabulary:
        raise OptionError(
            f"dataset: token id {low if low < 0 else high}: the model's vocabulary has ids 0 to "
            f"{language.vocabulary - 1}. Was the text tokenised for another model?"
        )
    longest = language.length or language.positions
    if longest and window.size > longest:
        raise OptionError(f"dataset: a window of {window.size} tokens: the model takes at most {longest}")
    if language.length and window.size != language.length:
        raise OptionError(f"dataset: a window of {window.size} tokens: the model's input takes {language.length}")
