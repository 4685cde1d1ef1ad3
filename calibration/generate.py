"""Data for those who have none: token ids drawn at random, or written by the model itself.

Random ids already show which input channels are large, which is all that a weighted scale search asks. What a model
writes at temperature 1, from a random first token, is distributed as it believes text to be: it serves every algorithm.
Both depend on the seed alone (written text also on the last bits of the model's arithmetic).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.language_model import LanguageModel
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.progress import progress_bar

__all__ = ["random_tokens", "written_tokens"]

_BLOCK = 256
_HUGE = 1e30


def random_tokens(vocabulary: int, windows: int, length: int, seed: int) -> NDArray[np.int64]:
    """Uniformly drawn token ids, `[windows, length]`."""
    return np.random.default_rng(seed).integers(0, vocabulary, (windows, length), dtype=np.int64)


def written_tokens(
    model: ov.Model, language: LanguageModel, windows: int, length: int, seed: int, *, quiet: bool = False
) -> NDArray[np.int64]:
    """Text that the model writes, `[windows, length]`, all windows side by side in one batch.

    The whole model is compiled for this, and its KV cache holds `windows · length` tokens.
    """
    if not language.predicts:
        raise OptionError("dataset='self': the model does not write text (no cache and no output over a vocabulary)")
    rng = np.random.default_rng(seed)
    size = language.batch or windows
    parts = []
    with progress_bar(quiet=quiet) as bar:
        advance = bar.start("Writing calibration text", -(-windows // size) * length)
        writer = _Writer(model, language)
        for _ in range(-(-windows // size)):
            tokens = rng.integers(0, language.vocabulary, (size, 1), dtype=np.int64)
            writer.start()
            while tokens.shape[1] < length:
                following = _draw(writer.next_logits(tokens)[:, : language.vocabulary], rng)
                tokens = np.concatenate([tokens, following[:, None]], axis=1)
                advance(1)
            parts.append(tokens)
    return np.concatenate(parts)[:windows]


class _Writer:
    """A compiled model with what it has read so far."""

    def __init__(self, model: ov.Model, language: LanguageModel) -> None:
        self._language = language
        self._stateful = bool(model.get_variables())
        self._request = ov.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
        self._names = {str(node.get_friendly_name()): port for port, node in enumerate(model.get_parameters())}
        self._logits = next(
            port
            for port, result in enumerate(model.get_results())
            if len(shape := result.get_input_partial_shape(0)) == 3
            and shape[2].is_static
            and 2 * shape[2].get_length() > language.vocabulary
        )

    def start(self) -> None:
        if self._stateful:
            self._request.reset_state()

    def next_logits(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        """Logits after the last token, `[batch, vocabulary]`. A model without variables reads everything again."""
        length = tokens.shape[1]
        ids, past = (tokens[:, -1:], length - 1) if self._stateful else (tokens, 0)
        inputs = self._language.inputs(ids, past=past)
        self._request.infer({self._names[name]: array for name, array in inputs.items()})
        return np.array(self._request.get_output_tensor(self._logits).data[:, -1], np.float32)


def _draw(logits: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
    """One token id for each row, with the probability that softmax gives it: first a block of ids, then one in it."""
    rows, ids = logits.shape
    logits = np.nan_to_num(logits, nan=0.0, posinf=_HUGE, neginf=-_HUGE)  # a model that overflows writes at random
    shares = np.zeros((rows, -(-ids // _BLOCK) * _BLOCK), np.float32)
    np.exp(logits - logits.max(1, keepdims=True), out=shares[:, :ids])
    blocks = shares.reshape(rows, -1, _BLOCK)
    sums = blocks.sum(2, dtype=np.float64)
    upto = sums.cumsum(1)
    drawn = rng.random(rows) * upto[:, -1]
    every = np.arange(rows)
    block = np.minimum((upto <= drawn[:, None]).sum(1), upto.shape[1] - 1)
    rest = drawn - (upto[every, block] - sums[every, block])
    within = (blocks[every, block].cumsum(1, dtype=np.float64) <= rest[:, None]).sum(1)
    picked: NDArray[np.int64] = np.minimum(block * _BLOCK + np.minimum(within, _BLOCK - 1), ids - 1).astype(np.int64)
    return picked
