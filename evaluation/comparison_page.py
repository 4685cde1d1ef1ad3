"""A comparison as a page to look at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from ov_weight_compression.evaluation.charts import histogram, layer_chart
from ov_weight_compression.evaluation.comparison import Comparison, format_rows, language_rows
from ov_weight_compression.evaluation.figures import Passage, Surprise
from ov_weight_compression.evaluation.layers import LayerFigures
from ov_weight_compression.evaluation.page import cards_of, document, fragment, heading, html_table, pairs_of
from ov_weight_compression.ir_utils.wording import (
    db,
    format_name,
    human_bytes,
    layer_name,
    percent,
    plain,
    probability,
    thousands,
)


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
        yield "<h2>How far predictions moved</h2>" + histogram(comparison.language)
        yield _figures(comparison)
    yield _outputs(comparison)
    yield _layers(comparison)
    if comparison.worst_positions:
        yield "<h2>Predictions that changed most</h2>" + _surprises(comparison.worst_positions)
    if comparison.worst_passages:
        yield "<h2>Texts that suffered most</h2>"
        yield "<p class=dim>The stronger the colour, the more the prediction of a token changed.</p>"
        yield _passages(comparison.worst_passages)
    yield _making(comparison)


def _head(comparison: Comparison) -> str:
    base, compressed = comparison.base, comparison.compressed
    return heading(
        compressed.name,
        f"compared with {base.name}",
        f"{_data(comparison)}. {comparison.arithmetic.describe()}.",
        comparison.notes,
    )


def _data(comparison: Comparison) -> str:
    data = comparison.data
    amount = f"{thousands(data.samples)} " + (f"windows of {data.window} tokens" if data.window else "samples")
    return f"{data.source}, {amount}"


def _cards(comparison: Comparison) -> str:
    found, base, compressed = comparison.language, comparison.base.bytes, comparison.compressed.bytes
    cards = []
    if found is not None:
        cards += [
            (
                "mean KL divergence",
                plain(found.kl.mean.value, 3),
                f"± {plain(found.kl.mean.error, 2)} nats",
            ),
            ("same likeliest token", percent(found.same_top.value), f"± {percent(found.same_top.error, 2)}"),
            (
                "perplexity ratio",
                plain(found.perplexity_ratio.value, 4),
                f"± {plain(found.perplexity_ratio.error, 2)}",
            ),
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
    head = (
        "output",
        "rows",
        "a row is",
        "cosine mean",
        "minimum",
        "1 %",
        "relative L2",
        "SNR dB",
        "10 neighbours kept",
    )
    rows = [
        (
            one.name,
            thousands(one.rows),
            one.row,
            *(plain(value, 6) for value in (one.cosine_mean, one.cosine_min, one.cosine_p1)),
            plain(one.relative_l2),
            db(one.snr_db),
            percent(one.neighbours) if one.neighbours is not None else "–",
        )
        for one in comparison.outputs
    ]
    return "<h2>How far outputs moved</h2>" + html_table(head, rows)


def _formats(comparison: Comparison) -> str:
    if not comparison.formats:
        return ""
    head = ("format", "weights", "elements", "bytes", "bits per weight", "SNR of the weights, dB", "lowest")
    return "<h2>Formats</h2>" + html_table(head, format_rows(comparison))


def _layers(comparison: Comparison) -> str:
    worst = comparison.worst_layers()
    if not worst:
        return ""
    head = ("layer", "format", "weight, dB", "own output, dB", "output, dB")
    title = f"The {len(worst)} layers that lose most, of {len(comparison.layers)}"
    return (
        f"<h2>Where the loss comes from</h2>{layer_chart(comparison.layers)}"
        f"<h2>{title}</h2>{html_table(head, map(_layer_row, worst))}"
        f"<details><summary>all {len(comparison.layers)} layers</summary>"
        f"{html_table(head, map(_layer_row, comparison.layers))}</details>"
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
        (
            "properties",
            ", ".join(f"{name}={value}" for name, value in arithmetic.properties) or "the device's defaults",
        ),
        ("OpenVINO", arithmetic.openvino),
    ]
    if data.window:
        pairs.append(("window and stride", f"{data.window} and {data.stride} tokens"))
    if data.context is not None:
        last = "scored for KL and agreement" if data.score_last else "not scored"
        first = f"all but the first {data.context}" if data.context else "all"
        pairs.append(("positions", f"{first} of each window; the last, without a next token, {last}"))
    return f"<h2>How this was measured</h2>{pairs_of(pairs)}{_definitions(comparison)}"


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
