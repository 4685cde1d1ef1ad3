"""A comparison as a page to look at: its tables, and charts of predictions by their divergence and of layers by their
error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from ov_weight_compression.evaluation.comparison import Comparison, format_rows, language_rows, output_rows
from ov_weight_compression.evaluation.layers import LayerFigures
from ov_weight_compression.evaluation.page import (
    WIDTH,
    cards_of,
    colour,
    document,
    folded,
    fragment,
    heading,
    html_table,
    key_of,
    pairs_of,
    section,
    svg,
)
from ov_weight_compression.evaluation.predictions import LanguageFigures, Passage, Surprise
from ov_weight_compression.ir_utils.printing import (
    db,
    format_name,
    human_bytes,
    layer_name,
    percent,
    plain,
    probability,
    thousands,
)

_LEFT, _RIGHT = 52, 12
_RING_PITCH = 10.0


def render_page(comparison: Comparison) -> str:
    """The whole page."""
    return document(f"{comparison.base.name} → {comparison.compressed.name}", _sections(comparison))


def render_fragment(comparison: Comparison) -> str:
    """The head of the page, for a notebook's cell."""
    parts = [_head(comparison), _cards(comparison), _figures(comparison), _outputs(comparison), _formats(comparison)]
    return fragment(parts)


def _sections(comparison: Comparison) -> Iterable[str]:
    yield _head(comparison)
    yield _cards(comparison)
    yield _formats(comparison)
    if comparison.language is not None:
        yield section("How far predictions moved", _histogram(comparison.language))
        yield _figures(comparison)
    yield _outputs(comparison)
    yield _layers(comparison)
    if comparison.worst_positions:
        yield section("Predictions that changed most", _surprises(comparison.worst_positions))
    if comparison.worst_passages:
        told = "<p class=dim>The stronger the colour, the more the prediction of a token changed.</p>"
        yield section("Texts that suffered most", told, _passages(comparison.worst_passages))
    yield _making(comparison)


def _head(comparison: Comparison) -> str:
    base, compressed = comparison.base, comparison.compressed
    return heading(
        compressed.name,
        f"compared with {base.name}",
        f"{comparison.data.told}. {comparison.arithmetic.describe()}.",
        comparison.notes,
    )


def _cards(comparison: Comparison) -> str:
    found, base, compressed = comparison.language, comparison.base.bytes, comparison.compressed.bytes
    cards = []
    if found is not None:
        ratio = found.perplexity_ratio
        cards += [
            ("mean KL divergence", plain(found.kl.mean.value, 3), f"± {plain(found.kl.mean.error, 2)} nats"),
            ("same likeliest token", percent(found.same_top.value), f"± {percent(found.same_top.error, 2)}"),
            ("perplexity ratio", plain(ratio.value, 4), f"± {plain(ratio.error, 2)}"),
        ]
    for one in comparison.outputs[:3]:
        cards.append((f"{one.name}: SNR", f"{db(one.snr_db)} dB", f"lowest cosine {plain(one.cosine_min, 5)}"))
    share = percent(compressed / base if base else None)
    cards.append(("size of the weights", share, f"{human_bytes(base)} → {human_bytes(compressed)}"))
    return cards_of(cards)


def _figures(comparison: Comparison) -> str:
    rows = language_rows(comparison)
    return f'<div class="figures">{html_table(("figure", "value"), rows, 0)}</div>' if rows else ""


def _outputs(comparison: Comparison) -> str:
    if not comparison.outputs:
        return ""
    cosines = ("cosine mean", "minimum", "1 %")
    head = ("output", "rows", "a row is", *cosines, "relative L2", "SNR dB", "10 neighbours kept")
    found = zip(comparison.outputs, output_rows(comparison), strict=True)
    rows = [(name, count, one.row, *figures) for one, (name, count, *figures) in found]
    return section("How far outputs moved", html_table(head, rows))


def _formats(comparison: Comparison) -> str:
    if not comparison.formats:
        return ""
    head = ("format", "weights", "elements", "bytes", "bits per weight", "SNR of the weights, dB", "lowest")
    return section("Formats", html_table(head, format_rows(comparison)))


def _layers(comparison: Comparison) -> str:
    worst = comparison.worst_layers()
    if not worst:
        return ""
    head = ("layer", "format", "weight, dB", "own output, dB", "output, dB")
    every = html_table(head, map(_layer_row, comparison.layers))
    return section("Where the loss comes from", _layer_chart(comparison.layers)) + section(
        f"The {len(worst)} layers that lose most, of {len(comparison.layers)}",
        html_table(head, map(_layer_row, worst)),
        folded(f"all {len(comparison.layers)} layers", every),
    )


def _layer_row(one: LayerFigures) -> tuple[str, ...]:
    name = layer_name(one.layer, one.name) + (f" ({one.note})" if one.note else "")
    figures = (db(one.weight_snr_db), db(one.own_snr_db), db(one.output_snr_db))
    return (name, format_name(one.mode, one.group_size), *figures)


def _making(comparison: Comparison) -> str:
    """How the figures were made, so that anybody can make them again."""
    data, arithmetic = comparison.data, comparison.arithmetic
    pairs = [
        ("base model", comparison.base.path or comparison.base.name),
        ("compressed model", comparison.compressed.path or comparison.compressed.name),
        ("data", data.source),
        ("windows or samples", thousands(data.samples)),
        ("arithmetic", arithmetic.describe()),
        ("properties", ", ".join(map("=".join, arithmetic.properties)) or "the device's defaults"),
        ("OpenVINO", arithmetic.openvino),
    ]
    if data.window:
        pairs.append(("window and stride", f"{data.window} and {data.stride} tokens"))
    if data.context is not None:
        last = "scored for KL and agreement" if data.score_last else "not scored"
        first = f"all but the first {data.context}" if data.context else "all"
        pairs.append(("positions", f"{first} of each window; the last, without a next token, {last}"))
    return section("How this was measured", pairs_of(pairs), _definitions(comparison))


def _definitions(comparison: Comparison) -> str:
    snr = (
        "SNR of a weight is 10 log₁₀(Σ w² / Σ (w − ŵ)²), of an output the same of its values; a layer's own output is "
        "what it gives when fed with the base model's activations. 6 dB are about one bit."
    )
    if comparison.language is None:
        return f"<p class=dim>{snr}</p>"
    kl = (
        "KL(base ‖ compressed) = Σ p (log p − log q) over the vocabulary, in nats, of every scored position, in "
        "float64 from float32 logits. Perplexity is exp of the mean −log probability of the next token within the "
        "window. Errors are standard errors of the mean, the ratio's from the differences of the two models' "
        "log-probabilities. Δp is the change of the probability of the token that came next."
    )
    return f"<p class=dim>{kl}</p><p class=dim>{snr}</p>"


def _surprises(found: Sequence[Surprise]) -> str:
    """The predictions that changed most: the text before, the right token, and what either model expected."""
    rows = "".join(_surprise(one) for one in found)
    named = ("text before", "came next: base → compressed", "base expects", "compressed expects")
    head = "<tr>" + "".join(f'<th class="left">{name}</th>' for name in named) + "<th>KL</th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>'


def _surprise(one: Surprise) -> str:
    before, right, top_base, top = one.text or (
        " ".join(map(str, one.before)),
        "" if one.right is None else str(one.right),
        str(one.top_base),
        str(one.top),
    )
    came = "–"
    if one.right is not None:
        change = f"{probability(one.right_base_p)} → {probability(one.right_p)}"
        came = f'{_token(right)}<br><small class="no-break">{change}</small>'
    return (
        f'<tr><td class="name"><span class=before>{escape(_one_line(before))}</span><br>'
        f"<small>window {one.window}, position {one.position}</small></td>"
        f'<td class="left">{came}</td>'
        f'<td class="left">{_token(top_base)}<br><small>{probability(one.top_base_p)}</small></td>'
        f'<td class="left">{_token(top)}<br><small>{probability(one.top_p)}</small></td>'
        f'<td class="number">{plain(one.kl, 3)}</td></tr>'
    )


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎ ").replace("\t", "⇥")


def _token(text: str) -> str:
    shown = _one_line(text)
    if not shown.strip():
        shown = shown.replace(" ", "␣") or "∅"
    return f"<code>{escape(shown)}</code>"


def _passages(found: Sequence[Passage]) -> str:
    """Whole windows, each token shaded by how much its prediction changed."""
    largest = max((kl for one in found for kl in one.kl if kl is not None and math.isfinite(kl)), default=0.0)
    parts = []
    for number, one in enumerate(found):
        words = one.text or tuple(f"{token} " for token in one.tokens)
        body = "".join(_shaded(word, kl, largest) for word, kl in zip(words, one.kl, strict=True))
        opened = " open" if number == 0 else ""
        title = f"window {one.window}: mean KL {plain(one.mean_kl, 3)} nats"
        parts.append(f'<details{opened}><summary>{title}</summary><div class="text">{body}</div></details>')
    return "".join(parts)


def _shaded(word: str, kl: float | None, largest: float) -> str:
    text = escape(word)
    if kl is None:
        return f'<span class="before" title="not scored">{text}</span>'
    strength = 0.0 if largest <= 0 else math.sqrt(max(min(kl, largest), 0.0) / largest)
    shade = f' style="background:rgba(var(--bad),{0.85 * strength:.2f})"' if strength >= 0.12 else ""
    return f'<span title="KL {plain(kl, 3)}"{shade}>{text}</span>'


def _histogram(figures: LanguageFigures) -> str:
    """Positions by the divergence of their predictions, logarithmic; mean, median and 99 % marked."""
    found = figures.histogram
    if not found.counts:
        return "<p class=dim>Every prediction is the same in both models.</p>"
    height, top, bottom = 260, 34, 216
    low, high = math.log10(found.edges[0]), math.log10(found.edges[-1])
    peak = max(found.counts)

    def x(value: float) -> float:
        share = (math.log10(max(value, found.edges[0])) - low) / (high - low)
        return _LEFT + min(share, 1.0) * (WIDTH - _LEFT - _RIGHT)

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
        f'<text x="{WIDTH - _RIGHT}" y="{height - 6}" text-anchor="end">KL divergence of one prediction, nats</text>'
    )
    marks = [("median", figures.kl.median), ("mean", figures.kl.mean.value), ("99 %", figures.kl.p99)]
    parts += _marks([(f"{name} {plain(value, 3)}", x(value)) for name, value in marks if value > 0], top, bottom)
    below = f" {thousands(found.below)} positions lie to the left of the first bar." if found.below else ""
    return (
        svg(height, parts, "Histogram of the KL divergence")
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
        anchor = "end" if place + half > WIDTH else "middle"
        lines.append(f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{y + 3}" y2="{bottom}"/>')
        names.append(f'<text class="mark-text" x="{place:.1f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>')
    return lines + names


def _layer_chart(layers: Sequence[LayerFigures]) -> str:
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
    pitch = min(40.0, (WIDTH - _LEFT - _RIGHT) / len(layers))
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
    what = "SNR of the layer's own output, dB" if own else "SNR of the weight, dB"
    form, mark = ("line", "") if pitch < _RING_PITCH else ("ring", '<i class="ring"></i>')
    ring = f"<span>{mark}{form}: SNR of the output with the error of all layers before, dB</span>" if rings else ""
    key = key_of(((colour(n), format_name(*one)) for n, one in enumerate(formats)), f"<span>bar: {what}</span>{ring}")
    return key + svg(height, parts, "SNR of every layer")


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
        parts.append(f'<line class="{kind}" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{thousands(round(value))}</text>')
    return parts


def _bar(x: float, y: float, width: float, height: float, shade: str, told: str) -> str:
    size = f'width="{max(width, 0.5):.2f}" height="{height:.2f}" rx="{min(2.0, width / 4):.1f}"'
    shape = f'x="{x:.2f}" y="{y:.2f}" {size}'
    return f'<rect class="bar" {shape} style="fill:{shade}"><title>{escape(told)}</title></rect>'


def _power(power: int) -> str:
    return {0: "1", 1: "10", -1: "0.1", -2: "0.01", -3: "0.001"}.get(power, f"10{str(power).translate(_SUPERSCRIPT)}")


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
