"""A progress bar for work that takes minutes, and nothing at all where nobody looks at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
