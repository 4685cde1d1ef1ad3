"""A comparison in a terminal. `rich` is imported when something is printed."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ov_weight_compression.evaluation.comparison import Comparison
from ov_weight_compression.evaluation.wording import (
    bytes_of,
    count,
    db,
    format_name,
    layer_name,
    percent,
    plain,
    short_format,
    short_name,
    with_error,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["language_rows", "print_tables", "render_text"]


def print_tables(comparison: Comparison) -> None:
    """Print everything to the terminal."""
    from rich.console import Console

    _print(comparison, Console())


def render_text(comparison: Comparison) -> str:
    """The same as plain text, 110 columns wide."""
    from rich.console import Console

    target = io.StringIO()
    _print(comparison, Console(file=target, width=110, no_color=True, force_terminal=False))
    return target.getvalue()


def language_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """The figures of a language model, with names."""
    found = comparison.language
    if found is None:
        return []
    kl = found.kl
    return [
        ("mean KL divergence", f"{with_error(kl.mean)} nats"),
        ("median", plain(kl.median)),
        ("99 %", plain(kl.p99)),
        ("99.9 %", plain(kl.p999)),
        ("maximum", plain(kl.maximum)),
        ("same likeliest token", with_error(found.same_top, 100, " %")),
        ("perplexity of the base model", with_error(found.perplexity_base)),
        ("perplexity of the compressed model", with_error(found.perplexity)),
        ("perplexity ratio", with_error(found.perplexity_ratio)),
        ("ln of the ratio", with_error(found.log_perplexity_ratio)),
        ("RMS Δp of the right token", with_error(found.delta_p_rms, 100, " %")),
        ("mean Δp of the right token", with_error(found.delta_p_mean, 100, " %")),
        ("positions", f"{count(found.positions)}, {count(found.predicted)} of them with a next token"),
    ]


def _print(comparison: Comparison, console: Console) -> None:
    base, compressed, data = comparison.base, comparison.compressed, comparison.data
    console.print(
        f"{base.name} ({bytes_of(base.bytes)}) → {compressed.name} ({bytes_of(compressed.bytes)})",
        style="bold",
        highlight=False,
    )
    console.print(comparison.arithmetic.describe(), highlight=False, soft_wrap=True)
    windows = f", {data.samples} windows of {data.window}" if data.window else f", {data.samples} samples"
    console.print(f"data: {data.source}{windows}", highlight=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, soft_wrap=True)
    for table in (_language(comparison), _outputs(comparison), _formats(comparison), _layers(comparison)):
        if table is not None:
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold", padding=(0, 1, 0, 0), pad_edge=False
    )
    for number, column in enumerate(columns):
        options: dict[str, Any] = {"justify": "right", "no_wrap": True}
        if number == 0:
            options = {"overflow": "fold", "min_width": 14}
        table.add_column(column, **options)
    return table


def _language(comparison: Comparison) -> Table | None:
    if comparison.language is None:
        return None
    table = _table("Predictions", "figure", "value")
    for name, value in language_rows(comparison):
        table.add_row(name, value)
    return table


def _outputs(comparison: Comparison) -> Table | None:
    if not comparison.outputs:
        return None
    table = _table("Outputs", "output", "rows", "cos mean", "min", "1 %", "rel. L2", "SNR dB", "10-NN")
    for one in comparison.outputs:
        cosines = (plain(value, 5) for value in (one.cosine_mean, one.cosine_min, one.cosine_p1))
        table.add_row(
            one.name, count(one.rows), *cosines, plain(one.relative_l2, 3), db(one.snr_db), percent(one.neighbours)
        )
    return table


def _formats(comparison: Comparison) -> Table | None:
    if not comparison.formats:
        return None
    table = _table("Formats", "format", "weights", "elements", "bytes", "bits", "SNR dB", "lowest")
    for one in comparison.formats:
        table.add_row(
            format_name(one.mode, one.group_size),
            str(one.weights),
            count(one.elements),
            bytes_of(one.bytes),
            f"{one.bits_per_weight:.2f}",
            db(one.weight_snr_db),
            db(one.weight_snr_db_min),
        )
    return table


def _layers(comparison: Comparison) -> Table | None:
    worst = comparison.worst_layers()
    if not worst:
        return None
    title = (
        f"Layers that lose most ({len(worst)} of {len(comparison.layers)}), SNR of weight, own output and output in dB"
    )
    table = _table(title, "layer", "format", "weight", "own", "output")
    for one in worst:
        row = (db(one.weight_snr_db), db(one.own_snr_db), db(one.output_snr_db))
        table.add_row(short_name(layer_name(one.layer, one.name), 56), short_format(one.mode, one.group_size), *row)
    return table
