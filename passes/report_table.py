"""The report for people: shares per format, what got something else than asked for, what was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ov_weight_compression.ir_utils.wording import format_name, human_bytes, terminal_table

if TYPE_CHECKING:
    from rich.table import Table

    from ov_weight_compression.passes.report import Report, Row, Share

__all__ = ["exceptions_table", "explained", "print_report", "ratio_line", "types_before"]

_NAMED = 3


def _shares_table(report: Report, title: str) -> Any:
    columns = {"format": "word", "was": "word"}
    numbers = ("weights", "params", "before", "after", "bits/weight")
    table = terminal_table(title, {**columns, **dict.fromkeys(numbers, "number")})
    everything = sum(row.elements for row in report.rows) or 1
    for share in report.shares:
        table.add_row(
            format_name(share.mode, share.group_size),
            types_before(report, share),
            str(share.weights),
            f"{share.elements / everything:.1%}",
            human_bytes(share.bytes_before),
            human_bytes(share.bytes_after),
            f"{8 * share.bytes_after / share.elements:.2f}",
        )
    table.add_section()
    table.add_row(
        "all of them",
        "",
        str(len(report.rows)),
        "100.0%",
        human_bytes(report.bytes_before),
        human_bytes(report.bytes_after),
        f"{report.bits_per_weight:.2f}",
    )
    return table


def types_before(report: Report, share: Share) -> str:
    """What the weights of a share were: "f16"."""
    own = (row for row in report.rows if (row.mode, row.group_size) == (share.mode, share.group_size))
    return ", ".join(sorted({row.element_type for row in own}))


def ratio_line(report: Report) -> str:
    """What a ratio below 1 decided, in words; nothing where none was asked for."""
    decided = [row for row in report.rows if row.in_ratio]
    if float(report.recipe.get("ratio", 1)) >= 1 or not decided:
        return ""
    mode = report.recipe["mode"]
    own = [row for row in decided if row.mode == mode]
    share = sum(row.elements for row in own) / sum(row.elements for row in decided)
    return (
        f"ratio {report.recipe['ratio']}: {mode} for {len(own)} of the {len(decided)} weights that it is about, "
        f"{share:.1%} of their parameters; the others are the most sensitive."
    )


def exceptions_table(report: Report) -> Table | None:
    """Weights that got another format than the mode, or got it with something to be said, and why."""
    rows = [row for row in report.rows if row.reason]
    if not rows:
        return None
    columns = {"format": "word", "why": "text"}
    numbers = dict.fromkeys(("weights", "before", "after"), "number")
    table = terminal_table("Not in the format asked for, or not simply, and why", {**columns, **numbers})
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((format_name(row.mode, row.group_size), explained(row.reason)), []).append(row)
    for (name, reason), own in sorted(grouped.items(), key=lambda item: -sum(row.bytes_after for row in item[1])):
        sizes = (human_bytes(sum(getattr(row, key) for row in own)) for key in ("bytes_before", "bytes_after"))
        table.add_row(name, reason, str(len(own)), *sizes)
    return table


def explained(reason: str) -> str:
    """A reason for those who do not know the options."""
    for start, more in _EXPLAINED.items():
        if reason == start or reason.startswith((f"{start};", f"{start},")):
            return f"{start} {more}{reason[len(start) :]}"
    return reason


_EXPLAINED = {
    "embedding": "(gets the backup mode; all_layers gives it the mode)",
    "last layer": "(gets the backup mode; all_layers gives it the mode)",
}


def _left_table(report: Report) -> Any:
    table = terminal_table("Left in floats, and why", {"why": "text", "constants": "number", "size": "number"})
    for reason, count, size in _by_reason((skip.reason, skip.bytes) for skip in report.skips):
        table.add_row(reason, str(count), human_bytes(size))
    return table


def _by_reason(constants: Iterable[tuple[str, int]]) -> list[tuple[str, int, int]]:
    """Constants, each with its reason and its bytes, counted by reason: reason, constants, bytes; the most bytes
    first."""
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for reason, size in constants:
        counts[reason] += 1
        sizes[reason] += size
    return [(reason, counts[reason], size) for reason, size in sizes.most_common()]


def _scaling_lines(report: Report) -> list[str]:
    """What AWQ did, counted; inserted Multiplies by name, for they cost something at run time."""
    if not report.scalings:
        return []
    counts = Counter(scaling.into for scaling in report.scalings)
    lines = [
        f"AWQ scaled {len(report.scalings) - counts['']} of {len(report.scalings)} layer inputs: "
        f"{counts['norm']} folded into norms, {counts['weight']} into weights, "
        f"{counts['multiply']} by an inserted Multiply."
    ]
    lines += [f"  inserted {scaling.name}" for scaling in report.scalings if scaling.into == "multiply"]
    reasons = Counter(scaling.reason for scaling in report.scalings if not scaling.into)
    return lines + [f"  {count} left: {reason}" for reason, count in reasons.most_common()]


def _correction_lines(report: Report) -> list[str]:
    """What LoRA correction added, and what it could not."""
    if not report.corrections:
        return []
    added = [line for line in report.corrections if not line.reason]
    size = human_bytes(sum(line.bytes for line in added))
    ranks = sorted({line.rank for line in added}, reverse=True)
    kinds = f" of rank {', '.join(map(str, ranks))}" if ranks else ""
    lines = [f"LoRA correction: adapters{kinds} beside {len(added)} of {len(report.corrections)} layers, {size}."]
    left = [line.left for line in added if line.left is not None]
    if left:
        lines.append(f"  they leave {sum(left) / len(left):.0%} of the output error of a layer, on average")
    reasons = Counter(line.reason for line in report.corrections if line.reason)
    return lines + [f"  {count} without: {reason}" for reason, count in reasons.most_common()]


def print_report(report: Report, console: Any, notes: bool = True, planned: bool = False) -> None:
    """Print the tables to a rich console, and what the caller is warned of unless that is said elsewhere; `planned` of
    what was not done."""
    if report.note:
        console.print(report.note, highlight=False, soft_wrap=True)
    if not report.rows:
        console.print("No weight would be compressed." if planned else "No weight was compressed.")
    else:
        console.print(_shares_table(report, "What the weights would become" if planned else "What the weights became"))
    exceptions = exceptions_table(report)
    for part in (ratio_line(report), exceptions, _left_table(report) if report.skips else None):
        if part:
            console.print(part, highlight=False, soft_wrap=isinstance(part, str))
    if report.budget is not None:
        from ov_weight_compression.passes.budget_table import print_budget

        print_budget(report.budget, console)
    for line in (*_scaling_lines(report), *_correction_lines(report)):
        console.print(line, highlight=False, soft_wrap=True)
    if "data" in report.recipe:
        console.print(f"Calibrated with {report.recipe['data']}.", highlight=False, soft_wrap=True)
    for reason, count in Counter(report.unused.values()).items():
        names = [name for name, why in report.unused.items() if why == reason]
        more = ", …" if count > _NAMED else ""
        line = f"In no model: {count} of the checkpoint's tensors: {reason} ({', '.join(names[:_NAMED])}{more})."
        console.print(line, highlight=False, soft_wrap=True)
    for warning in report.warnings if notes else ():
        console.print(f"note: {warning}", style="yellow", highlight=False, soft_wrap=True)
