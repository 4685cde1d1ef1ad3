"""The worst predictions and the worst texts of a report, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ov_weight_compression.evaluation.passages import Passage, Surprise
from ov_weight_compression.evaluation.wording import plain, probability

__all__ = ["passages", "surprises"]


def surprises(found: Sequence[Surprise]) -> str:
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


def passages(found: Sequence[Passage]) -> str:
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
