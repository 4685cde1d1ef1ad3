"""The report for people: shares per format, what got something else than asked for, what was left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ov_weight_compression.ir_utils.wording import human_bytes, terminal_table

if TYPE_CHECKING:
    from ov_weight_compression.passes.report import Report, Row

__all__ = ["print_report"]

_NAMED = 3


def _shares_table(report: Report) -> Any:
    numbers = ("group", "weights", "params", "in ratio", "before", "after", "bits")
    table = terminal_table("Compressed weights", {"format": "word", **dict.fromkeys(numbers, "number")})
    everything = sum(row.elements for row in report.rows) or 1
    decided = sum(row.elements for row in report.rows if row.in_ratio) or 1
    for share in report.shares:
        table.add_row(
            share.mode,
            "channel" if share.group_size < 0 else str(share.group_size),
            f"{share.weights} / {len(report.rows)}",
            f"{share.elements / everything:.0%}",
            f"{share.ratio_elements / decided:.0%} ({share.ratio_weights})" if share.ratio_weights else "–",
            human_bytes(share.bytes_before),
            human_bytes(share.bytes_after),
            f"{8 * share.bytes_after / share.elements:.2f}",
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        str(len(report.rows)),
        "100%" if report.rows else "–",
        "",
        human_bytes(report.bytes_before),
        human_bytes(report.bytes_after),
        f"{report.bits_per_weight:.2f}",
    )
    return table


def _reasons_table(title: str, heading: str, rows: list[tuple[str, int, int]]) -> Any:
    table = terminal_table(title, {heading: "text", "constants": "number", "bytes": "number"})
    for reason, count, size in rows:
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


def _format_and_reason(row: Row) -> str:
    group = "" if row.group_size < 0 else f", group {row.group_size}"
    return f"{row.mode}{group}: {row.reason}"


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


def print_report(report: Report, console: Any) -> None:
    """Print the tables to a rich console."""
    if not report.rows:
        console.print("No weight was compressed.")
    else:
        console.print(_shares_table(report))
    exceptions = _by_reason((_format_and_reason(row), row.bytes_after) for row in report.rows if row.reason)
    if exceptions:
        console.print(_reasons_table("Not simply the mode asked for", "format and reason", exceptions))
    if report.skips:
        skips = _by_reason((skip.reason, skip.bytes) for skip in report.skips)
        console.print(_reasons_table("Left as they are", "reason", skips))
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
    for warning in report.warnings:
        console.print(f"note: {warning}", style="yellow", highlight=False, soft_wrap=True)
