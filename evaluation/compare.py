"""Comparing a compressed model with the one it was made from: the stages, one after another.

load both ── choose the arithmetic ── read or make up the data
  ├── language model: windows of text through both, predictions compared   (predictions, figures)
  └── any other:      the same inputs through both, outputs compared       (outputs)
every compressed weight beside its original, and the outputs of the layers
that hold them, on a few samples                                           (layers)
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike

import openvino as ov

from ov_weight_compression.calibration.tokenizer import find_tokenizer, tokenizer_files
from ov_weight_compression.evaluation.comparison import Comparison, ModelFigures
from ov_weight_compression.evaluation.figures import (
    LanguageFigures,
    Passage,
    Surprise,
    summarise,
    with_text,
    worst_passages,
    worst_positions,
)
from ov_weight_compression.evaluation.layers import compare_layers
from ov_weight_compression.evaluation.logits_file import base_logits
from ov_weight_compression.evaluation.models import OnProgress, Pair, Runner, choose, open_pair
from ov_weight_compression.evaluation.outputs import compare_outputs
from ov_weight_compression.evaluation.predictions import (
    Scores,
    run_language,
)
from ov_weight_compression.evaluation.samples import (
    CompareData,
    CompareRequest,
    ComparisonProtocol,
    InputSets,
    batches_of,
    prepare,
)
from ov_weight_compression.ir_utils.errors import CompressionError, OptionError
from ov_weight_compression.patterns import Roles
from ov_weight_compression.patterns.graphs import constants_bytes

_WORST_POSITIONS = 10
_WORST_PASSAGES = 3


def compare(
    base: ov.Model | str | PathLike[str],
    compressed: ov.Model | str | PathLike[str],
    data: CompareData = None,
    *,
    window: int | None = None,
    windows: int | None = None,
    tokenizer: str | PathLike[str] | None = None,
    device: str = "CPU",
    as_deployed: bool = False,
    layers: bool = True,
    protocol: ComparisonProtocol | None = None,
    roles: Roles | None = None,
    progress: OnProgress | None = None,
) -> Comparison:
    """Say what compression cost.

    Both models are run on the same data and their outputs compared; of language models the predictions (see
    `predictions` and `figures` for every definition), of others the outputs themselves (see `outputs`). Each compressed
    weight is compared with its original (see `layers`). The same call gives the same figures every time.

    Args:
        base: the original: an `ov.Model`, a file, or the folder of an exporter.
        compressed: the model made from it, likewise. Neither is changed.
        data: what to run (see `samples`): token ids, whole numbers `[n]` (a stream) or `[windows, n]`; a text file;
            inputs by name, one mapping for each run; or None: a language model writes the text itself, others get
            inputs made up from their shapes.
        window: tokens to a window of a stream; 256, or fewer where the model's config.json says it takes no more.
        windows: at most so many windows, the first ones; of other models, how many inputs to make up.
        tokenizer: a folder or file of a tokenizer, if not beside one of the models.
        device: where to run.
        as_deployed: with the device's own precision and quantised activations, instead of f32.
        layers: whether to compare weights and layers.
        protocol: what else may be said of windows, batches, made-up inputs and kept logits.
        roles: what operations of your own make of their weights, as `WeightCompression` takes it.
        progress: called with (stage, done, total or None).

    Returns:
        The figures, to be printed, or saved as JSON or a page: of a language model KL(base ‖ compressed) in nats and
            the agreement of the likeliest tokens over all scored positions, and perplexities where there are next
            tokens; of other models each output's error as relative L2, cosine and SNR in dB; of each weight its error
            and that of its layer's output, as SNR in dB.

    Raises:
        OptionError: an option or the data cannot be.
        ModelError: a model cannot be read, or the two do not belong together.
        WorkError: a failure while running.
        MissingExtraError: a tokenizer needs a package that is not installed.
    """
    progress = progress or (lambda *_: None)
    protocol = ComparisonProtocol() if protocol is None else protocol
    request = CompareRequest(window, windows, tokenizer, device, as_deployed, layers, protocol, roles)
    with ExitStack() as stack:
        pair = open_pair(base, compressed, choose(request.device, request.as_deployed), stack)
        samples = prepare(pair, data, request)
        text = _compare_text(pair, samples, request, progress) if samples.is_text else None
        outputs, count = ((), text.count) if text else compare_outputs(pair, samples.sets, progress)
        weights, formats = compare_layers(pair, samples.first, request, progress)
        ours, theirs = (
            ModelFigures(one.name, str(one.path) if one.path else None, constants_bytes(one.model))
            for one in (pair.base, pair.compressed)
        )
    return Comparison(
        base=ours,
        compressed=theirs,
        data=replace(samples.data, samples=count),
        arithmetic=pair.arithmetic,
        language=text.figures if text else None,
        outputs=outputs,
        formats=formats,
        layers=weights,
        worst_positions=text.positions if text else (),
        worst_passages=text.passages if text else (),
        notes=(*samples.notes, *(text.notes if text else ())),
    )


@dataclass(frozen=True)
class _TextFound:
    """What running text found."""

    figures: LanguageFigures
    positions: tuple[Surprise, ...]
    passages: tuple[Passage, ...]
    count: int
    notes: tuple[str, ...]


def _compare_text(pair: Pair, samples: InputSets, request: CompareRequest, progress: OnProgress) -> _TextFound:
    """Predictions of both models, over all windows."""
    compressed = Runner(pair.compressed, pair.arithmetic)
    cut, protocol = samples.windows, request.protocol
    context = cut.context if cut else protocol.context or 0
    batches = batches_of(samples.sets, samples.ids, context, protocol.score_last)
    total = len(cut.tokens) if cut else None
    with base_logits(pair, samples.windows, request.protocol) as base:
        scored = run_language(base, compressed, batches, total, progress)
    if not any((one.batch.following >= 0).any() for one in scored):
        raise OptionError("data: it has no token with a next one to predict")
    figures = summarise(Scores.concatenate([one.scores for one in scored]))
    positions, passages = worst_positions(scored, _WORST_POSITIONS), worst_passages(scored, _WORST_PASSAGES)
    notes = []
    places = pair.tokenizer_places(request.tokenizer)
    try:
        if tokenizer_files(places):
            positions, passages = with_text(positions, passages, find_tokenizer(places))
        else:
            notes.append("Tokens are shown as ids: there is no tokenizer beside the models.")
    except (CompressionError, ImportError) as error:
        notes.append(f"Tokens are shown as ids: {error}")
    return _TextFound(figures, tuple(positions), tuple(passages), len(scored), tuple(notes))
