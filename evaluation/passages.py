"""The places in a text where two language models differ most, to be looked at by a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ov_weight_compression.calibration.tokenizer import Tokenizer
from ov_weight_compression.evaluation.divergence import NO_TOKEN, Scores
from ov_weight_compression.evaluation.language import Scored

__all__ = ["Passage", "Surprise", "with_text", "worst_passages", "worst_positions"]

_BEFORE = 24
_APART = 8


@dataclass(frozen=True)
class Surprise:
    """One prediction that changed much."""

    window: int
    position: int
    """Of the token from which the next one was predicted, in its window."""
    kl: float
    before: tuple[int, ...]
    """The tokens before, the last of them at `position`."""
    right: int | None
    """The token that came next; None at the end of a window."""
    right_base_p: float | None
    right_p: float | None
    top_base: int
    """What the base model held likeliest, and how likely."""
    top_base_p: float
    top: int
    top_p: float
    text: tuple[str, str, str, str] | None = None
    """`before`, `right`, `top_base` and `top` as text, where there is a tokenizer."""


@dataclass(frozen=True)
class Passage:
    """A window of text, each token with the divergence of its prediction."""

    window: int
    mean_kl: float
    tokens: tuple[int, ...]
    kl: tuple[float | None, ...]
    """Divergence of the two predictions *of* each token, from the ones before it; None where it was not scored."""
    text: tuple[str, ...] | None = None
    """The tokens as text, where there is a tokenizer."""


def worst_positions(scored: Sequence[Scored], count: int) -> list[Surprise]:
    """The positions with the largest divergence, no two within 8 tokens of each other."""
    divergences = np.concatenate([piece.scores.kl for piece in scored])
    owners = np.repeat(np.arange(len(scored)), [len(piece.scores.kl) for piece in scored])
    starts = np.concatenate([[0], np.cumsum([len(piece.scores.kl) for piece in scored])])
    found: list[Surprise] = []
    taken: list[tuple[int, int]] = []
    for place in np.argsort(-divergences, kind="stable")[: 50 * count]:
        window = int(owners[place])
        index = int(place - starts[window])
        if any(window == other and abs(index - near) < _APART for other, near in taken):
            continue
        taken.append((window, index))
        found.append(_surprise(scored[window], window, index))
        if len(found) == count:
            break
    return found


def _surprise(piece: Scored, window: int, index: int) -> Surprise:
    scores: Scores = piece.scores
    row, position = (int(axis[index]) for axis in np.nonzero(piece.piece.chosen))
    following = int(piece.piece.following[index])
    known = following != NO_TOKEN
    return Surprise(
        window=window,
        position=position,
        kl=float(scores.kl[index]),
        before=tuple(map(int, piece.piece.tokens[row, max(0, position + 1 - _BEFORE) : position + 1])),
        right=following if known else None,
        right_base_p=float(np.exp(-scores.nll_base[index])) if known else None,
        right_p=float(np.exp(-scores.nll[index])) if known else None,
        top_base=int(scores.top_base[index]),
        top_base_p=float(scores.top_base_p[index]),
        top=int(scores.top[index]),
        top_p=float(scores.top_p[index]),
    )


def worst_passages(scored: Sequence[Scored], count: int) -> list[Passage]:
    """The windows with the largest mean divergence (of several sequences run at once, the first)."""
    means = np.array([piece.scores.kl.mean() for piece in scored])
    return [_passage(scored[window], int(window)) for window in np.argsort(-means, kind="stable")[:count]]


def _passage(piece: Scored, window: int) -> Passage:
    tokens, chosen = piece.piece.tokens[0], np.flatnonzero(piece.piece.chosen[0])
    shown: list[float | None] = [None] * len(tokens)
    for position, kl in zip(chosen, piece.scores.kl, strict=False):
        if position + 1 < len(tokens):
            shown[position + 1] = float(kl)
    return Passage(window, float(piece.scores.kl.mean()), tuple(map(int, tokens)), tuple(shown))


def with_text(
    surprises: Sequence[Surprise], passages: Sequence[Passage], tokenizer: Tokenizer
) -> tuple[list[Surprise], list[Passage]]:
    """The same with the tokens as text."""

    def worded(one: Surprise) -> Surprise:
        right = "" if one.right is None else _after(tokenizer, one.before, one.right)
        base, compressed = (_after(tokenizer, one.before, token) for token in (one.top_base, one.top))
        return replace(one, text=(tokenizer.decode(one.before), right, base, compressed))

    return [worded(one) for one in surprises], [
        replace(one, text=tuple(tokenizer.pieces(one.tokens))) for one in passages
    ]


def _after(tokenizer: Tokenizer, before: tuple[int, ...], token: int) -> str:
    """The text of a token where it stands: alone, some tokenizers would drop the space in front of it."""
    return tokenizer.pieces([before[-1], token])[-1] or tokenizer.decode([token])
