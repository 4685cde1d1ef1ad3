"""A comparison and an inspection in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ov_weight_compression.evaluation.comparison import Comparison
from ov_weight_compression.evaluation.figures import Estimate
from ov_weight_compression.evaluation.inspection import FormatRow, Inspection
from ov_weight_compression.ir_utils.wording import (
    db,
    format_name,
    human_bytes,
    layer_name,
    percent,
    plain,
    short_format,
    short_name,
    terminal_table,
    thousands,
    with_error,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["language_rows", "print_comparison", "print_inspection"]

_NAME = 44


def language_rows(comparison: Comparison) -> list[tuple[str, str]]:
    """The figures of a language model, with names."""
    found = comparison.language
    if found is None:
        return []
    kl = found.kl
    return [
        ("mean KL divergence", f"{_told(kl.mean)} nats"),
        ("median", plain(kl.median)),
        ("99 %", plain(kl.p99)),
        ("99.9 %", plain(kl.p999)),
        ("maximum", plain(kl.maximum)),
        ("same likeliest token", _told(found.same_top, 100, " %")),
        ("perplexity of the base model", _told(found.perplexity_base)),
        ("perplexity of the compressed model", _told(found.perplexity)),
        ("perplexity ratio", _told(found.perplexity_ratio)),
        ("ln of the ratio", _told(found.log_perplexity_ratio)),
        ("correlation of the log-probabilities", plain(found.correlation)),
        ("RMS Δp of the right token", _told(found.delta_p_rms, 100, " %")),
        ("mean Δp of the right token", _told(found.delta_p_mean, 100, " %")),
        ("positions", f"{thousands(found.positions)}, {thousands(found.predicted)} of them with a next token"),
    ]


def _named(title: str, name: str, *numbers: str) -> Table:
    return terminal_table(title, {name: "text", **dict.fromkeys(numbers, "number")})


def _told(estimate: Estimate, scale: float = 1.0, unit: str = "") -> str:
    return with_error(estimate.value * scale, estimate.error * scale, unit)


def print_comparison(comparison: Comparison, console: Console) -> None:
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


def _compared_formats(comparison: Comparison) -> Table | None:
    if not comparison.formats:
        return None
    table = _named("Formats", "format", "weights", "elements", "bytes", "bits", "SNR dB", "lowest")
    for one in comparison.formats:
        table.add_row(
            format_name(one.mode, one.group_size),
            str(one.weights),
            thousands(one.elements),
            human_bytes(one.bytes),
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
    table = _named(title, "layer", "format", "weight", "own", "output")
    for one in worst:
        row = (db(one.weight_snr_db), db(one.own_snr_db), db(one.output_snr_db))
        table.add_row(short_name(layer_name(one.layer, one.name), 56), short_format(one.mode, one.group_size), *row)
    return table


def print_inspection(inspection: Inspection, console: Console, every: bool = False) -> None:
    """Print the model's name, how it was made, its formats (`every`: and each weight), and what is not compressed."""
    total = human_bytes(inspection.constants_bytes)
    console.print(f"{inspection.model}: {total} of constants", style="bold", highlight=False, soft_wrap=True)
    for section, entries in inspection.recipe.items():
        console.print(f"{section}: {_words(entries)}", highlight=False, soft_wrap=True)
    device = inspection.device
    if device is not None:
        text = f"{device['device']} ({device['name']}, OpenVINO {device['openvino']}): {device['method']}"
        console.print(text, highlight=False, soft_wrap=True)
    if not inspection.weights:
        console.print("No weight is stored compressed.")
    else:
        console.print(_stored_formats(inspection))
        if every:
            console.print(_each(inspection))
    if inspection.floats:
        console.print(_floats(inspection))


def _words(entries: Any) -> str:
    """A section of the recipe in one line; long values (NNCF lists its advanced parameters) and nested ones cut."""
    if not isinstance(entries, dict):
        return str(entries)
    flat = []
    for key, value in entries.items():
        text = f"({_words(value)})" if isinstance(value, dict) else str(value)
        if isinstance(value, dict) or len(text) <= 60:
            flat.append(f"{key} {text}")
    return ", ".join(flat)


def _stored_formats(inspection: Inspection) -> Table:
    device = {f"on {inspection.device['device']}": "text"} if inspection.device is not None else {}
    numbers = dict.fromkeys(("weights", "bytes", "share", "bits"), "number")
    title = "Compressed weights (stored as: codes, scales, zero points)"
    table = terminal_table(title, {"format": "word", "layers": "word", "stored as": "text", **device, **numbers})
    everything = inspection.constants_bytes or 1
    for row in inspection.formats:
        table.add_row(
            short_format(row.mode, row.group_size),
            row.kind,
            _stored(row),
            *([row.executed] if device else []),
            str(row.weights),
            human_bytes(row.bytes),
            f"{row.bytes / everything:.1%}",
            f"{row.bits_per_weight:.2f}",
        )
    table.add_section()
    table.add_row(
        "all",
        *["", ""],
        *([""] if device else []),
        str(len(inspection.weights)),
        human_bytes(inspection.bytes),
        f"{inspection.bytes / everything:.1%}",
        f"{inspection.bits_per_weight:.2f}",
    )
    return table


def _stored(row: FormatRow) -> str:
    zero = row.zero_point.replace(", ", " ")
    return ", ".join([row.storage, row.scale_type or "–", zero] if zero else [row.storage, row.scale_type or "–"])


def _each(inspection: Inspection) -> Table:
    device = {f"on {inspection.device['device']}": "text"} if inspection.device is not None else {}
    numbers = dict.fromkeys(("shape", "bytes", "bits"), "number")
    table = terminal_table("Each weight", {"weight": "text", "format": "word", **device, **numbers})
    for one in inspection.weights:
        table.add_row(
            short_name(one.name.removesuffix("_compressed"), _NAME),
            short_format(one.mode, one.group_size),
            *([one.executed] if device else []),
            "×".join(map(str, one.shape)),
            human_bytes(one.bytes),
            f"{one.bits_per_weight:.2f}",
        )
    return table


def _floats(inspection: Inspection) -> Table:
    numbers = dict.fromkeys(("constants", "elements", "bytes", "share"), "number")
    table = terminal_table("Not compressed", {"type": "word", "reason": "text", **numbers})
    everything = inspection.constants_bytes or 1
    for row in inspection.float_groups:
        share = f"{row.bytes / everything:.1%}"
        table.add_row(
            row.element_type, row.reason, str(row.constants), thousands(row.elements), human_bytes(row.bytes), share
        )
    return table
