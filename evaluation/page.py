"""The look that all pages share: one HTML file that needs nothing beside it, no script, no font, no picture from
elsewhere; light or dark as the reader's system is, and readable on a telephone. Pages are made of these parts.
Everything in the style sheet is below the class `ovwc`, so that a notebook keeps its own looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

WIDTH = 1032
"""Of a drawing, in its own units."""
_COLOURS = 8


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


def key_of(entries: Iterable[tuple[str, str]], before: str = "") -> str:
    """What the colours of a chart mean: CSS colours and names, behind what else is to be said of it."""
    inside = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for colour, name in entries)
    return f'<div class="key">{before}{inside}</div>'


def folded(title: str, inside: str) -> str:
    """What is shown when somebody asks for it."""
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def colour(number: int) -> str:
    """The colour of the so-manieth format, as CSS."""
    return f"var(--c{number % _COLOURS})"


def svg(height: int, parts: Sequence[str], title: str) -> str:
    """A drawing `WIDTH` units wide, which takes the width of the page."""
    inside = "".join(parts)
    drawing = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{inside}</svg>'
    return f'<div class="wide">{drawing}</div>'


STYLE = """
.ovwc { --paper:#fff; --panel:#f6f7f9; --line:#dfe3e8; --ink:#1b2430; --dim:#5d6978; --accent:#1f6fb2;
  --bad:200,60,20; --c0:#1f6fb2; --c1:#d9822b; --c2:#3b8f5a; --c3:#8e5bb5; --c4:#b3475a; --c5:#6c7a89;
  --c6:#2a9d9d; --c7:#a68a12;
  color-scheme:light; color:var(--ink);
  background:var(--paper); font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
@media (prefers-color-scheme: dark) { .ovwc { --paper:#12161c; --panel:#1a2029; --line:#2f3845; --ink:#e4e9ef;
  --dim:#97a4b3; --accent:#62aeea; --bad:255,110,60; --c0:#62aeea; --c1:#f0a45a; --c2:#6cc48d; --c3:#bf94e4;
  --c4:#e58395; --c5:#9aa7b4; --c6:#5fd0cf; --c7:#d9c04a; color-scheme: dark; } }
.ovwc * { box-sizing:border-box; }
.ovwc main { max-width:1080px; margin:0 auto; padding:28px 24px 60px; }
.ovwc h1 { font-size:24px; line-height:1.25; margin:0 0 6px; overflow-wrap:anywhere; }
.ovwc h1 span { color:var(--dim); font-weight:400; }
.ovwc h2 { font-size:18px; margin:38px 0 8px; }
.ovwc p { margin:4px 0 10px; max-width:78ch; }
.ovwc .dim, .ovwc small { color:var(--dim); }
.ovwc .note { border-left:4px solid var(--c1); background:var(--panel); padding:8px 14px; margin:12px 0; }
.ovwc .cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(165px,1fr)); gap:12px; margin:20px 0 8px; }
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
.ovwc h1.part { margin-top:48px; font-size:20px; border-top:1px solid var(--line); padding-top:18px; }
.ovwc td.words { min-width:16em; }
.ovwc .bars { margin:10px 0; font-size:13px; }
.ovwc .bars > div { display:grid; grid-template-columns:minmax(90px,24%) 1fr 76px; gap:10px; align-items:center;
  padding:1px 0; }
.ovwc .bars > div > span { overflow:hidden; text-overflow:ellipsis; white-space:nowrap; color:var(--dim); }
.ovwc .bars > div > span:first-child { direction:rtl; text-align:left; }
.ovwc .bars > div > span:last-child { text-align:right; font-variant-numeric:tabular-nums; }
.ovwc .bars b { display:flex; height:14px; border-radius:3px; overflow:hidden; gap:1px; }
.ovwc .bars.tall b { height:26px; border-radius:5px; }
.ovwc .bars b i { min-width:1px; flex-basis:0; }
.ovwc .bars b i:hover { opacity:.7; }
.ovwc .bars b.cut { clip-path:polygon(0 0,100% 0,calc(100% - 7px) 25%,100% 50%,calc(100% - 7px) 75%,100% 100%,0 100%); }
.ovwc svg .curve { fill:none; stroke:var(--c0); stroke-width:2.4; stroke-linejoin:round; }
.ovwc svg .other { fill:var(--paper); stroke:var(--dim); stroke-width:1.6; }
.ovwc svg .chosen { fill:var(--c1); stroke:var(--paper); stroke-width:2; }
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
.ovwc td.name { min-width:11em; }
.ovwc .key + p { margin-top:14px; }
@media (max-width:640px) { .ovwc svg { min-width:700px; } .ovwc .figures td { white-space:normal; }
  .ovwc .bars > div { grid-template-columns:31% 1fr 66px; gap:7px; }
  .ovwc main { padding:18px 12px 40px; } .ovwc dl { grid-template-columns:1fr; } }
"""
