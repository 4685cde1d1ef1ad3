"""An inspection in a terminal. `rich` is imported when something is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ov_weight_compression.evaluation.inspection import FormatRow, Inspection
from ov_weight_compression.evaluation.wording import bytes_of, count, short_format, short_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_inspection", "render_text"]

_NAME = 44


def render_text(inspection: Inspection, every: bool = False, width: int = 120) -> str:
    """The tables as plain text."""
    from rich.console import Console

    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        print_inspection(inspection, console, every)
    return capture.get().rstrip()


def print_inspection(inspection: Inspection, console: Console, every: bool = False) -> None:
    """Print the model's name, how it was made, its formats (`every`: and each weight), and what is not compressed."""
    total = bytes_of(inspection.constants_bytes)
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
        console.print(_formats(inspection))
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


def _table(title: str, **columns: str) -> Table:
    """A table; of each column `name` what it holds: `word` and `number` stay in one line, `text` may be wrapped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold", padding=(0, 1, 0, 0), pad_edge=False
    )
    for column, holds in columns.items():
        options: dict[str, Any] = {"no_wrap": True}
        if holds == "number":
            options["justify"] = "right"
        if holds == "text":
            options = {"min_width": 10, "overflow": "fold"}
        table.add_column(column.replace("_", " "), **options)
    return table


def _formats(inspection: Inspection) -> Table:
    device = {f"on_{inspection.device['device']}": "text"} if inspection.device is not None else {}
    numbers = dict.fromkeys(("weights", "bytes", "share", "bits"), "number")
    title = "Compressed weights (stored as: codes, scales, zero points)"
    table = _table(title, format="word", layers="word", stored_as="text", **device, **numbers)
    everything = inspection.constants_bytes or 1
    for row in inspection.formats:
        table.add_row(
            short_format(row.mode, row.group_size),
            row.kind,
            _stored(row),
            *([row.executed] if device else []),
            str(row.weights),
            bytes_of(row.bytes),
            f"{row.bytes / everything:.1%}",
            f"{row.bits_per_weight:.2f}",
        )
    table.add_section()
    table.add_row(
        "all",
        *["", ""],
        *([""] if device else []),
        str(len(inspection.weights)),
        bytes_of(inspection.bytes),
        f"{inspection.bytes / everything:.1%}",
        f"{inspection.bits_per_weight:.2f}",
    )
    return table


def _stored(row: FormatRow) -> str:
    zero = row.zero_point.replace(", ", " ")
    return ", ".join([row.storage, row.scale_type or "–", zero] if zero else [row.storage, row.scale_type or "–"])


def _each(inspection: Inspection) -> Table:
    device = {f"on_{inspection.device['device']}": "text"} if inspection.device is not None else {}
    numbers = dict.fromkeys(("shape", "bytes", "bits"), "number")
    table = _table("Each weight", weight="text", format="word", **device, **numbers)
    for one in inspection.weights:
        table.add_row(
            short_name(one.name.removesuffix("_compressed"), _NAME),
            short_format(one.mode, one.group_size),
            *([one.executed] if device else []),
            "×".join(map(str, one.shape)),
            bytes_of(one.bytes),
            f"{one.bits_per_weight:.2f}",
        )
    return table


def _floats(inspection: Inspection) -> Table:
    numbers = dict.fromkeys(("constants", "elements", "bytes", "share"), "number")
    table = _table("Not compressed", type="word", reason="text", **numbers)
    everything = inspection.constants_bytes or 1
    for row in inspection.float_groups:
        share = f"{row.bytes / everything:.1%}"
        table.add_row(row.element_type, row.reason, str(row.constants), count(row.elements), bytes_of(row.bytes), share)
    return table
