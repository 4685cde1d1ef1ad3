"""What compression did, or would do, as a page to look at: formats, where the bytes are, what was left and why."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from ov_weight_compression.evaluation.page import (
    WIDTH,
    cards_of,
    colour,
    document,
    folded,
    heading,
    html_table,
    key_of,
    pairs_of,
    section,
    svg,
)
from ov_weight_compression.ir_utils.printing import format_name, human_bytes, layer_name, percent, plain, thousands
from ov_weight_compression.passes.budget_outcome import BudgetOutcome, budget_lines
from ov_weight_compression.passes.report import Report, Row, exceptions, left_in_floats, ratio_line, share_cells

_BLOCK = re.compile(r"^(.*?[./_]\d+)(?=[./_])")
"""The part of a layer's name that names its block."""
_MOST_BARS = 200
_CUT = 2.0
"""A bar so many times as long as the longest of all others is cut, so that those can be read."""


def render_report(
    reports: Mapping[str, Report],
    title: str,
    told: str,
    asked: Sequence[tuple[str, str]],
    planned: bool = False,
) -> str:
    """The whole page.

    Args:
        reports: of each model, by its name.
        title: what was compressed.
        told: one line on what was done.
        asked: names and values of what was asked for, and with what it was made.
        planned: nothing of it was done.
    """
    return document(title, _sections(reports, title, told, asked, planned))


def _sections(
    reports: Mapping[str, Report],
    title: str,
    told: str,
    asked: Sequence[tuple[str, str]],
    planned: bool,
) -> Iterator[str]:
    rows = [row for report in reports.values() for row in report.rows]
    colours = _colours(rows)
    notes = dict.fromkeys(text for report in reports.values() for text in report.warnings)
    yield heading(title, "planned" if planned else "compressed", told, notes)
    yield cards_of(_cards(list(reports.values())))
    for name, report in reports.items():
        if len(reports) > 1:
            yield f"<h1 class=part>{escape(name)}</h1>"
        yield from _model(report, colours, planned)
    yield section("How it was made", pairs_of(asked))


def _colours(rows: Sequence[Row]) -> dict[tuple[str, int], str]:
    """A colour for each format, the one of most bytes first."""
    sizes: dict[tuple[str, int], int] = {}
    for row in rows:
        sizes[row.mode, row.group_size] = sizes.get((row.mode, row.group_size), 0) + row.bytes_after
    return {key: colour(n) for n, key in enumerate(sorted(sizes, key=lambda key: (-sizes[key], key)))}


def _cards(reports: Sequence[Report]) -> list[tuple[str, str, str]]:
    before, after = sum(one.bytes_before for one in reports), sum(one.bytes_after for one in reports)
    elements = sum(row.elements for one in reports for row in one.rows)
    skips = [skip for one in reports for skip in one.skips]
    noun = "constant" if len(skips) == 1 else "constants"
    left = f"{len(skips)} {noun} left in floats, {human_bytes(sum(skip.bytes for skip in skips))}"
    share = percent(after / before if before else 1)
    budget = [] if len(reports) != 1 or reports[0].budget is None else _budget_cards(reports[0].budget)
    return [
        ("size of the weights", human_bytes(after), f"of {human_bytes(before)}, {share}"),
        ("bits a weight", f"{8 * after / elements:.2f}" if elements else "–", "scales and all else included"),
        ("weights compressed", thousands(sum(len(one.rows) for one in reports)), left),
        *budget,
    ]


def _budget_cards(outcome: BudgetOutcome) -> list[tuple[str, str, str]]:
    time = ("time of a token", f"{outcome.token_time:.2f} ×", "that of int4_sym in groups of 128, predicted")
    if outcome.unit == "none":
        return [time]
    if outcome.measured is None:
        return [("predicted divergence", plain(outcome.predicted, 3), outcome.unit), time]
    more = f"{outcome.unit}; predicted {plain(outcome.predicted, 3)}"
    return [("measured divergence", plain(outcome.measured, 3), more), time]


def _model(report: Report, colours: Mapping[tuple[str, int], str], planned: bool) -> Iterator[str]:
    if report.rows:
        yield section("Where the bytes are", _before_and_after(report, colours), _layer_map(report.rows, colours))
        became = "What the weights would become" if planned else "What the weights became"
        yield section(became, _formats(report), f"<p class=dim>{escape(ratio_line(report))}</p>")
    if report.budget is not None:
        yield section("What other sizes would cost", *_budget_parts(report.budget))
    yield from _reasons(report)
    if report.rows:
        head = ("weight", "shape", "was", "format", "before", "after", "bits", "why")
        yield folded(f"all {len(report.rows)} compressed weights", html_table(head, map(_row, report.rows), texts=(7,)))


def _formats(report: Report) -> str:
    everything = sum(row.elements for row in report.rows) or 1
    rows = []
    for share in report.shares:
        *named, before, after, bits = share_cells(report, share)
        rows.append((*named, percent(share.elements / everything), before, after, bits))
    return html_table(("format", "was", "weights", "parameters", "before", "after", "bits a weight"), rows)


def _reasons(report: Report) -> Iterator[str]:
    if rows := exceptions(report):
        head = ("format", "why", "weights", "before", "after")
        yield section("Not in the format asked for, or not simply", html_table(head, rows, texts=(1,)))
    if left := left_in_floats(report):
        yield section("Left in floats", html_table(("why", "constants", "size"), left, 0, (0,)))


def _row(row: Row) -> tuple[str, ...]:
    return (
        layer_name(row.consumer, row.name),
        "×".join(map(str, row.shape)),
        row.element_type,
        format_name(row.mode, row.group_size),
        human_bytes(row.bytes_before),
        human_bytes(row.bytes_after),
        f"{row.bits_per_weight:.2f}",
        row.reason,
    )


def _before_and_after(report: Report, colours: Mapping[tuple[str, int], str]) -> str:
    """Two bars on one scale, and what the colours mean."""
    left = sum(skip.bytes for skip in report.skips)
    before, after = report.bytes_before + left, report.bytes_after + left
    shares = [
        (colours[one.mode, one.group_size], one.bytes_after, format_name(one.mode, one.group_size))
        for one in report.shares
    ]
    added = report.bytes_after - sum(one.bytes_after for one in report.shares)
    own = [*shares, ("var(--c4)", added, "added layers"), ("var(--line)", left, "left in floats")]
    was = [("var(--dim)", report.bytes_before, "weights"), ("var(--line)", left, "left in floats")]
    bars = _bar("before", was, before, before) + _bar("after", own, after, before)
    key = key_of((shade, f"{name}, {human_bytes(size)}") for shade, size, name in own if size)
    return f'<div class="bars tall">{bars}</div>{key}'


def _bar(name: str, parts: Sequence[tuple[str, int, str]], total: int, whole: int, cut: bool = False) -> str:
    """A bar of parts, each (colour, bytes, what it is); `whole` are the bytes of a bar of full length."""
    inside = "".join(
        f'<i style="flex-grow:{size};background:{shade}" title="{escape(told)}: {human_bytes(size)}"></i>'
        for shade, size, told in parts
        if size
    )
    width = min(100.0, 100 * total / whole) if whole else 0.0
    kind = ' class="cut"' if cut else ""
    return (
        f'<div><span title="{escape(name)}">{escape(name)}</span>'
        f'<span><b{kind} style="width:{max(width, 0.3):.2f}%">{inside}</b></span>'
        f"<span>{human_bytes(total)}</span></div>"
    )


def _layer_map(rows: Sequence[Row], colours: Mapping[tuple[str, int], str]) -> str:
    """A bar for each layer (of a network of blocks, for each block), in graph order, in parts by weight."""
    layers: dict[str, list[Row]] = {}
    for row in rows:
        name = layer_name(row.consumer, row.name)
        found = _BLOCK.match(name)
        layers.setdefault(found[1] if found else name, []).append(row)
    if len(layers) < 2:
        return ""
    sizes = {name: sum(row.bytes_after for row in own) for name, own in layers.items()}
    whole = _full_length(sorted(sizes.values()))
    bars = []
    for name, own in list(layers.items())[:_MOST_BARS]:
        parts = [
            (
                colours[row.mode, row.group_size],
                row.bytes_after,
                f"{layer_name(row.consumer, row.name)}\n{format_name(row.mode, row.group_size)}",
            )
            for row in own
        ]
        bars.append(_bar(name, parts, sizes[name], whole, cut=sizes[name] > whole))
    more = f"<p class=dim>and {len(layers) - _MOST_BARS} more</p>" if len(layers) > _MOST_BARS else ""
    cut = " A bar with a torn end is longer than it is drawn." if max(sizes.values()) > whole else ""
    told = f"<p class=dim>Bytes after compression, layer by layer, in parts by weight.{cut}</p>"
    return f'{told}<div class="bars">{"".join(bars)}</div>{more}'


def _full_length(sizes: Sequence[int]) -> int:
    """Bytes of a bar of full length: the largest, unless few layers are far larger than all others."""
    most = len(sizes) // 4
    for place in range(len(sizes) - 1, max(len(sizes) - 1 - most, 0), -1):
        if sizes[place] > _CUT * sizes[place - 1] > 0:
            return sizes[place - 1]
    return sizes[-1] or 1


_HEIGHT, _AXIS, _MARGIN, _TOP, _BOTTOM = 330, 74, 24, 16, 284
_SHARES = 12
_APART_ACROSS, _APART_UP = 76.0, 26.0
_LETTER = 6.4


def _budget_parts(outcome: BudgetOutcome) -> Iterator[str]:
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
    xs, ys = _Scale(sizes, _AXIS, WIDTH - _MARGIN), _Scale(losses, _BOTTOM, _TOP)
    parts = []
    for tick in ys.ticks(_APART_UP):
        parts.append(
            f'<line class="grid" x1="{_AXIS}" x2="{WIDTH - _MARGIN}" y1="{ys(tick):.1f}" y2="{ys(tick):.1f}"/>'
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
            anchor, place = ("end", x - 8) if x > WIDTH - 200 else ("start", x + 8)
            height = y + 18 if x < taken[0] and abs(y - 7 - taken[1]) < 14 else y - 7
            taken = (place + _LETTER * len(name), height)
            parts.append(f'<text x="{place:.1f}" y="{height:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    if outcome.predicted > 0:
        x, y = xs(outcome.bytes), ys(outcome.predicted)
        parts.append(f'<circle class="chosen" cx="{x:.1f}" cy="{y:.1f}" r="6"/>')
        parts.append(f'<text class="mark-text" x="{x:.1f}" y="{y - 12:.1f}" text-anchor="middle">chosen</text>')
    parts.append(f'<text x="{WIDTH - _MARGIN}" y="{_HEIGHT - 6}" text-anchor="end">size of the .bin</text>')
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
