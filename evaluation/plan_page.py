"""A plan as one HTML page that needs nothing beside it: the curve, the formats, and where the loss comes from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from ov_weight_compression.ir_utils.wording import human_bytes, layer_name, percent, plain
from ov_weight_compression.passes.budget_outcome import BudgetOutcome
from ov_weight_compression.passes.budget_table import budget_lines
from ov_weight_compression.passes.report import Report

__all__ = ["render_plan"]

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 320, 76, 44, 14
_STYLE = """
:root{color-scheme:light dark}body{margin:0 auto;max-width:880px;padding:24px 20px;font:15px/1.5 system-ui,sans-serif}
table{border-collapse:collapse;margin:12px 0}td,th{padding:3px 12px 3px 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}svg{max-width:100%;height:auto}
.axis{stroke:currentColor;opacity:.3}.curve{fill:none;stroke:#2563eb;stroke-width:2}.chosen{fill:#dc2626}
.uniform{fill:currentColor;opacity:.45}text{fill:currentColor;font-size:12px}
"""


def render_plan(plans: Sequence[tuple[str, Report]]) -> str:
    """The page of the plans of some models, each with its name."""
    title = f"Plan of {plans[0][0]}" if len(plans) == 1 else "Plans"
    body = "".join(part for name, report in plans for part in _sections(name, report))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _sections(name: str, report: Report) -> Iterable[str]:
    yield f"<h1>{escape(name)}</h1>"
    outcome = report.budget
    if outcome is None:
        yield "<p>Nothing was planned.</p>"
        return
    yield "".join(f"<p>{escape(line)}</p>" for line in budget_lines(outcome))
    yield "<h2>Bytes and predicted divergence</h2>" + _chart(outcome)
    yield "<h2>Formats</h2>" + _table(
        ("format", "group", "weights", "bytes", "bits"),
        [
            (
                share.mode,
                "channel" if share.group_size < 0 else str(share.group_size),
                str(share.weights),
                human_bytes(share.bytes_after),
                f"{8 * share.bytes_after / share.elements:.2f}",
            )
            for share in report.shares
        ],
    )
    rows = sorted(report.rows, key=lambda row: (-outcome.shares.get(row.name, 0.0), row.name))
    yield "<h2>Weights</h2>" + _table(
        ("weight", "format", "bytes", "share of the predicted divergence"),
        [
            (
                layer_name(row.consumer, row.name),
                row.mode if row.group_size < 0 else f"{row.mode}:{row.group_size}",
                human_bytes(row.bytes_after),
                percent(outcome.shares.get(row.name)),
            )
            for row in rows
        ],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if place else ''}>{escape(cell)}</{tag}>" for place, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{line(head, 'th')}</tr>{body}</table>"


def _chart(outcome: BudgetOutcome) -> str:
    """The curve, what was chosen, and the uniform formats; divergences on a logarithmic axis."""
    uniform = [(one.bytes, one.divergence, one.format) for one in outcome.uniform if one.divergence > 0]
    points = [(one.bytes, one.divergence) for one in outcome.curve if one.divergence > 0]
    every = [*points, *((size, loss) for size, loss, _ in uniform)]
    if len(points) < 2:
        return "<p>There is nothing to choose from.</p>"
    low, high = min(size for size, _ in every), max(size for size, _ in every)
    least, most = (math.log10(pick(loss for _, loss in every)) for pick in (min, max))

    def at(size: float, loss: float) -> tuple[float, float]:
        across = (size - low) / max(1, high - low)
        up = (math.log10(max(loss, 1e-300)) - least) / max(1e-9, most - least)
        return _LEFT + across * (_WIDTH - _LEFT - 12), _HEIGHT - _BOTTOM - min(1, max(0, up)) * (
            _HEIGHT - _BOTTOM - _TOP
        )

    parts = []
    for power in range(math.floor(least), math.ceil(most) + 1):
        if least <= power <= most:
            _, y = at(low, 10.0**power)
            parts.append(f'<line class=axis x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 12}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{plain(10.0**power)}</text>')
    for number in range(5):
        size = low + (high - low) * number / 4
        x, _ = at(size, 1)
        told = escape(human_bytes(round(size)))
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{told}</text>')
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in points))
    parts.append(f'<polyline class=curve points="{line}"/>')
    for size, loss, name in uniform:
        x, y = at(size, loss)
        told = f"{name}: {human_bytes(size)}, {plain(loss)}"
        parts.append(f'<circle class=uniform cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(told)}</title></circle>')
    x, y = at(outcome.bytes, outcome.predicted)
    told = f"chosen: {human_bytes(outcome.bytes)}, {plain(outcome.predicted)}"
    parts.append(f'<circle class=chosen cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(told)}</title></circle>')
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 6}">bytes of the .bin; grey: one format for all, red: chosen</text>')
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="bytes against predicted divergence">'
        f"{''.join(parts)}</svg>"
    )
