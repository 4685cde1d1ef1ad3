"""The speed benchmark's tables as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import tables
from benchmarks.speed_runs import STAGES, Floor, Row

HEADER = (
    "",
    *(f"{stage}, s" for stage in STAGES),
    "range, s",
    "anonymous, MB",
    "resident, MB",
    "saved, MB",
    "NNCF / this",
)


def ratio_to(rows: Sequence[Row], row: Row) -> float | None:
    """How many times NNCF's total is the row's, round by round, the median of that."""
    rival = next((each for each in rows if each.contender.tool == "nncf" and each.totals), None)
    if rival is None or not row.totals or row is rival:
        return None
    return statistics.median(theirs / ours for theirs, ours in zip(rival.totals, row.totals, strict=True))


def comparison(rows: Sequence[Row], disk: Floor) -> str:
    """One mode on one model: a line for each contender, then what the disk alone takes."""
    lines = []
    for row in rows:
        if row.failure is not None:
            lines.append([f"{row.contender.name}: {row.failure}", *["–"] * (len(HEADER) - 1)])
            continue
        lines.append(
            [
                row.contender.name,
                *(tables.seconds(row.stages.get(stage)) for stage in STAGES),
                f"{min(row.totals):.1f} to {max(row.totals):.1f}",
                tables.megabytes(row.anonymous),
                tables.megabytes(row.resident),
                tables.megabytes(row.size),
                tables.times(ratio_to(rows, row)),
            ]
        )
    ours = next((row for row in rows if row.contender.tool == "own" and row.totals), None)
    text = tables.markdown(HEADER, lines)
    text += f"\nThe disk alone: `cp` of the source {tables.seconds(disk.copy)} s"
    text += f", writing the saved size {tables.seconds(disk.write)} s"
    if ours is not None:
        share = (disk.copy + disk.write) / statistics.median(ours.totals)
        text += f", together {share:.2f} of {ours.contender.name}"
    return f"{text}.\n"


def limit_table(rows: Sequence[tuple[str, Row]]) -> str:
    """Runs under a hard limit; each row with the model's name."""
    lines = []
    for model, row in rows:
        outcome = f"{tables.seconds(row.totals[0])} s" if row.totals else row.failure or "failed"
        lines.append(
            [model, row.contender.name, outcome, tables.megabytes(row.anonymous), tables.megabytes(row.charged)]
        )
    return tables.markdown(("model", "", "total", "anonymous, MB", "charged to the group, MB"), lines)


def growth_table(rows: Sequence[tuple[float, float, Row]]) -> str:
    """Time and memory over the size: each row with parameters in billions and the source's bytes."""
    lines = []
    for parameters, size, row in rows:
        total = statistics.median(row.totals) if row.totals else None
        lines.append(
            [
                row.contender.name,
                f"{parameters:.2f}",
                f"{size / 1e9:.2f}",
                tables.seconds(total) if total is not None else row.failure or "failed",
                "–" if total is None else f"{total / (size / 1e9):.2f}",
                tables.megabytes(row.anonymous),
                tables.megabytes(row.resident),
            ]
        )
    lines.sort(key=lambda line: line[0])
    header = ("", "parameters, B", "source, GB", "total, s", "s a GB", "anonymous, MB", "resident, MB")
    return tables.markdown(header, lines)


def small_table(rows: Sequence[tuple[int, Row]]) -> str:
    """The seconds of each contender's pass and saving, a column for each number of weights, beside whole processes."""
    counts = list(dict.fromkeys(count for count, _ in rows))
    header = ("", *(f"{count}: pass and save, s" for count in counts), *(f"{count}: all, s" for count in counts))
    lines = []
    for name in dict.fromkeys(row.contender.name for _, row in rows):
        found = {count: row for count, row in rows if row.contender.name == name}
        stages = [found[count].stages for count in counts]
        inner = [stage.get("pass", 0) + stage.get("save", 0) if stage else None for stage in stages]
        lines.append(
            [name, *map(tables.seconds, inner), *(tables.seconds(stage.get("total")) for stage in stages)],
        )
    return tables.markdown(header, lines)
