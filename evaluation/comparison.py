"""What a comparison found, as data: frozen, printed as a table, saved as JSON or as a page."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ov_weight_compression.evaluation.figures import Estimate, LanguageFigures, Passage, Surprise
from ov_weight_compression.evaluation.layers import FormatFigures, LayerFigures
from ov_weight_compression.evaluation.models import Arithmetic
from ov_weight_compression.evaluation.outputs import OutputFigures
from ov_weight_compression.evaluation.samples import DataFigures
from ov_weight_compression.ir_utils.publish import write_text
from ov_weight_compression.ir_utils.wording import (
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

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


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

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def to_html(self) -> str:
        """A page that needs nothing beside it."""
        from ov_weight_compression.evaluation.comparison_page import render_page

        return render_page(self)

    def save_html(self, path: str | os.PathLike[str]) -> None:
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


def _named(title: str, name: str, *numbers: str) -> Table:
    return terminal_table(title, {name: "text", **dict.fromkeys(numbers, "number")})


def _with_error(estimate: Estimate, scale: float = 1.0, unit: str = "") -> str:
    return with_error(estimate.value * scale, estimate.error * scale, unit)


def _print(comparison: Comparison, console: Console) -> None:
    """Print everything."""
    base, compressed, data = comparison.base, comparison.compressed, comparison.data
    console.print(
        f"{base.name} ({human_bytes(base.bytes)}) → {compressed.name} ({human_bytes(compressed.bytes)})",
        style="bold",
        highlight=False,
    )
    console.print(comparison.arithmetic.describe(), highlight=False, soft_wrap=True)
    windows = f", {data.samples} windows of {data.window}" if data.window else f", {data.samples} samples"
    console.print(f"data: {data.source}{windows}", highlight=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
    for table in (_language(comparison), _outputs(comparison), _compared_formats(comparison), _layers(comparison)):
        if table is not None:
            console.print(table)


def _language(comparison: Comparison) -> Table | None:
    if comparison.language is None:
        return None
    table = _named("Predictions", "figure", "value")
    for name, value in language_rows(comparison):
        table.add_row(name, value)
    return table


def _outputs(comparison: Comparison) -> Table | None:
    if not comparison.outputs:
        return None
    table = _named("Outputs", "output", "rows", "cos mean", "min", "1 %", "rel. L2", "SNR dB", "10-NN")
    for one in comparison.outputs:
        cosines = (plain(value, 5) for value in (one.cosine_mean, one.cosine_min, one.cosine_p1))
        table.add_row(
            one.name,
            thousands(one.rows),
            *cosines,
            plain(one.relative_l2, 3),
            db(one.snr_db),
            percent(one.neighbours),
        )
    return table


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


def _compared_formats(comparison: Comparison) -> Table | None:
    if not comparison.formats:
        return None
    table = _named("Formats", "format", "weights", "elements", "bytes", "bits", "SNR dB", "lowest")
    for row in format_rows(comparison):
        table.add_row(*row)
    return table


def _layers(comparison: Comparison) -> Table | None:
    worst = comparison.worst_layers()
    if not worst:
        return None
    title = (
        f"Layers that lose most ({len(worst)} of {len(comparison.layers)}), SNR of weight, own output and output in dB"
    )
    table = _named(title, "layer", "format", "weight", "own", "output")
    for one in worst:
        row = (db(one.weight_snr_db), db(one.own_snr_db), db(one.output_snr_db))
        table.add_row(short_name(layer_name(one.layer, one.name), 56), short_format(one.mode, one.group_size), *row)
    return table
