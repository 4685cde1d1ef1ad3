"""The charts of a report, as SVG inside the page: predictions by their divergence, layers by their error, and of what a
budget chose the best that each size can give, with uniform formats beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from ov_weight_compression.evaluation.figures import LanguageFigures
from ov_weight_compression.evaluation.layers import LayerFigures
from ov_weight_compression.evaluation.page import html_table
from ov_weight_compression.ir_utils.wording import db, format_name, human_bytes, layer_name, percent, plain, thousands
from ov_weight_compression.passes.budget_outcome import BudgetOutcome, budget_lines

_WIDTH, _LEFT, _RIGHT = 1032, 52, 12
_COLOURS = 8
_RING_PITCH = 10.0


def histogram(figures: LanguageFigures) -> str:
    """Positions by the divergence of their predictions, logarithmic; mean, median and 99 % marked."""
    found = figures.histogram
    if not found.counts:
        return "<p class=dim>Every prediction is the same in both models.</p>"
    height, top, bottom = 260, 34, 216
    low, high = math.log10(found.edges[0]), math.log10(found.edges[-1])
    peak = max(found.counts)

    def x(value: float) -> float:
        share = (math.log10(max(value, found.edges[0])) - low) / (high - low)
        return _LEFT + min(share, 1.0) * (_WIDTH - _LEFT - _RIGHT)

    step = _step(peak)
    parts = _lines([(value, bottom - value / peak * (bottom - top)) for value in range(0, peak + 1, step)])
    for number, positions in enumerate(found.counts):
        left, right = x(found.edges[number]), x(found.edges[number + 1])
        size = positions / peak * (bottom - top)
        span = f"{plain(found.edges[number], 2)} to {plain(found.edges[number + 1], 2)} nats"
        told = f"{span}: {thousands(positions)} positions"
        parts.append(_bar(left + 1, bottom - size, right - left - 2, size, colour(0), told))
    for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1):
        parts.append(f'<text x="{x(10.0**power):.1f}" y="{bottom + 18}" text-anchor="middle">{_power(power)}</text>')
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{height - 6}" text-anchor="end">KL divergence of one prediction, nats</text>'
    )
    marks = [("median", figures.kl.median), ("mean", figures.kl.mean.value), ("99 %", figures.kl.p99)]
    parts += _marks([(f"{name} {plain(value, 3)}", x(value)) for name, value in marks if value > 0], top, bottom)
    below = f" {thousands(found.below)} positions lie to the left of the first bar." if found.below else ""
    return (
        svg(height, parts, "KlHistogram of the KL divergence")
        + f"<p class=dim>{thousands(figures.positions)} positions.{below}</p>"
    )


def _step(peak: int) -> int:
    """A round distance between lines, so that there are three to six of them."""
    rough = int(10 ** math.floor(math.log10(max(peak / 3, 1))))
    return max(step for step in (rough, 2 * rough, 5 * rough) if step <= max(peak / 2.5, 1))


def _marks(marks: Sequence[tuple[str, float]], top: int, bottom: int) -> list[str]:
    """Dashed lines with their names above; a name that would run into the one before it goes a line higher."""
    lines, names, taken = [], [], [-math.inf, -math.inf]
    for text, place in sorted(marks, key=lambda mark: mark[1]):
        half = 3.4 * len(text)
        row = 0 if place - half > taken[0] else 1
        taken[row] = place + half + 6
        y = top - 6 - 14 * row
        anchor = "end" if place + half > _WIDTH else "middle"
        lines.append(f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{y + 3}" y2="{bottom}"/>')
        names.append(f'<text class="mark-text" x="{place:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>')
    return lines + names


def layer_chart(layers: Sequence[LayerFigures]) -> str:
    """A bar for each compressed weight in graph order, coloured by format: its own SNR (its weight's, where that was
    not measured); a ring for the SNR of the layer's output in the compressed model."""
    formats = sorted({(layer.mode, layer.group_size) for layer in layers}, key=lambda key: (key[0], key[1]))
    own = any(layer.own_snr_db is not None for layer in layers)
    heights = [layer.own_snr_db if layer.own_snr_db is not None else layer.weight_snr_db for layer in layers]
    finite = [value for value in (*heights, *(layer.output_snr_db for layer in layers)) if _finite(value)]
    if not finite:
        return ""
    ceiling = max(10.0, math.ceil(max(value for value in finite if value is not None) / 10) * 10)
    height, top, bottom = 290, 12, 256
    pitch = min(40.0, (_WIDTH - _LEFT - _RIGHT) / len(layers))
    parts = _lines([(value, bottom - value / ceiling * (bottom - top)) for value in range(0, int(ceiling) + 1, 10)])
    rings: list[tuple[float, float]] = []
    for number, layer in enumerate(layers):
        value, left = heights[number], _LEFT + number * pitch
        shown = 0.0 if value is None else min(max(value, 0.0), ceiling)
        size = shown / ceiling * (bottom - top)
        gap = min(2.0, pitch * 0.2)
        shade = colour(formats.index((layer.mode, layer.group_size)))
        parts.append(_bar(left + gap / 2, bottom - max(size, 1), pitch - gap, max(size, 1), shade, _told(layer)))
        if _finite(layer.output_snr_db):
            y = bottom - min(max(layer.output_snr_db or 0.0, 0.0), ceiling) / ceiling * (bottom - top)
            rings.append((left + pitch / 2, y))
    parts += _rings(rings, pitch)
    parts.append(f'<text x="{_LEFT}" y="{bottom + 20}">first layer</text>')
    end = _LEFT + pitch * len(layers)
    if end > _LEFT + 160:
        parts.append(f'<text x="{end:.1f}" y="{bottom + 20}" text-anchor="end">last layer</text>')
    key = "".join(
        f'<span><i style="background:{colour(n)}"></i>{escape(format_name(*one))}</span>'
        for n, one in enumerate(formats)
    )
    what = "SNR of the layer's own output, dB" if own else "SNR of the weight, dB"
    form, mark = ("line", "") if pitch < _RING_PITCH else ("ring", '<i class="ring"></i>')
    ring = f"<span>{mark}{form}: SNR of the output with the error of all layers before, dB</span>" if rings else ""
    return f'<div class="key"><span>bar: {what}</span>{ring}{key}</div>' + svg(height, parts, "SNR of every layer")


def _rings(places: Sequence[tuple[float, float]], pitch: float) -> list[str]:
    """A ring for each layer, or one line where they would run into each other."""
    if pitch < _RING_PITCH:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        return [f'<polyline class="halo" points="{points}"/><polyline class="line" points="{points}"/>']
    return [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in places]


def _told(layer: LayerFigures) -> str:
    own, output = db(layer.own_snr_db), db(layer.output_snr_db)
    figures = f"weight {db(layer.weight_snr_db)} dB, own output {own} dB, output {output} dB"
    return f"{layer_name(layer.layer, layer.name)}\n{format_name(layer.mode, layer.group_size)}\n{figures}"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _lines(steps: Sequence[tuple[float, float]]) -> list[str]:
    """Horizontal lines with their values at the left."""
    parts = []
    for value, y in steps:
        kind = "axis" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{thousands(round(value))}</text>')
    return parts


def _bar(x: float, y: float, width: float, height: float, shade: str, told: str) -> str:
    size = f'width="{max(width, 0.5):.2f}" height="{height:.2f}" rx="{min(2.0, width / 4):.1f}"'
    shape = f'x="{x:.2f}" y="{y:.2f}" {size}'
    return f'<rect class="bar" {shape} style="fill:{shade}"><title>{escape(told)}</title></rect>'


def _power(power: int) -> str:
    return {0: "1", 1: "10", -1: "0.1", -2: "0.01", -3: "0.001"}.get(power, f"10{str(power).translate(_SUPERSCRIPT)}")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def colour(number: int) -> str:
    """The colour of the so-manieth format, as CSS."""
    return f"var(--c{number % _COLOURS})"


def svg(height: int, parts: Sequence[str], title: str) -> str:
    """A drawing 1032 units wide, which takes the width of the page."""
    inside = "".join(parts)
    drawing = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{inside}</svg>'
    return f'<div class="wide">{drawing}</div>'


_HEIGHT, _AXIS, _MARGIN, _TOP, _BOTTOM = 330, 74, 24, 16, 284
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
    xs, ys = _Scale(sizes, _AXIS, _WIDTH - _MARGIN), _Scale(losses, _BOTTOM, _TOP)
    parts = []
    for tick in ys.ticks(_APART_UP):
        parts.append(
            f'<line class="grid" x1="{_AXIS}" x2="{_WIDTH - _MARGIN}" y1="{ys(tick):.1f}" y2="{ys(tick):.1f}"/>'
        )
        parts.append(f'<text x="{_AXIS - 8}" y="{ys(tick) + 4:.1f}" text-anchor="end">{plain(tick, 1)}</text>')
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
    parts.append(f'<text x="{_WIDTH - _MARGIN}" y="{_HEIGHT - 6}" text-anchor="end">size of the .bin</text>')
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
