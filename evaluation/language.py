"""Running two language models over text and scoring them, one window at a time.

At no time is more kept than the logits of one window of each model and seven numbers per scored position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ov_weight_compression.evaluation.base_logits import BaseLogitsReader, BaseLogitsWriter, Header
from ov_weight_compression.evaluation.divergence import Scores, score
from ov_weight_compression.evaluation.models import Runner
from ov_weight_compression.evaluation.windows import Piece
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.types import Float32

__all__ = ["BaseSource", "KeptBase", "LiveBase", "Scored", "run_language"]

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many of it are done, and how many there are (None: not known)."""


@dataclass(frozen=True)
class Scored:
    """A piece of text, its inputs forgotten but for the tokens, and its scores."""

    piece: Piece
    scores: Scores


class BaseSource(Protocol):
    """Where the base model's logits come from."""

    def logits(self, piece: Piece) -> Float32:
        """`[scored positions, vocabulary]` of the next piece."""

    def close(self) -> None:
        """Everything went well, nothing more is wanted."""

    def abort(self) -> None:
        """Something failed."""


class LiveBase:
    """The base model itself, optionally keeping what it says in a file."""

    def __init__(self, runner: Runner, save: Path | None = None, header: Callable[[int], Header] | None = None) -> None:
        self._runner, self._save, self._header = runner, save, header
        self._writer: BaseLogitsWriter | None = None

    def logits(self, piece: Piece) -> Float32:
        """Run the model."""
        found = _logits(self._runner, piece)
        if self._save is not None and self._header is not None:
            if self._writer is None:
                self._writer = BaseLogitsWriter(self._save, self._header(found.shape[1]))
                self._writer.open()
            self._writer.append(found)
        return found

    def close(self) -> None:
        """Move the kept file into place."""
        if self._writer is not None:
            self._writer.commit()

    def abort(self) -> None:
        """Remove what was written of the kept file."""
        if self._writer is not None:
            self._writer.discard()


class KeptBase:
    """Logits kept in a file by an earlier run."""

    def __init__(self, reader: BaseLogitsReader) -> None:
        self._reader = reader

    def logits(self, piece: Piece) -> Float32:
        """Read them."""
        return self._reader.next(int(piece.chosen.sum()))

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    abort = close


def run_language(
    base: BaseSource, compressed: Runner, pieces: Iterable[Piece], total: int | None, progress: Progress
) -> list[Scored]:
    """Score every piece.

    Raises:
        ModelError: the two models have different vocabularies.
        OptionError: a token id is beyond the vocabulary.
        WorkError: a model cannot be run, or gives NaN.
    """
    done: list[Scored] = []
    try:
        for number, piece in enumerate(pieces):
            progress("windows", number, total)
            if piece.chosen.any():
                done.append(_score_piece(base, compressed, piece, number))
    except BaseException:
        base.abort()
        raise
    base.close()
    progress("windows", len(done), len(done))
    return done


def _score_piece(base: BaseSource, compressed: Runner, piece: Piece, number: int) -> Scored:
    ours, theirs = base.logits(piece), _logits(compressed, piece)
    if ours.shape != theirs.shape:
        raise ModelError(f"the models have different vocabularies: base {ours.shape[1]}, compressed {theirs.shape[1]}")
    if int(piece.tokens.max()) >= ours.shape[1]:
        raise OptionError(
            f"data: token id {int(piece.tokens.max())} in window {number} is beyond the vocabulary of "
            f"{ours.shape[1]}: these tokens are of another tokenizer"
        )
    scores = score(ours, theirs, piece.following)
    if np.isnan(scores.kl).any():
        culprit = "the base model" if np.isnan(ours).any() else compressed.what
        raise WorkError(f"{culprit} gives NaN as logits in window {number}: nothing can be compared")
    return Scored(Piece({}, piece.tokens, piece.chosen, piece.following), scores)


def _logits(runner: Runner, piece: Piece) -> Float32:
    logits = runner.logits(runner.feeder.complete(piece.inputs))
    if logits.shape[:2] != piece.tokens.shape:
        raise ModelError(
            f"{runner.what} gives logits {list(logits.shape)} for tokens {list(piece.tokens.shape)}: "
            "it does not predict at every position"
        )
    return piece.select(logits)
