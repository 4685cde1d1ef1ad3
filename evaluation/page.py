"""The look that all pages share: one HTML file that needs nothing beside it, no script, no font, no picture from
elsewhere; light or dark as the reader's system is, and readable on a telephone. Pages are made of these parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ov_weight_compression.evaluation.page_style import STYLE

__all__ = ["cards_of", "document", "folded", "fragment", "heading", "html_table", "key_of", "pairs_of", "section"]


def document(title: str, sections: Iterable[str]) -> str:
    """The whole page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>body{{margin:0}}{STYLE}</style></head>"
        f'<body class="ovwc"><main>{"".join(sections)}</main></body></html>\n'
    )


def fragment(sections: Iterable[str]) -> str:
    """Some sections, for a notebook's cell."""
    return f'<style>{STYLE}</style><div class="ovwc" style="padding:12px 16px">{"".join(sections)}</div>'


def heading(name: str, more: str, told: str, notes: Iterable[str] = ()) -> str:
    """The top of a page: what it is about, one line that says how it was made, and what the reader must know."""
    boxes = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    told = told[:1].upper() + told[1:]
    return f"<h1>{escape(name)} <span>{escape(more)}</span></h1><p class=dim>{escape(told)}</p>{boxes}"


def section(title: str, *parts: str) -> str:
    """A part of the page with its title."""
    return f"<h2>{escape(title)}</h2>{''.join(parts)}"


def cards_of(cards: Iterable[tuple[str, str, str]]) -> str:
    """The figures that matter most, large: name, value, and what else there is to say of it."""
    inside = "".join(
        f'<div class="card"><small>{escape(name)}</small><b>{escape(value)}</b><small>{escape(more)}</small></div>'
        for name, value, more in cards
    )
    return f'<div class="cards">{inside}</div>'


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1, texts: Sequence[int] = ()) -> str:
    """A table whose first `names` columns are names, which may break anywhere; `texts` are columns of words."""
    kinds = ["name" if n < names else "words left" if n in texts else "number" for n in range(len(head))]
    top = "".join(
        f'<th class="left">{escape(cell)}</th>' if n in texts else f"<th>{escape(cell)}</th>"
        for n, cell in enumerate(head)
    )
    lines = []
    for row in rows:
        cells = (f'<td class="{kind}">{escape(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "".join(lines)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def pairs_of(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are, in two columns."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in pairs)}</dl>"


def key_of(entries: Iterable[tuple[str, str]]) -> str:
    """What the colours of a chart mean: CSS colours and names."""
    inside = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for colour, name in entries)
    return f'<div class="key">{inside}</div>'


def folded(title: str, inside: str) -> str:
    """What is shown when somebody asks for it."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"
