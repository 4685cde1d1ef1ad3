"""One run of a language model: its inputs, and which of its predictions are scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov_weight_compression.evaluation.data import Inputs
from ov_weight_compression.evaluation.divergence import NO_TOKEN
from ov_weight_compression.evaluation.windows import Windows
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array, Float32

__all__ = ["Piece", "of_inputs", "of_windows"]


@dataclass(frozen=True)
class Piece:
    """Inputs `[batch, n]` of one run and its scored positions."""

    inputs: Inputs
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


def of_windows(windows: Windows, ids: str) -> Iterator[Piece]:
    """A piece for each window of token ids, which the model's input `ids` takes."""
    for tokens in windows.tokens:
        chosen = np.zeros((1, len(tokens)), dtype=bool)
        chosen[0, windows.scored(tokens)] = True
        yield Piece({ids: tokens[None]}, tokens[None], chosen, windows.following(tokens))


def of_inputs(sets: Iterable[Inputs], ids: str, context: int, score_last: bool) -> Iterator[Piece]:
    """A piece for each set of inputs, with token ids in `ids`. Where `attention_mask` is 0 nothing is scored, and no
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
        yield Piece(inputs, tokens, chosen, following[chosen])


def _mask(inputs: Inputs, tokens: Array) -> npt.NDArray[np.bool_]:
    if "attention_mask" not in inputs:
        return np.ones(tokens.shape, dtype=bool)
    mask = np.asarray(inputs["attention_mask"]).astype(bool)
    if mask.shape != tokens.shape:
        raise OptionError(f"data: attention_mask is {list(mask.shape)}, input_ids are {list(tokens.shape)}")
    return mask
