"""Cutting token ids into the windows that a language model is run on, and saying which predictions are scored.

A stream `[n]` is cut into windows of `window` tokens, one starting every `stride` tokens, whole ones only (a stream
shorter than a window is one window of its own). An array `[windows, length]` is taken as it is. A list of streams is
cut one by one. Each window is run by itself, from an empty cache.

Which positions of a window are scored is said by `context`: its first `context` positions are not. Its default scores
every token once: 0 where windows do not overlap, `window - stride` where they do. llama.cpp's tool scores the second
half of each window, and leaves out the last position: `context=window // 2, score_last=False`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov_weight_compression.evaluation.request import CompareRequest
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array, Float32

__all__ = ["DEFAULT_WINDOW", "Batch", "Windows", "cut_windows", "of_inputs", "of_windows"]

DEFAULT_WINDOW = 256
NO_TOKEN = -1
"""What stands for the next token where there is none."""
_Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows of token ids, and which of their positions are scored."""

    tokens: tuple[_Tokens, ...]
    window: int
    """Length of the longest."""
    stride: int
    context: int
    score_last: bool

    def following(self, tokens: _Tokens) -> _Tokens:
        """The next token at each scored position of a window; -1 at a last position that is scored without one."""
        return np.append(tokens[1:], NO_TOKEN)[self.scored(tokens)]

    def scored(self, tokens: _Tokens) -> slice:
        """The scored positions of a window."""
        return slice(self.context, len(tokens) if self.score_last else len(tokens) - 1)

    @property
    def digest(self) -> str:
        """SHA-256 of the windows, their lengths included."""
        sha = hashlib.sha256()
        for tokens in self.tokens:
            sha.update(len(tokens).to_bytes(8, "little"))
            sha.update(tokens.astype("<i8").tobytes())
        return sha.hexdigest()


def cut_windows(arrays: Iterable[Array], request: CompareRequest, usual: int = DEFAULT_WINDOW) -> Windows:
    """Cut arrays of token ids into windows.

    Args:
        arrays: integer arrays `[n]` or `[windows, length]`.
        request: how they are cut and which positions count; None takes the default that this module describes.
        usual: the window where none was asked for.

    Raises:
        OptionError: nothing is left to score, or an array holds no token ids.
    """
    protocol, window = request.protocol, request.window or usual
    stride = protocol.stride or window
    pieces: list[_Tokens] = []
    for array in arrays:
        pieces += _pieces(array, window, stride)
    pieces = pieces[: request.windows]
    context = max(window - stride, 0) if protocol.context is None else protocol.context
    found = Windows(tuple(pieces), max(map(len, pieces), default=0), stride, context, protocol.score_last)
    if not pieces:
        raise OptionError("data: there is no window of at least 2 tokens in it")
    if not any((found.following(piece) >= 0).any() for piece in pieces):
        raise OptionError(f"context={context}: no window of {found.window} tokens has a position left to score")
    return found


def _pieces(array: Array, window: int, stride: int) -> list[_Tokens]:
    if not np.issubdtype(array.dtype, np.integer):
        raise OptionError(f"data: token ids must be whole numbers, this array holds {array.dtype}")
    if array.ndim not in (1, 2):
        raise OptionError(f"data: token ids must be [n] or [windows, length], this array is {list(array.shape)}")
    if array.size and int(array.min()) < 0:
        raise OptionError(f"data: token ids must not be negative, this array holds {int(array.min())}")
    array = array.astype(np.int64)
    if array.ndim == 2:
        return list(array) if array.shape[1] > 1 else []
    if len(array) < window:
        return [array] if len(array) > 1 else []
    return [array[start : start + window] for start in range(0, len(array) - window + 1, stride)]


@dataclass(frozen=True)
class Batch:
    """The inputs of one run, and which of its positions are scored."""

    inputs: Mapping[str, Array]
    tokens: npt.NDArray[np.int64]
    """`[batch, n]`"""
    chosen: npt.NDArray[np.bool_]
    """`[batch, n]`: which positions are scored."""
    following: npt.NDArray[np.int64]
    """The next token of each scored position, in order; -1 for none."""

    def select(self, logits: Float32) -> Float32:
        """The scored positions' logits, `[scored, vocabulary]`; a view where whole windows are scored."""
        if self.chosen.all():
            return logits.reshape(-1, logits.shape[-1])
        return logits[self.chosen]


def of_windows(windows: Windows, ids: str) -> Iterator[Batch]:
    """A batch for each window of token ids, which the model's input `ids` takes."""
    for tokens in windows.tokens:
        chosen = np.zeros((1, len(tokens)), dtype=bool)
        chosen[0, windows.scored(tokens)] = True
        yield Batch({ids: tokens[None]}, tokens[None], chosen, windows.following(tokens))


def of_inputs(sets: Iterable[Mapping[str, Array]], ids: str, context: int, score_last: bool) -> Iterator[Batch]:
    """A batch for each set of inputs, with token ids in `ids`. Where `attention_mask` is 0 nothing is scored, and no
    token is a next one."""
    for inputs in sets:
        if ids not in inputs or np.asarray(inputs[ids]).ndim != 2:
            raise OptionError(f"data: a set of inputs of a language model must hold {ids} [batch, n]")
        tokens = np.asarray(inputs[ids]).astype(np.int64)
        mask = _mask(inputs, tokens)
        following = np.full(tokens.shape, NO_TOKEN, dtype=np.int64)
        following[:, :-1] = np.where(mask[:, 1:], tokens[:, 1:], NO_TOKEN)
        chosen = mask & ((following != NO_TOKEN) | score_last)
        chosen[:, :context] = False
        yield Batch(inputs, tokens, chosen, following[chosen])


def _mask(inputs: Mapping[str, Array], tokens: Array) -> npt.NDArray[np.bool_]:
    if "attention_mask" not in inputs:
        return np.ones(tokens.shape, dtype=bool)
    mask = np.asarray(inputs["attention_mask"]).astype(bool)
    if mask.shape != tokens.shape:
        raise OptionError(f"data: attention_mask is {list(mask.shape)}, input_ids are {list(tokens.shape)}")
    return mask
