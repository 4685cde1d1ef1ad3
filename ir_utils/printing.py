"""How figures are written and tables are drawn, in reports, in terminals and on pages alike; and a progress bar for
work that takes minutes, which is nothing at all where nobody looks at a terminal.

`rich` is imported when something is drawn.
"""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_WIDE = 120
_COLUMNS: dict[str, dict[str, Any]] = {
    "text": {"min_width": 10, "overflow": "fold"},
    "word": {"no_wrap": True},
    "number": {"no_wrap": True, "justify": "right"},
}


def plain(value: float | None, digits: int = 4) -> str:
    """A number to some significant digits, without an exponent where it can be read without."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if not 1e-5 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}".replace("-", "−")


def with_error(value: float, error: float, unit: str = "") -> str:
    """A figure and its standard error, written to the error's second digit."""
    if not math.isfinite(value) or not math.isfinite(error) or error == 0:
        return plain(value) + unit
    power = math.floor(math.log10(abs(value))) if value else 0
    if power < -4:
        decimals = max(0, 1 + power - math.floor(math.log10(error)))
        figures = f"({value / 10**power:.{decimals}f} ± {error / 10**power:.{decimals}f})e−{-power}{unit}"
        return figures.replace("(-", "(−")
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}{unit}".replace("-", "−")


def percent(value: float | None, digits: int = 3) -> str:
    """A share of 0..1 as a percentage."""
    return "–" if value is None else f"{plain(100 * value, digits)} %"


def probability(value: float | None) -> str:
    """A probability as a percentage; below a hundredth of a percent only that it is."""
    return "< 0.01 %" if value is not None and value < 1e-4 else percent(value)


def db(value: float | None) -> str:
    """Decibels to one decimal; infinite where nothing was lost."""
    if value is None or math.isnan(value):
        return "–"
    return ("∞" if value > 0 else "−∞") if math.isinf(value) else f"{value:.1f}".replace("-", "−")


def human_bytes(size: float) -> str:
    """A size as people read it: decimal units, three figures."""
    unit = "B"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    decimals = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{decimals}f} {unit}"


def thousands(number: int) -> str:
    """A whole number with its thousands apart."""
    return f"{number:,}".replace(",", " ")


def format_name(mode: str, group_size: int | None) -> str:
    """A format and its group."""
    if group_size is None:
        return f"{mode}, not compressed"
    return f"{mode}, per channel" if group_size < 0 else f"{mode}, group {group_size}"


def short_format(mode: str, group_size: int) -> str:
    """A format and its group, for narrow tables."""
    return mode if group_size < 0 else f"{mode} g{group_size}"


def short_name(name: str, most: int = 60) -> str:
    """A long name with its middle left out: the end of an exporter's names says most."""
    return name if len(name) <= most else f"{name[: most // 4]}…{name[-(most - most // 4 - 1) :]}"


def layer_name(layer: str, weight: str) -> str:
    """What a reader knows a layer by: its weight's name as the checkpoint had it, else the operation's."""
    name = weight.removesuffix("_compressed").removeprefix("self.")
    return name if "." in name else layer


def terminal_table(title: str, columns: Mapping[str, str], rows: Iterable[Sequence[str]] = ()) -> Table:
    """A table for a terminal; `columns` says of each heading what stands below it: `text` may be broken, a `word` and a
    `number` stay in one line."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", box=SIMPLE_HEAD, title_style="bold", padding=(0, 1, 0, 0), pad_edge=False
    )
    for heading, holds in columns.items():
        table.add_column(heading, **_COLUMNS[holds])
    for row in rows:
        table.add_row(*row)
    return table


def result_console() -> Console:
    """The console for results: standard output; wide enough for tables where that is no terminal, and without colours
    there or where NO_COLOR is set."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(width=wide)


def as_text(show: Callable[[Console], None], width: int) -> str:
    """What `show` prints to a console of so many columns, as plain text."""
    from rich.console import Console

    target = io.StringIO()
    show(Console(file=target, width=width, no_color=True, force_terminal=False))
    return target.getvalue().rstrip()


class Bar:
    """What is told of progress; `bar` is rich's, None where nobody looks."""

    def __init__(self, bar: Any = None) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}

    def start(self, stage: str, total: int | None) -> Callable[[int], None]:
        """A line for a stage of so many steps; gives `advance(steps)`, which any thread may call."""
        if self._bar is None:
            return lambda steps: None
        bar, task = self._bar, self._bar.add_task(stage, total=total)
        self._tasks[stage] = task
        return lambda steps: bar.advance(task, steps)

    def show(self, stage: str, done: int, total: int | None) -> None:
        """How far a stage is, whether it was started or not."""
        if self._bar is not None:
            if stage not in self._tasks:
                self.start(stage, total)
            self._bar.update(self._tasks[stage], completed=done, total=total)

    def clear(self) -> None:
        """Forget all stages."""
        for task in self._tasks.values():
            self._bar.remove_task(task)
        self._tasks.clear()


@contextmanager
def progress_bar(*, quiet: bool = False, shares: bool = False) -> Iterator[Bar]:
    """A bar on standard error while the block runs, in steps or (`shares`) in percent.

    Silent when `quiet` or when standard error is not a terminal. `rich` is imported only when there is a bar to draw.
    """
    if quiet or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = TaskProgressColumn() if shares else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar)
