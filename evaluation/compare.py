"""Comparing a compressed model with the one it was made from: the stages, one after another.

load both ── choose the arithmetic ── read or make up the data
  ├── language model: windows of text through both, predictions compared   (language, divergence, figures)
  └── any other:      the same inputs through both, outputs compared       (outputs)
every compressed weight beside its original                                (layers, values)
outputs of the layers that hold them, on a few samples                     (taps)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os import PathLike

import openvino as ov

from ov_weight_compression.evaluation.arithmetic import choose
from ov_weight_compression.evaluation.comparison import Comparison
from ov_weight_compression.evaluation.data import Source
from ov_weight_compression.evaluation.language import Progress
from ov_weight_compression.evaluation.options import Options
from ov_weight_compression.evaluation.outputs import OutputFigures
from ov_weight_compression.evaluation.pair import Pair, open_pair
from ov_weight_compression.evaluation.samples import prepare
from ov_weight_compression.evaluation.stages import (
    TextFound,
    compare_layers,
    compare_outputs,
    compare_text,
    model_figures,
)
from ov_weight_compression.evaluation.windows import Cut
from ov_weight_compression.ir_utils.kinds import flag, optional, path, word
from ov_weight_compression.ir_utils.kinds import shapes as kinds_of_shapes

__all__ = ["compare"]


def compare(
    base: ov.Model | str | PathLike[str],
    compressed: ov.Model | str | PathLike[str],
    data: Source = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    context: int | None = None,
    windows: int | None = None,
    score_last: bool = True,
    tokenizer: str | PathLike[str] | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    device: str = "CPU",
    as_deployed: bool = False,
    layers: bool = True,
    layer_samples: int = 2,
    save_base: str | PathLike[str] | None = None,
    base_logits: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Say what compression cost.

    Both models are run on the same data and their outputs compared; of language models the predictions (see
    `divergence` and `figures` for every definition), of others the outputs themselves (see `outputs`). Each compressed
    weight is compared with its original (see `layers`). The same call gives the same figures every time.

    Args:
        base: the original: an `ov.Model`, a file, or the folder of an exporter.
        compressed: the model made from it, likewise. Neither is changed.
        data: what to run (see `data`): token ids, a text file, inputs by name, or None for made-up inputs.
        window: tokens to a window of a stream; 256, or fewer where the model's config.json says it takes no more.
        stride: tokens from the start of one window to the next; `window`.
        context: leading positions of each window that are not scored; 0, or `window - stride` where windows overlap.
        windows: at most so many windows, the first ones; of other models, how many inputs to make up.
        score_last: whether the last position of a window, which has no next token, counts for KL and agreement.
        tokenizer: a folder or file of a tokenizer, if not beside one of the models.
        batch: how many rows of given inputs to run at once; all.
        shapes: shapes of made-up inputs, by name.
        device: where to run.
        as_deployed: with the device's own precision and quantised activations, instead of f32.
        layers: whether to compare weights and layers.
        layer_samples: on how many windows or sets of inputs the layers' outputs are compared; 0 for weights alone.
        save_base: keep the base model's logits in this file.
        base_logits: read them from this file, and do not run the base model on the text again.
        progress: called with (stage, done, total or None).

    Raises:
        OptionError: an option or the data cannot be.
        ModelError: a model cannot be read, or the two do not belong together.
        WorkError: a failure while running.
        MissingExtraError: a tokenizer needs a package that is not installed.
    """
    options = Options(
        cut=Cut(window, stride, context, windows, score_last),
        tokenizer=optional(path(), "tokenizer", tokenizer),
        batch=batch,
        shapes=optional(kinds_of_shapes(), "shapes", shapes) or {},
        layers=layers,
        layer_samples=layer_samples,
        save_base=optional(path(), "save_base", save_base),
        base_logits=optional(path(), "base_logits", base_logits),
    )
    arithmetic = choose(word().parse("device", device), flag().parse("as_deployed", as_deployed))
    with ExitStack() as stack:
        return _compare(open_pair(base, compressed, arithmetic, stack), data, options, progress or _silent)


def _silent(stage: str, done: int, total: int | None) -> None:
    pass


def _compare(pair: Pair, data: Source, options: Options, progress: Progress) -> Comparison:
    samples = prepare(pair, data, options)
    text: TextFound | None = None
    outputs: tuple[OutputFigures, ...] = ()
    if samples.is_text:
        text = compare_text(pair, samples, options, progress)
        count = text.count
    else:
        outputs, count = compare_outputs(pair, samples, progress)
    layers, formats = compare_layers(pair, samples, options, progress)
    return Comparison(
        base=model_figures(pair.base),
        compressed=model_figures(pair.compressed),
        data=samples.figures(count),
        arithmetic=pair.arithmetic,
        language=text.figures if text else None,
        outputs=outputs,
        formats=formats,
        layers=layers,
        worst_positions=text.positions if text else (),
        worst_passages=text.passages if text else (),
        notes=tuple(samples.notes),
    )
