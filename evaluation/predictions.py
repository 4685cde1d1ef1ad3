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

From scored positions come figures, each with its uncertainty, as llama.cpp defines them, and the places in the text
where the two models differ most, to be looked at by a person. With n positions, mean(x) = sum x / n and the standard
error of a mean se(x) = sqrt((mean(x²) - mean(x)²) / (n - 1)):

    KL            mean(kl) ± se(kl); percentiles interpolate linearly between sorted values, as numpy.percentile does
    perplexity    exp(mean(nll)) ± exp(mean(nll)) se(nll)
    ln ratio      d = nll - nll_base:  mean(d) ± se(d). se(d)² = se(nll)² + se(nll_base)² - 2 cov(nll, nll_base)/n,
                  so the covariance of two models on one text is what makes the ratio far more certain than either
    ratio         exp(mean(d)) ± exp(mean(d)) se(d)
    same top      share s of positions with the same likeliest token ± sqrt(s (1 - s) / (n - 1))
    Δp            q_y - p_y, the change of the right token's probability: mean ± se, and the root of its mean square,
                  rms ± se(Δp²) / (2 rms)

The errors take positions for independent of each other, which neighbours in a text are not quite: they are a lower
bound. Everything about the right token leaves out the last position of a window, which has no next token.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ov_weight_compression.calibration.data_files import Tokenizer, find_tokenizer
from ov_weight_compression.evaluation.logits_file import kept_while_run, read_again
from ov_weight_compression.evaluation.models import OnProgress, Pair, Runner
from ov_weight_compression.evaluation.samples import (
    NO_TOKEN,
    Batch,
    CompareRequest,
    InputSets,
    LogitsOf,
    batches_of,
)
from ov_weight_compression.ir_utils.errors import CompressionError, ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.types import Float32

_BLOCK_ELEMENTS = 1 << 17
_POOL = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="divergence")  # its threads start with its work


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
    parts = _POOL.map(lambda piece: _score_rows(base[piece], compressed[piece], following[piece]), pieces)
    return Scores.concatenate(list(parts))


def _score_rows(base: Float32, compressed: Float32, following: npt.NDArray[np.int64]) -> Scores:
    rows = np.arange(len(base))
    top_base, top = base.argmax(axis=1), compressed.argmax(axis=1)
    log_p, log_q = base.astype(np.float64), compressed.astype(np.float64)
    for logits, largest in ((log_p, top_base), (log_q, top)):  # in place, to logarithms of probabilities
        logits -= logits[rows, largest][:, None]
        logits -= np.log(np.exp(logits).sum(axis=1))[:, None]
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


@dataclass(frozen=True)
class Scored:
    """A batch of windows, its inputs forgotten but for the tokens, and its scores."""

    batch: Batch
    scores: Scores


@dataclass(frozen=True)
class TextFound:
    """What running text found."""

    figures: LanguageFigures
    positions: list[Surprise]
    """Where the predictions differ most."""
    passages: list[Passage]
    count: int
    """Batches of windows that were scored."""
    note: str
    """Why tokens are shown as ids."""


def compare_text(pair: Pair, samples: InputSets, request: CompareRequest, progress: OnProgress) -> TextFound:
    """Score every prediction of both models, and say how far they are apart, and where.

    Raises:
        ModelError: the two models have different vocabularies.
        OptionError: a token id is beyond the vocabulary, or there is nothing to predict.
        WorkError: a model cannot be run, or gives NaN.
    """
    compressed, windows = Runner(pair.compressed, pair.arithmetic), samples.windows
    context, total = (windows.context, len(windows.tokens)) if windows else (request.context or 0, None)
    scored: list[Scored] = []
    with ExitStack() as stack:
        if windows and request.base_logits:
            base: LogitsOf = stack.enter_context(read_again(pair, windows, Path(request.base_logits)))
        else:
            base = partial(logits_of, Runner(pair.base, pair.arithmetic))
        if windows and request.save_base:
            base = stack.enter_context(kept_while_run(pair, windows, Path(request.save_base), base))
        for number, batch in enumerate(batches_of(samples.sets, samples.ids, context, request.score_last)):
            progress("windows", number, total)
            if not batch.chosen.any():
                continue
            ours, theirs = base(batch), logits_of(compressed, batch)
            size = ours.shape[1]
            if ours.shape != theirs.shape:
                raise ModelError(f"the models have different vocabularies: base {size}, compressed {theirs.shape[1]}")
            if int(batch.tokens.max()) >= size:
                raise OptionError(
                    f"data: token id {int(batch.tokens.max())} in window {number} is beyond the vocabulary of {size}: "
                    "these tokens are of another tokenizer"
                )
            scores = score(ours, theirs, batch.following)
            if np.isnan(scores.kl).any():
                culprit = "the base model" if np.isnan(ours).any() else compressed.what
                raise WorkError(f"{culprit} gives NaN as logits in window {number}: nothing can be compared")
            scored.append(Scored(replace(batch, inputs={}), scores))
    progress("windows", len(scored), len(scored))
    if not any((one.batch.following != NO_TOKEN).any() for one in scored):
        raise OptionError("data: it has no token with a next one to predict")
    figures = summarise(Scores.concatenate([one.scores for one in scored]))
    try:
        tokenizer = find_tokenizer(samples.places)
        note = "" if tokenizer else "Tokens are shown as ids: there is no tokenizer beside the models."
        positions, passages = worst_positions(scored, tokenizer), worst_passages(scored, tokenizer)
    except (CompressionError, ImportError) as error:
        note = f"Tokens are shown as ids: {error}"
        positions, passages = worst_positions(scored, None), worst_passages(scored, None)
    return TextFound(figures, positions, passages, len(scored), note)


def logits_of(runner: Runner, batch: Batch) -> Float32:
    """A model's logits `[scored positions, vocabulary]`.

    Raises:
        ModelError: it does not predict at every position.
        WorkError: it cannot be run.
    """
    assert runner.port is not None, "of models that have logits"
    logits: Float32 = np.asarray(runner.run(batch.inputs)[runner.port.index], dtype=np.float32)
    if logits.shape[:2] != batch.tokens.shape:
        raise ModelError(
            f"{runner.what} gives logits {list(logits.shape)} for tokens {list(batch.tokens.shape)}: "
            "it does not predict at every position"
        )
    # A view where whole windows are scored.
    return logits.reshape(-1, logits.shape[-1]) if batch.chosen.all() else logits[batch.chosen]


_Values = npt.NDArray[np.float64]
_PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Divergence:
    """KL(base || compressed) in nats over all scored positions."""

    mean: Estimate
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    maximum: float
    minimum: float


@dataclass(frozen=True)
class KlHistogram:
    """Counts of positions by KL: `edges` (rising, logarithmic, one more than counts) in nats, and what lies below."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    below: int
    """Positions with a KL under the first edge, equal predictions included."""


@dataclass(frozen=True)
class LanguageFigures:
    """What a compressed language model's predictions lost, beside the base model's."""

    positions: int
    """Positions scored for `kl` and `same_top`."""
    predicted: int
    """Of those, the ones with a next token: what everything else is about."""
    kl: Divergence
    same_top: Estimate
    """Share of positions where both models find the same token likeliest, 0..1."""
    perplexity_base: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    """Compressed over base: 1 is no loss."""
    log_perplexity_ratio: Estimate
    correlation: float
    """Of the two models' log-probabilities of the right token; NaN where one of them does not vary."""
    delta_p_mean: Estimate
    """Mean change of the probability of the right token: below 0 the compressed model is less sure of it."""
    delta_p_rms: Estimate
    """Root mean square of that change, 0..1."""
    histogram: KlHistogram


def mean_of(values: _Values) -> Estimate:
    """The mean and its standard error; an error of 0 for a single value."""
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), error)


def summarise(scores: Scores) -> LanguageFigures:
    """All figures of a run. At least one position must have a next token."""
    predicted = ~np.isnan(scores.nll)
    nll_base, nll = scores.nll_base[predicted], scores.nll[predicted]
    delta_p = np.exp(-nll) - np.exp(-nll_base)
    with np.errstate(invalid="ignore", divide="ignore"):  # two infinite losses differ by NaN: said so, not hidden
        log_ratio = mean_of(nll - nll_base)
        correlation = float(np.corrcoef(nll, nll_base)[0, 1]) if len(nll) > 1 else math.nan
    n, share = len(scores.kl), float((scores.top == scores.top_base).mean())
    p50, p90, p95, p99, p999 = (float(value) for value in np.percentile(scores.kl, _PERCENTILES))
    largest, smallest = float(scores.kl.max()), float(scores.kl.min())
    square = mean_of(delta_p**2)
    rms = math.sqrt(square.value)
    logs = (mean_of(nll_base), mean_of(nll), log_ratio)
    values = [float(np.exp(log.value)) for log in logs]
    perplexities = [Estimate(value, value * log.error) for value, log in zip(values, logs, strict=True)]
    return LanguageFigures(
        positions=n,
        predicted=int(predicted.sum()),
        kl=Divergence(mean_of(scores.kl), p50, p90, p95, p99, p999, largest, smallest),
        same_top=Estimate(share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0),
        perplexity_base=perplexities[0],
        perplexity=perplexities[1],
        perplexity_ratio=perplexities[2],
        log_perplexity_ratio=log_ratio,
        correlation=correlation,
        delta_p_mean=mean_of(delta_p),
        delta_p_rms=Estimate(rms, square.error / (2 * rms) if rms else 0.0),
        histogram=_histogram(scores.kl),
    )


def _histogram(kl: _Values) -> KlHistogram:
    """Four bins to the decade, from a millionth of the largest value or 1e-8, whichever is more."""
    seen = kl[np.isfinite(kl) & (kl > 0)]
    if not len(seen):
        return KlHistogram((), (), len(kl))
    top = math.ceil(math.log10(float(seen.max())) * 4 + 1e-9)
    bottom = max(math.floor(math.log10(float(np.percentile(seen, 1))) * 4), top - 40, -32)
    edges = 10.0 ** (np.arange(min(bottom, top - 1), top + 1) / 4)
    edges[-1] = max(edges[-1], float(seen.max()))
    counts, _ = np.histogram(seen, edges)
    return KlHistogram(tuple(map(float, edges)), tuple(map(int, counts)), int((kl < edges[0]).sum()))


_POSITIONS, _PASSAGES = 10, 3
"""That are shown."""
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


def worst_positions(scored: Sequence[Scored], tokenizer: Tokenizer | None) -> list[Surprise]:
    """The positions with the largest divergence, no two within 8 tokens of each other."""
    divergences = np.concatenate([one.scores.kl for one in scored])
    sizes = [len(one.scores.kl) for one in scored]
    owners, starts = np.repeat(np.arange(len(scored)), sizes), np.cumsum([0, *sizes])
    found: list[Surprise] = []
    taken: list[tuple[int, int]] = []
    for place in np.argsort(-divergences, kind="stable")[: 50 * _POSITIONS]:
        window = int(owners[place])
        index = int(place - starts[window])
        if any(window == other and abs(index - near) < _APART for other, near in taken):
            continue
        taken.append((window, index))
        batch, scores = scored[window].batch, scored[window].scores
        row, position = (int(axis[index]) for axis in np.nonzero(batch.chosen))
        following = int(batch.following[index])
        known = following != NO_TOKEN
        before = tuple(map(int, batch.tokens[row, max(0, position + 1 - _BEFORE) : position + 1]))
        top_base, top = int(scores.top_base[index]), int(scores.top[index])
        text = None
        if tokenizer is not None:
            # A token where it stands: alone, some tokenizers would drop the space in front of it.
            right, base, own = (
                "" if token == NO_TOKEN else tokenizer.pieces([before[-1], token])[-1] or tokenizer.decode([token])
                for token in (following, top_base, top)
            )
            text = (tokenizer.decode(before), right, base, own)
        found.append(
            Surprise(
                window=window,
                position=position,
                kl=float(scores.kl[index]),
                before=before,
                right=following if known else None,
                right_base_p=float(np.exp(-scores.nll_base[index])) if known else None,
                right_p=float(np.exp(-scores.nll[index])) if known else None,
                top_base=top_base,
                top_base_p=float(scores.top_base_p[index]),
                top=top,
                top_p=float(scores.top_p[index]),
                text=text,
            )
        )
        if len(found) == _POSITIONS:
            break
    return found


def worst_passages(scored: Sequence[Scored], tokenizer: Tokenizer | None) -> list[Passage]:
    """The windows with the largest mean divergence (of several sequences run at once, the first)."""
    means = np.array([one.scores.kl.mean() for one in scored])
    found = []
    for window in np.argsort(-means, kind="stable")[:_PASSAGES]:
        one = scored[window]
        tokens, chosen = one.batch.tokens[0], np.flatnonzero(one.batch.chosen[0])
        shown: list[float | None] = [None] * len(tokens)
        for position, kl in zip(chosen, one.scores.kl, strict=False):
            if position + 1 < len(tokens):
                shown[position + 1] = float(kl)
        text = None if tokenizer is None else tuple(tokenizer.pieces(tokens.tolist()))
        found.append(Passage(int(window), float(means[window]), tuple(tokens.tolist()), tuple(shown), text))
    return found
