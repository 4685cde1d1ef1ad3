"""Comparing a compressed model with the one it was made from: the stages, one after another, and what they found.

load both ── choose the arithmetic ── read or make up the data
  ├── language model: windows of text through both, predictions compared   (predictions)
  └── any other:      the same inputs through both, outputs compared       (outputs)
every compressed weight beside its original, and the outputs of the layers
that hold them, on a few samples                                           (layers)

What was found is data: frozen, printed as tables, saved as JSON or as a page (see `comparison_page`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import openvino as ov

from ov_weight_compression.calibration import filled_copy
from ov_weight_compression.evaluation.layers import FormatFigures, LayerFigures, compare_layers
from ov_weight_compression.evaluation.models import Arithmetic, Loaded, OnProgress, Pair, arithmetic_for, load
from ov_weight_compression.evaluation.outputs import OutputFigures, compare_outputs
from ov_weight_compression.evaluation.predictions import Estimate, LanguageFigures, Passage, Surprise, compare_text
from ov_weight_compression.evaluation.samples import (
    CompareData,
    CompareRequest,
    ComparisonProtocol,
    DataFigures,
    prepare,
)
from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.printing import (
    as_text,
    db,
    format_name,
    human_bytes,
    layer_name,
    percent,
    plain,
    result_console,
    short_format,
    short_name,
    terminal_table,
    thousands,
    with_error,
)
from ov_weight_compression.ir_utils.publish import write_text
from ov_weight_compression.patterns import GivenSources, Roles, find_weights, sources_of
from ov_weight_compression.patterns.graphs import constants_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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
    sources: GivenSources | None = None,
    progress: OnProgress | None = None,
) -> Comparison:
    """Say what compression cost.

    Both models are run on the same data and their outputs compared; of language models the predictions (see
    `predictions` for every definition), of others the outputs themselves (see `outputs`). Each compressed weight is
    compared with its original (see `layers`). The same call gives the same figures every time.

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
        sources: where the values of the original's weights come from if not from its constants, likewise; they are
            read into memory.
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
    if not isinstance(protocol, ComparisonProtocol):
        raise OptionError(f"protocol: must be a ComparisonProtocol, got {shown(protocol)}")
    request = CompareRequest(
        **vars(protocol),
        window=window,
        windows=windows,
        tokenizer=tokenizer,
        device=device,
        as_deployed=as_deployed,
        layers=layers,
        roles=roles,
        sources=sources,
    )
    if request.tokenizer and not Path(request.tokenizer).exists():
        raise OptionError(f"tokenizer={str(request.tokenizer)!r}: there is no such file or folder")
    with ExitStack() as stack:
        arithmetic = arithmetic_for(request.device, request.as_deployed)
        pair = Pair(load(base, "base", stack), load(compressed, "compressed", stack), arithmetic)
        if request.sources is not None:
            pair = replace(pair, base=_filled(pair.base, request.sources, request.roles))
        names = [", ".join(sorted(one.inputs.names)) for one in (pair.base, pair.compressed)]
        if names[0] != names[1]:
            raise ModelError(f"the models take different inputs: base {names[0]}; compressed {names[1]}")
        samples = prepare(pair, data, request)
        text = compare_text(pair, samples, request, progress) if samples.is_text else None
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
        worst_positions=tuple(text.positions) if text else (),
        worst_passages=tuple(text.passages) if text else (),
        notes=(*samples.notes, *((text.note,) if text and text.note else ())),
    )


def _filled(base: Loaded, given: GivenSources, roles: Roles | None) -> Loaded:
    """The original with the values of its weights' sources in place of constants that only keep their places."""
    weights, _ = find_weights(base.model, roles=roles)
    sources = sources_of(weights, given)
    inside = next((one for one in weights if one.body and one.name in sources.given), None)
    if inside is not None:
        raise OptionError(
            f"sources: {shown(inside.name)} lies inside {shown(inside.body)}, where it cannot be replaced"
        )
    return replace(base, model=filled_copy(base.model, weights, sources))


@dataclass(frozen=True)
class ModelFigures:
    """One of the two models."""

    name: str
    path: str | None
    bytes: int
    """Of all constants."""


@dataclass(frozen=True)
class Comparison:
    """A compressed model beside the model it was made from.

    Figures that are infinite (the SNR of a weight that did not change) are the strings "inf" and "-inf" in JSON, those
    that are not defined are null.
    """

    base: ModelFigures
    compressed: ModelFigures
    data: DataFigures
    arithmetic: Arithmetic
    language: LanguageFigures | None
    """Of language models; None for others."""
    outputs: tuple[OutputFigures, ...]
    """Of models that are no language models, one for each output."""
    formats: tuple[FormatFigures, ...]
    layers: tuple[LayerFigures, ...]
    """Every compressed weight, in graph order."""
    worst_positions: tuple[Surprise, ...] = ()
    worst_passages: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()

    def worst_layers(self, count: int = 10) -> list[LayerFigures]:
        """The layers that lose most: by their own output's SNR where it was measured, else by the weight's."""
        known = [layer for layer in self.layers if _loss(layer) is not None]
        return sorted(known, key=lambda layer: _loss(layer) or 0.0)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        plain: dict[str, Any] = _plain_json(asdict(self))
        plain["worst_layers"] = [layer.name for layer in self.worst_layers()]
        for name in ("properties", "defaults"):
            plain["arithmetic"][name] = dict(getattr(self.arithmetic, name))
        plain["arithmetic"]["description"] = self.arithmetic.describe()
        return plain

    def save_json(self, path: str | PathLike[str]) -> None:
        """Write `to_dict` as JSON."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def to_html(self) -> str:
        """A page that needs nothing beside it."""
        from ov_weight_compression.evaluation.comparison_page import render_page

        return render_page(self)

    def save_html(self, path: str | PathLike[str]) -> None:
        """Write `to_html`."""
        write_text(Path(path), self.to_html())

    def print(self) -> None:
        """Print tables to the terminal."""
        _print(self, result_console())

    def __str__(self) -> str:
        return as_text(lambda console: _print(self, console), 110)

    def _repr_html_(self) -> str:
        from ov_weight_compression.evaluation.comparison_page import render_fragment

        return render_fragment(self)


def _loss(layer: LayerFigures) -> float | None:
    return layer.own_snr_db if layer.own_snr_db is not None else layer.weight_snr_db


def _plain_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def language_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """The figures of a language model, with names."""
    found = comparison.language
    if found is None:
        return []
    kl = found.kl
    return [
        ("mean KL divergence", f"{_with_error(kl.mean)} nats"),
        ("median", plain(kl.median)),
        ("99 %", plain(kl.p99)),
        ("99.9 %", plain(kl.p999)),
        ("maximum", plain(kl.maximum)),
        ("same likeliest token", _with_error(found.same_top, 100, " %")),
        ("perplexity of the base model", _with_error(found.perplexity_base)),
        ("perplexity of the compressed model", _with_error(found.perplexity)),
        ("perplexity ratio", _with_error(found.perplexity_ratio)),
        ("ln of the ratio", _with_error(found.log_perplexity_ratio)),
        ("correlation of the log-probabilities", plain(found.correlation)),
        ("RMS Δp of the right token", _with_error(found.delta_p_rms, 100, " %")),
        ("mean Δp of the right token", _with_error(found.delta_p_mean, 100, " %")),
        ("positions", f"{thousands(found.positions)}, {thousands(found.predicted)} of them with a next token"),
    ]


def _with_error(estimate: Estimate, scale: float = 1.0, unit: str = "") -> str:
    return with_error(estimate.value * scale, estimate.error * scale, unit)


def _print(comparison: Comparison, console: Console) -> None:
    """Print everything."""
    base, compressed = comparison.base, comparison.compressed
    console.print(
        f"{base.name} ({human_bytes(base.bytes)}) → {compressed.name} ({human_bytes(compressed.bytes)})",
        style="bold",
        highlight=False,
    )
    console.print(comparison.arithmetic.describe(), highlight=False, soft_wrap=True)
    console.print(f"data: {comparison.data.told}", highlight=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
    for table in _tables(comparison):
        console.print(table)


def _tables(comparison: Comparison) -> Iterator[Table]:
    """All that there is to show."""
    if comparison.language is not None:
        yield _named("Predictions", ("figure", "value"), language_rows(comparison))
    if comparison.outputs:
        cosines = ("cos mean", "min", "1 %")
        yield _named(
            "Outputs",
            ("output", "rows", *cosines, "rel. L2", "SNR dB", "10-NN"),
            output_rows(comparison),
        )
    if comparison.formats:
        head = ("format", "weights", "elements", "bytes", "bits", "SNR dB", "lowest")
        yield _named("Formats", head, format_rows(comparison))
    worst = comparison.worst_layers()
    if worst:
        of = f"{len(worst)} of {len(comparison.layers)}"
        title = f"Layers that lose most ({of}), SNR of weight, own output and output in dB"
        yield _named(title, ("layer", "format", "weight", "own", "output"), map(_layer_row, worst))


def _named(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose first column is names, and the others numbers."""
    return terminal_table(title, {head[0]: "text", **dict.fromkeys(head[1:], "number")}, rows)


def _layer_row(one: LayerFigures) -> tuple[str, ...]:
    name, format = short_name(layer_name(one.layer, one.name), 56), short_format(one.mode, one.group_size)
    return (name, format, db(one.weight_snr_db), db(one.own_snr_db), db(one.output_snr_db))


def output_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Of each output its name, rows, cosines (mean, minimum, 1 %), relative L2, SNR in dB and share of neighbours."""
    return [
        (
            one.name,
            thousands(one.rows),
            *(plain(value, 6) for value in (one.cosine_mean, one.cosine_min, one.cosine_p1)),
            plain(one.relative_l2),
            db(one.snr_db),
            percent(one.neighbours),
        )
        for one in comparison.outputs
    ]


def format_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Of each format its name, weights, elements, bytes, bits, and the SNR of its weights and the lowest, in dB."""
    return [
        (
            format_name(one.mode, one.group_size),
            thousands(one.weights),
            thousands(one.elements),
            human_bytes(one.bytes),
            f"{one.bits_per_weight:.2f}",
            db(one.weight_snr_db),
            db(one.weight_snr_db_min),
        )
        for one in comparison.formats
    ]
