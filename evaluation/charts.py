"""The two charts of a report, as SVG inside the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ov_weight_compression.evaluation.figures import LanguageFigures
from ov_weight_compression.evaluation.layers import LayerFigures
from ov_weight_compression.ir_utils.wording import db, format_name, layer_name, plain, thousands

__all__ = ["colour", "histogram", "layer_chart", "svg"]

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
        parts.append(_bar(left + 1, bottom - size, right - left - 2, size, 0, told))
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
        colour = formats.index((layer.mode, layer.group_size)) % _COLOURS
        parts.append(_bar(left + gap / 2, bottom - max(size, 1), pitch - gap, max(size, 1), colour, _told(layer)))
        if _finite(layer.output_snr_db):
            y = bottom - min(max(layer.output_snr_db or 0.0, 0.0), ceiling) / ceiling * (bottom - top)
            rings.append((left + pitch / 2, y))
    parts += _rings(rings, pitch)
    parts.append(f'<text x="{_LEFT}" y="{bottom + 20}">first layer</text>')
    end = _LEFT + pitch * len(layers)
    if end > _LEFT + 160:
        parts.append(f'<text x="{end:.1f}" y="{bottom + 20}" text-anchor="end">last layer</text>')
    key = "".join(
        f'<span><i style="background:var(--c{n % _COLOURS})"></i>{escape(format_name(*one))}</span>'
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


def _bar(x: float, y: float, width: float, height: float, colour: int, told: str) -> str:
    size = f'width="{max(width, 0.5):.2f}" height="{height:.2f}" rx="{min(2.0, width / 4):.1f}"'
    shape = f'x="{x:.2f}" y="{y:.2f}" {size}'
    return f'<rect class="bar" {shape} style="fill:var(--c{colour})"><title>{escape(told)}</title></rect>'


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
