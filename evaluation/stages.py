"""The three comparisons: of predictions, of outputs, of weights and layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from ov_weight_compression.evaluation.base_logits import BaseLogitsReader, Header, fingerprint
from ov_weight_compression.evaluation.comparison import ModelFigures
from ov_weight_compression.evaluation.divergence import Scores
from ov_weight_compression.evaluation.figures import LanguageFigures, summarise
from ov_weight_compression.evaluation.language import BaseSource, KeptBase, LiveBase, Progress, run_language
from ov_weight_compression.evaluation.layers import FormatFigures, LayerFigures, formats_of, pair_layers, weigh
from ov_weight_compression.evaluation.loading import Loaded
from ov_weight_compression.evaluation.options import Options
from ov_weight_compression.evaluation.outputs import OutputFigures, OutputTotals
from ov_weight_compression.evaluation.pair import Pair
from ov_weight_compression.evaluation.passages import Passage, Surprise, with_text, worst_passages, worst_positions
from ov_weight_compression.evaluation.pieces import of_inputs, of_windows
from ov_weight_compression.evaluation.running import Runner, find_logits, output_name
from ov_weight_compression.evaluation.samples import Samples
from ov_weight_compression.evaluation.taps import measure_outputs
from ov_weight_compression.evaluation.tokenizer import find_tokenizer
from ov_weight_compression.evaluation.windows import Windows
from ov_weight_compression.ir_utils.errors import CompressionError, ModelError, OptionError, WorkError
from ov_weight_compression.patterns.graphs import graphs_of

__all__ = ["TextFound", "compare_layers", "compare_outputs", "compare_text", "model_figures"]

_WORST_POSITIONS = 10
_WORST_PASSAGES = 3


@dataclass(frozen=True)
class TextFound:
    """What running text found."""

    figures: LanguageFigures
    positions: tuple[Surprise, ...]
    passages: tuple[Passage, ...]
    count: int


def compare_text(pair: Pair, samples: Samples, options: Options, progress: Progress) -> TextFound:
    """Predictions of both models, over all windows."""
    base = _base_source(pair, samples.windows, options)
    compressed = Runner.of(pair.compressed, "compressed", pair.arithmetic)
    total = None
    if samples.windows is not None:
        total = len(samples.windows.tokens)
        pieces = of_windows(samples.windows, samples.ids)
    else:
        pieces = of_inputs(samples, samples.ids, options.cut.context or 0, options.cut.score_last)
    scored = run_language(base, compressed, pieces, total, progress)
    if not any((piece.piece.following >= 0).any() for piece in scored):
        raise OptionError("data: it has no token with a next one to predict")
    figures = summarise(Scores.concatenate([piece.scores for piece in scored]))
    positions, passages = worst_positions(scored, _WORST_POSITIONS), worst_passages(scored, _WORST_PASSAGES)
    try:
        tokenizer = find_tokenizer(
            [options.tokenizer] if options.tokenizer else [pair.base.folder, pair.compressed.folder]
        )
        positions, passages = with_text(positions, passages, tokenizer)
    except (CompressionError, ImportError):
        pass  # the ids are shown instead
    return TextFound(figures, tuple(positions), tuple(passages), len(scored))


def _base_source(pair: Pair, windows: Windows | None, options: Options) -> BaseSource:
    if windows is None or not (options.save_base or options.base_logits):
        return LiveBase(Runner.of(pair.base, "base", pair.arithmetic))
    header = partial(_header, pair, windows, fingerprint(pair.base.model))
    if options.save_base:
        return LiveBase(Runner.of(pair.base, "base", pair.arithmetic), options.save_base, header)
    assert options.base_logits is not None
    reader = BaseLogitsReader(options.base_logits)
    port = find_logits(pair.compressed.model)
    reader.check(header((port.vocabulary if port else None) or reader.header.vocabulary))
    return KeptBase(reader)


def _header(pair: Pair, windows: Windows, mark: str, vocabulary: int) -> Header:
    return Header(
        model=pair.base.name,
        fingerprint=mark,
        tokens=windows.digest,
        windows=len(windows.tokens),
        window=windows.window,
        context=windows.context,
        score_last=windows.score_last,
        positions=sum(len(windows.following(tokens)) for tokens in windows.tokens),
        vocabulary=vocabulary,
        arithmetic=pair.arithmetic.describe(),
    )


def compare_outputs(pair: Pair, samples: Samples, progress: Progress) -> tuple[tuple[OutputFigures, ...], int]:
    """Outputs of both models, over all sets of inputs."""
    base, compressed = (
        Runner.of(one, role, pair.arithmetic) for one, role in ((pair.base, "base"), (pair.compressed, "compressed"))
    )
    names = [output_name(port, index) for index, port in enumerate(pair.base.model.outputs)]
    order = _same_outputs(pair, names)
    totals = [OutputTotals(name) for name in names]
    count = 0
    for inputs in samples:
        progress("samples", count, None)
        ours, theirs = base.run(base.feeder.complete(inputs)), compressed.run(compressed.feeder.complete(inputs))
        for index, total in enumerate(totals):
            a, b = ours[index], theirs[order[index]]
            if a.shape != b.shape:
                raise ModelError(f"output '{total.name}' is {list(a.shape)} of the base, {list(b.shape)} of the other")
            total.add(a, b, inputs.get("attention_mask"))
        count += 1
    if count == 0:
        raise OptionError("data: it is empty")
    progress("samples", count, count)
    broken = [total.name for total in totals if math.isnan(total.energy.noise)]
    if broken:
        raise WorkError(f"output '{broken[0]}' holds NaN: nothing can be compared")
    return tuple(total.figures() for total in totals), count


def _same_outputs(pair: Pair, names: list[str]) -> list[int]:
    """Where the compressed model has each output: by name, else by number."""
    theirs = pair.compressed.model.outputs
    if len(theirs) != len(names):
        raise ModelError(f"the models have different outputs: base {len(names)}, compressed {len(theirs)}")
    by_name = {name: index for index, port in enumerate(theirs) for name in port.get_names()}
    return [by_name.get(name, index) for index, name in enumerate(names)]


def compare_layers(
    pair: Pair, samples: Samples, options: Options, progress: Progress
) -> tuple[tuple[LayerFigures, ...], tuple[FormatFigures, ...]]:
    """Every compressed weight, and all constants by format."""
    pairs = pair_layers(pair.base.model, pair.compressed.model)
    figures, energies = [], []
    for number, one in enumerate(pairs):
        progress("weights", number, len(pairs))
        if options.layers:
            one = pairs[number] = one.with_factors()
        found, energy = weigh(one, options.layers)
        figures.append(found)
        energies.append(energy)
    progress("weights", len(pairs), len(pairs))
    formats = formats_of(pair.compressed.model, figures, energies, [one.weight for one in pairs])
    if samples.remembered:
        figures = measure_outputs(
            pair.base.model, pair.compressed.model, pairs, figures, samples.remembered, pair.arithmetic, progress
        )
    return tuple(figures), formats


def model_figures(loaded: Loaded) -> ModelFigures:
    """A model's name and the bytes of all its constants, those of the bodies in it included."""
    size = sum(int(node.get_byte_size()) for graph in graphs_of(loaded.model) for node, _ in graph.constants)
    return ModelFigures(loaded.name, str(loaded.path) if loaded.path else None, size)
