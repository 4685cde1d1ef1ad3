"""Markdown tables, aligned so that they read as well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with its columns aligned: the first to the left, figures to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    if any(len(row) != len(header) for row in cells):
        raise ValueError(f"every row needs {len(header)} cells")
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(header))]
    lines = [_line(row, widths) for row in cells]
    rule = "|".join(
        "-" * (width + 2) if column == 0 else "-" * (width + 1) + ":" for column, width in enumerate(widths)
    )
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]]) + "\n"


def seconds(value: float | None) -> str:
    """Three digits or so; a dash where there is nothing."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def megabytes(value: float | None) -> str:
    """Bytes as megabytes of 10⁶; two decimals where there are few."""
    if value is None:
        return "–"
    return f"{value / 1e6:.2f}" if value < 1e7 else f"{value / 1e6:,.0f}"


def times(value: float | None) -> str:
    """A ratio."""
    return "–" if value is None else f"{value:.1f} ×"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "| " + " | ".join(cells) + " |"
