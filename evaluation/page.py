"""A comparison as one HTML page that needs nothing beside it: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ov_weight_compression.evaluation.comparison import Comparison
from ov_weight_compression.evaluation.layers import LayerFigures
from ov_weight_compression.evaluation.page_charts import histogram, layer_chart
from ov_weight_compression.evaluation.page_style import STYLE
from ov_weight_compression.evaluation.page_text import passages, surprises
from ov_weight_compression.evaluation.tables import language_rows
from ov_weight_compression.evaluation.wording import bytes_of, count, db, format_name, layer_name, percent, plain

__all__ = ["render_fragment", "render_page"]


def render_page(comparison: Comparison) -> str:
    """The whole page."""
    title = f"{comparison.base.name} → {comparison.compressed.name}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>body{{margin:0}}{STYLE}</style></head>"
        f'<body class="ovwc"><main>{"".join(_sections(comparison))}</main></body></html>\n'
    )


def render_fragment(comparison: Comparison) -> str:
    """The head of the page, for a notebook's cell."""
    parts = [_head(comparison), _cards(comparison), _figures(comparison), _outputs(comparison), _formats(comparison)]
    return f'<style>{STYLE}</style><div class="ovwc" style="padding:12px 16px">{"".join(parts)}</div>'


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
        yield "<h2>Predictions that changed most</h2>" + surprises(comparison.worst_positions)
    if comparison.worst_passages:
        yield "<h2>Texts that suffered most</h2>"
        yield "<p class=dim>The stronger the colour, the more the prediction of a token changed.</p>"
        yield passages(comparison.worst_passages)
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
    amount = (
        f"{count(data.samples)} windows of {data.window} tokens" if data.window else f"{count(data.samples)} samples"
    )
    return f"{data.source}, {amount}"


def _cards(comparison: Comparison) -> str:
    found, base, compressed = comparison.language, comparison.base.bytes, comparison.compressed.bytes
    cards = []
    if found is not None:
        cards += [
            ("mean KL divergence", plain(found.kl.mean.value, 3), f"± {plain(found.kl.mean.error, 2)} nats"),
            ("same likeliest token", percent(found.same_top.value), f"± {percent(found.same_top.error, 2)}"),
            ("perplexity ratio", plain(found.perplexity_ratio.value, 4), f"± {plain(found.perplexity_ratio.error, 2)}"),
        ]
    for one in comparison.outputs[:3]:
        cards.append((f"{one.name}: SNR", f"{db(one.snr_db)} dB", f"lowest cosine {plain(one.cosine_min, 5)}"))
    share = percent(compressed / base if base else None)
    cards.append(("size of the weights", share, f"{bytes_of(base)} → {bytes_of(compressed)}"))
    inside = "".join(
        f'<div class="card"><small>{escape(name)}</small><b>{escape(value)}</b><small>{escape(more)}</small></div>'
        for name, value, more in cards
    )
    return f'<div class="cards">{inside}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
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
    return f'<div class="figures">{_table(("figure", "value"), rows, 0)}</div>' if rows else ""


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
            count(one.rows),
            one.row,
            *(plain(value, 6) for value in (one.cosine_mean, one.cosine_min, one.cosine_p1)),
            plain(one.relative_l2),
            db(one.snr_db),
            percent(one.neighbours) if one.neighbours is not None else "–",
        )
        for one in comparison.outputs
    ]
    return "<h2>How far outputs moved</h2>" + _table(head, rows)


def _formats(comparison: Comparison) -> str:
    if not comparison.formats:
        return ""
    head = ("format", "weights", "elements", "bytes", "bits per weight", "SNR of the weights, dB", "lowest")
    rows = [
        (
            format_name(one.mode, one.group_size),
            count(one.weights),
            count(one.elements),
            bytes_of(one.bytes),
            f"{one.bits_per_weight:.2f}",
            db(one.weight_snr_db),
            db(one.weight_snr_db_min),
        )
        for one in comparison.formats
    ]
    return "<h2>Formats</h2>" + _table(head, rows)


def _layers(comparison: Comparison) -> str:
    worst = comparison.worst_layers()
    if not worst:
        return ""
    head = ("layer", "format", "weight, dB", "own output, dB", "output, dB")
    title = f"The {len(worst)} layers that lose most, of {len(comparison.layers)}"
    return (
        f"<h2>Where the loss comes from</h2>{layer_chart(comparison.layers)}"
        f"<h2>{title}</h2>{_table(head, map(_layer_row, worst))}"
        f"<details><summary>all {len(comparison.layers)} layers</summary>"
        f"{_table(head, map(_layer_row, comparison.layers))}</details>"
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
        ("windows or samples", count(data.samples)),
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
