"""A progress bar for weights that are being computed and written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ov_weight_compression.passes.files import Progress
from ov_weight_compression.passes.report import Report

__all__ = ["progress_bar"]


class _Bar(Progress):
    def __init__(self, bar: Any) -> None:
        self._bar = bar
        self._task: Any = None

    def start(self, name: str, report: Report) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(name, total=sum(row.elements for row in report.rows))

    def advance(self, elements: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, elements)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A bar on standard error while the block runs; nothing where that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _Bar(bar)
