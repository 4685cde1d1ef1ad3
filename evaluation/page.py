"""A comparison as one HTML page that needs nothing beside it: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from ov_weight_compression.evaluation.charts import histogram, layer_chart
from ov_weight_compression.evaluation.comparison import Comparison
from ov_weight_compression.evaluation.figures import Passage, Surprise
from ov_weight_compression.evaluation.layers import LayerFigures
from ov_weight_compression.evaluation.tables import language_rows
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

__all__ = ["render_fragment", "render_page"]


def render_page(comparison: Comparison) -> str:
    """The whole page."""
    title = f"{comparison.base.name} → {comparison.compressed.name}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>body{{margin:0}}{_STYLE}</style></head>"
        f'<body class="ovwc"><main>{"".join(_sections(comparison))}</main></body></html>\n'
    )


def render_fragment(comparison: Comparison) -> str:
    """The head of the page, for a notebook's cell."""
    parts = [_head(comparison), _cards(comparison), _figures(comparison), _outputs(comparison), _formats(comparison)]
    return f'<style>{_STYLE}</style><div class="ovwc" style="padding:12px 16px">{"".join(parts)}</div>'


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
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in comparison.notes)
    return (
        f"<h1>{escape(compressed.name)} <span>compared with {escape(base.name)}</span></h1>"
        f"<p class=dim>{escape(_data(comparison))}. {escape(comparison.arithmetic.describe())}.</p>{notes}"
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
    inside = "".join(
        f'<div class="card"><small>{escape(name)}</small><b>{escape(value)}</b><small>{escape(more)}</small></div>'
        for name, value, more in cards
    )
    return f'<div class="cards">{inside}</div>'


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table whose first `names` columns are names and may break anywhere."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{"name" if n < names else "number"}">{escape(c)}</td>' for n, c in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _figures(comparison: Comparison) -> str:
    rows = language_rows(comparison)
    return f'<div class="figures">{_html_table(("figure", "value"), rows, 0)}</div>' if rows else ""


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
    return "<h2>How far outputs moved</h2>" + _html_table(head, rows)


def _formats(comparison: Comparison) -> str:
    if not comparison.formats:
        return ""
    head = ("format", "weights", "elements", "bytes", "bits per weight", "SNR of the weights, dB", "lowest")
    rows = [
        (
            format_name(one.mode, one.group_size),
            thousands(one.weights),
            thousands(one.elements),
            human_bytes(one.bytes),
            f"{one.bits_per_weight:.2f}",
            db(one.weight_snr_db),
            db(one.weight_snr_db_min),
        )
        for one in comparison.formats
    ]
    return "<h2>Formats</h2>" + _html_table(head, rows)


def _layers(comparison: Comparison) -> str:
    worst = comparison.worst_layers()
    if not worst:
        return ""
    head = ("layer", "format", "weight, dB", "own output, dB", "output, dB")
    title = f"The {len(worst)} layers that lose most, of {len(comparison.layers)}"
    return (
        f"<h2>Where the loss comes from</h2>{layer_chart(comparison.layers)}"
        f"<h2>{title}</h2>{_html_table(head, map(_layer_row, worst))}"
        f"<details><summary>all {len(comparison.layers)} layers</summary>"
        f"{_html_table(head, map(_layer_row, comparison.layers))}</details>"
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
        ("data", data.source + (", made up" if data.synthesised else "")),
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
    inside = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)
    return f"<h2>How this was measured</h2><dl>{inside}</dl>{_definitions(comparison)}"


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


_STYLE = """
.ovwc { --paper:#fff; --panel:#f6f7f9; --line:#dfe3e8; --ink:#1b2430; --dim:#5d6978; --accent:#1f6fb2;
  --bad:200,60,20; --c0:#1f6fb2; --c1:#d9822b; --c2:#3b8f5a; --c3:#8e5bb5; --c4:#b3475a; --c5:#6c7a89;
  color-scheme:light; color:var(--ink);
  background:var(--paper); font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
@media (prefers-color-scheme: dark) { .ovwc { --paper:#12161c; --panel:#1a2029; --line:#2f3845; --ink:#e4e9ef;
  --dim:#97a4b3; --accent:#62aeea; --bad:255,110,60; --c0:#62aeea; --c1:#f0a45a; --c2:#6cc48d; --c3:#bf94e4;
  --c4:#e58395; --c5:#9aa7b4; color-scheme: dark; } }
.ovwc * { box-sizing:border-box; }
.ovwc main { max-width:1080px; margin:0 auto; padding:28px 24px 60px; }
.ovwc h1 { font-size:24px; line-height:1.25; margin:0 0 6px; overflow-wrap:anywhere; }
.ovwc h1 span { color:var(--dim); font-weight:400; }
.ovwc h2 { font-size:18px; margin:38px 0 8px; }
.ovwc p { margin:4px 0 10px; max-width:78ch; }
.ovwc .dim, .ovwc small { color:var(--dim); }
.ovwc .note { border-left:4px solid var(--c1); background:var(--panel); padding:8px 14px; margin:12px 0; }
.ovwc .cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(190px,1fr)); gap:12px; margin:20px 0 8px; }
.ovwc .card { background:var(--panel); border:1px solid var(--line); border-radius:10px; padding:12px 16px; }
.ovwc .card b { display:block; font-size:25px; line-height:1.3; font-weight:650; font-variant-numeric:tabular-nums; }
.ovwc .card small { display:block; }
.ovwc .wide { overflow-x:auto; }
.ovwc table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; font-size:14px; }
.ovwc th { text-align:right; font-weight:600; color:var(--dim); border-bottom:1px solid var(--line); padding:5px 10px;
  vertical-align:bottom; }
.ovwc td { text-align:right; border-bottom:1px solid var(--line); padding:5px 10px; vertical-align:top;
  background:transparent; color:var(--ink); }
.ovwc th:first-child, .ovwc td:first-child, .ovwc th.left, .ovwc td.left { text-align:left; }
.ovwc .name { font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; overflow-wrap:anywhere; }
.ovwc td.number, .ovwc .no-break { white-space:nowrap; }
.ovwc .figures { max-width:640px; }
.ovwc svg { display:block; width:100%; height:auto; }
.ovwc svg text { fill:var(--dim); font:12px system-ui,sans-serif; }
.ovwc svg .grid { stroke:var(--line); stroke-width:1; }
.ovwc svg .axis { stroke:var(--dim); stroke-width:1; }
.ovwc svg .mark { stroke:var(--ink); stroke-width:1.2; stroke-dasharray:4 3; }
.ovwc svg .mark-text { fill:var(--ink); stroke:var(--paper); stroke-width:4; paint-order:stroke; }
.ovwc svg .dot { fill:var(--paper); stroke:var(--ink); stroke-width:1.1; }
.ovwc svg .line { fill:none; stroke:var(--ink); stroke-width:1.3; stroke-linejoin:round; }
.ovwc svg .halo { fill:none; stroke:var(--paper); stroke-width:3.6; stroke-linejoin:round; opacity:.75; }
.ovwc svg .bar:hover { opacity:.7; }
.ovwc .key { display:flex; flex-wrap:wrap; gap:4px 18px; margin:6px 0 2px; color:var(--dim); font-size:13px; }
.ovwc .key i { display:inline-block; width:11px; height:11px; border-radius:3px; margin-right:6px;
  vertical-align:-1px; }
.ovwc .key i.ring { border-radius:50%; border:1.5px solid var(--ink); }
.ovwc .text { font:13px/1.75 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; white-space:pre-wrap;
  overflow-wrap:anywhere; background:var(--panel); border:1px solid var(--line); border-radius:10px;
  padding:12px 16px; }
.ovwc .text span { border-radius:3px; padding:1px 0; }
.ovwc code { font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; background:var(--panel); border-radius:4px;
  padding:1px 4px; white-space:pre-wrap; overflow-wrap:anywhere; color:var(--ink); }
.ovwc .before { color:var(--dim); }
.ovwc details { margin:10px 0; }
.ovwc summary { cursor:pointer; color:var(--accent); }
.ovwc dl { display:grid; grid-template-columns:max-content 1fr; gap:3px 18px; margin:8px 0; font-size:14px; }
.ovwc dt { color:var(--dim); }
.ovwc dd { margin:0; overflow-wrap:anywhere; }
@media (max-width:640px) { .ovwc main { padding:18px 12px 40px; } .ovwc dl { grid-template-columns:1fr; } }
"""
