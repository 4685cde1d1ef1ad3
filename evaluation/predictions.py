"""How far the predictions of one language model are from another's, position by position.

For one position both models give logits over the vocabulary, a_v (base) and b_v (compressed), in float32. In float64

    log p_v = a_v - log sum exp a        log q_v = b_v - log sum exp b
    KL(p || q) = sum_v p_v (log p_v - log q_v)                     in nats, 0 for equal predictions

and with y the token that really came next

    nll_base = -log p_y       nll = -log q_y       Δp = q_y - p_y

These are the quantities of llama.cpp's `llama-perplexity --kl-divergence`, with two differences that make them more
exact: base logits are not rounded to 16 bits, and tokens with log p below -16 are not left out of the sum.

Both models run over the text one window at a time: at no time is more kept than the logits of one window of each model
and seven numbers per scored position. The scoring is cut into a few positions at a time (a vocabulary of 150,000 in
float64 is 1.2 MB a position) and shared among threads; no position's result depends on how it was cut.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from ov_weight_compression.evaluation.models import OnProgress, Runner
from ov_weight_compression.evaluation.samples import NO_TOKEN, Batch
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.types import Array, Float32

_BLOCK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class Scores:
    """One entry per scored position, in the order of the text."""

    kl: npt.NDArray[np.float64]
    """KL(base || compressed), nats."""
    nll_base: npt.NDArray[np.float64]
    """-log p of the token that came next; NaN where there is none (the last position of a window)."""
    nll: npt.NDArray[np.float64]
    """-log q of the token that came next; NaN where there is none."""
    top_base: npt.NDArray[np.int64]
    """The token that the base model finds likeliest; the first of equals."""
    top: npt.NDArray[np.int64]
    """The token that the compressed model finds likeliest."""
    top_base_p: npt.NDArray[np.float64]
    """The base model's probability of its own likeliest token."""
    top_p: npt.NDArray[np.float64]
    """The compressed model's probability of its own likeliest token."""

    @staticmethod
    def concatenate(parts: Sequence[Scores]) -> Scores:
        """All positions of several pieces."""
        columns = ([getattr(part, field.name) for part in parts] for field in fields(Scores))
        return Scores(*(np.concatenate(column) for column in columns))


def score(
    base: Float32, compressed: Float32, following: npt.NDArray[np.int64], elements: int = _BLOCK_ELEMENTS
) -> Scores:
    """Score every position of a piece of text.

    Args:
        base: logits of the base model, `[positions, vocabulary]` float32.
        compressed: logits of the compressed model, of the same shape.
        following: the token that came next at each position, `[positions]`, -1 where none did.
        elements: logits that one thread takes at a time.
    """
    positions, vocabulary = base.shape
    step = max(1, elements // vocabulary)
    pieces = [slice(start, start + step) for start in range(0, positions, step)]
    parts = _workers().map(lambda piece: _score_rows(base[piece], compressed[piece], following[piece]), pieces)
    return Scores.concatenate(list(parts))


@functools.cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="divergence")


def _score_rows(base: Float32, compressed: Float32, following: npt.NDArray[np.int64]) -> Scores:
    rows = np.arange(len(base))
    top_base, top = base.argmax(axis=1), compressed.argmax(axis=1)
    log_p, log_q = _log_softmax(base, top_base), _log_softmax(compressed, top)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # -inf logits on both sides: inf - inf, put right below
        terms = p * (log_p - log_q)
    if not np.isfinite(terms).all():
        terms[p == 0] = 0  # what the base model holds impossible adds nothing, as x log x goes to 0
    known = following != NO_TOKEN
    right = np.where(known, following, 0)
    return Scores(
        kl=terms.sum(axis=1),
        nll_base=np.where(known, -log_p[rows, right], np.nan),
        nll=np.where(known, -log_q[rows, right], np.nan),
        top_base=top_base,
        top=top,
        top_base_p=p[rows, top_base],
        top_p=np.exp(log_q[rows, top]),
    )


def _log_softmax(logits: Float32, top: npt.NDArray[np.int64]) -> Array:
    shifted = logits.astype(np.float64)
    shifted -= shifted[np.arange(len(top)), top][:, None]
    shifted -= np.log(np.exp(shifted).sum(axis=1))[:, None]
    return shifted


@dataclass(frozen=True)
class Scored:
    """A batch of windows, its inputs forgotten but for the tokens, and its scores."""

    batch: Batch
    scores: Scores


LogitsOf = Callable[[Batch], Float32]
"""Logits `[scored positions, vocabulary]` of the next batch."""


def run_language(
    base: LogitsOf, compressed: Runner, batches: Iterable[Batch], total: int | None, progress: OnProgress
) -> list[Scored]:
    """Score every batch.

    Raises:
        ModelError: the two models have different vocabularies.
        OptionError: a token id is beyond the vocabulary.
        WorkError: a model cannot be run, or gives NaN.
    """
    done: list[Scored] = []
    for number, batch in enumerate(batches):
        progress("windows", number, total)
        if batch.chosen.any():
            done.append(_score(base, compressed, batch, number))
    progress("windows", len(done), len(done))
    return done


def _score(base: LogitsOf, compressed: Runner, batch: Batch, number: int) -> Scored:
    ours, theirs = base(batch), logits_of(compressed, batch)
    if ours.shape != theirs.shape:
        raise ModelError(f"the models have different vocabularies: base {ours.shape[1]}, compressed {theirs.shape[1]}")
    if int(batch.tokens.max()) >= ours.shape[1]:
        raise OptionError(
            f"data: token id {int(batch.tokens.max())} in window {number} is beyond the vocabulary of "
            f"{ours.shape[1]}: these tokens are of another tokenizer"
        )
    scores = score(ours, theirs, batch.following)
    if np.isnan(scores.kl).any():
        culprit = "the base model" if np.isnan(ours).any() else compressed.what
        raise WorkError(f"{culprit} gives NaN as logits in window {number}: nothing can be compared")
    return Scored(Batch({}, batch.tokens, batch.chosen, batch.following), scores)


def logits_of(runner: Runner, batch: Batch) -> Float32:
    """A model's logits `[scored positions, vocabulary]`.

    Raises:
        ModelError: it does not predict at every position.
        WorkError: it cannot be run.
    """
    if runner.port is None:
        raise WorkError(f"{runner.what} has no output of logits")
    outputs = runner.run(runner.inputs.complete(batch.inputs))
    logits: Float32 = np.asarray(outputs[runner.port.index], dtype=np.float32)
    if logits.shape[:2] != batch.tokens.shape:
        raise ModelError(
            f"{runner.what} gives logits {list(logits.shape)} for tokens {list(batch.tokens.shape)}: "
            "it does not predict at every position"
        )
    # A view where whole windows are scored.
    return logits.reshape(-1, logits.shape[-1]) if batch.chosen.all() else logits[batch.chosen]
