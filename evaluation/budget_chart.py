"""What a budget chose, drawn: the best that each size can give, what was chosen, and uniform formats beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from ov_weight_compression.evaluation.charts import svg
from ov_weight_compression.evaluation.page import html_table
from ov_weight_compression.ir_utils.wording import human_bytes, percent, plain
from ov_weight_compression.passes.budget_outcome import BudgetOutcome
from ov_weight_compression.passes.budget_table import budget_lines

__all__ = ["budget_parts"]

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1032, 330, 74, 24, 16, 284
_SHARES = 12
_APART_ACROSS, _APART_UP = 76.0, 26.0
_LETTER = 6.4


def budget_parts(outcome: BudgetOutcome) -> Iterator[str]:
    """The sentences, the chart, and the weights that the loss comes from."""
    yield "".join(f"<p>{escape(line)}</p>" for line in budget_lines(outcome))
    if len(outcome.curve) > 1:
        yield _chart(outcome)
    largest = sorted(outcome.shares.items(), key=lambda pair: (-pair[1], pair[0]))[:_SHARES]
    if largest:
        rows = [(name.removesuffix("_compressed"), percent(share)) for name, share in largest]
        yield "<h2>Where the predicted loss comes from</h2>" + html_table(("weight", "share"), rows)


def _chart(outcome: BudgetOutcome) -> str:
    """Bytes of the .bin against the predicted divergence, both logarithmic."""
    points = [(one.bytes, one.divergence) for one in outcome.curve]
    beside = [(one.format, one.bytes, one.divergence) for one in outcome.uniform]
    known = [(size, loss) for size, loss in (*points, *(one[1:] for one in beside)) if loss > 0 and size > 0]
    if len(known) < 2:
        return ""
    sizes, losses = zip(*known, strict=True)
    xs, ys = _Scale(sizes, _LEFT, _WIDTH - _RIGHT), _Scale(losses, _BOTTOM, _TOP)
    parts = []
    for tick in ys.ticks(_APART_UP):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{ys(tick):.1f}" y2="{ys(tick):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{ys(tick) + 4:.1f}" text-anchor="end">{plain(tick, 1)}</text>')
    for tick in xs.ticks(_APART_ACROSS):
        parts.append(f'<text x="{xs(tick):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{human_bytes(tick)}</text>')
    line = " ".join(f"{xs(size):.1f},{ys(loss):.1f}" for size, loss in points if loss > 0)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    taken = (-math.inf, -math.inf)  # where the name before ends, and its height
    for name, x, y in _apart([(name, xs(size), ys(loss)) for name, size, loss in beside if loss > 0]):
        parts.append(f'<circle class="other" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        if name:
            anchor, place = ("end", x - 8) if x > _WIDTH - 200 else ("start", x + 8)
            height = y + 18 if x < taken[0] and abs(y - 7 - taken[1]) < 14 else y - 7
            taken = (place + _LETTER * len(name), height)
            parts.append(f'<text x="{place:.1f}" y="{height:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    if outcome.predicted > 0:
        x, y = xs(outcome.bytes), ys(outcome.predicted)
        parts.append(f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<text class="mark-text" x="{x:.1f}" y="{y - 12:.1f}" text-anchor="middle">chosen</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">size of the .bin</text>')
    unit = "predicted loss" if outcome.unit == "none" else f"predicted divergence, {outcome.unit}"
    key = (
        '<div class="key"><span><i style="background:var(--c0)"></i>the best choice of formats at each size</span>'
        '<span><i class="ring"></i>one format for all, embeddings in 8 bits</span>'
        f"<span>up: {escape(unit)}, logarithmic</span></div>"
    )
    return key + svg(_HEIGHT, parts, "Size against predicted loss")


def _apart(points: Sequence[tuple[str, float, float]]) -> list[tuple[str, float, float]]:
    """Points whose names do not run into each other: of those that lie together the first has the names of all."""
    found: list[tuple[list[str], float, float]] = []
    for name, x, y in points:
        near = next((one for one in found if one[0] and abs(one[1] - x) < 150 and abs(one[2] - y) < 13), None)
        found.append(([name] if near is None else [], x, y))
        if near is not None:
            near[0].append(name)
    return [(", ".join(names), x, y) for names, x, y in found]


class _Scale:
    """A logarithmic axis with some room at its ends."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = math.log10(min(values)), math.log10(max(values))
        room = 0.05 * (high - low) or 0.1
        self._low, self._high, self._start, self._end = low - room, high + room, start, end

    def __call__(self, value: float) -> float:
        share = (math.log10(max(value, 1e-30)) - self._low) / (self._high - self._low)
        return self._start + min(max(share, 0.0), 1.0) * (self._end - self._start)

    def ticks(self, least: float) -> list[float]:
        """Round values on the axis, at least so far from each other."""
        powers = range(math.floor(self._low), math.ceil(self._high) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), tuple(n / 20 for n in range(20, 200))):
            found = [step * 10.0**power for power in powers for step in steps]
            found = [value for value in found if self._low <= math.log10(value) <= self._high]
            if len(found) >= 4:
                break
        apart: list[float] = []
        for value in found:
            if not apart or abs(self(value) - self(apart[-1])) >= least:
                apart.append(value)
        return apart
