"""A progress bar for weights that are being computed and written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ov_weight_compression.ir_utils.progress import Bar, progress_bar
from ov_weight_compression.passes.files import Progress
from ov_weight_compression.passes.report import Report

__all__ = ["weights_bar"]


class _OfWeights(Progress):
    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._advance: Callable[[int], None] = lambda elements: None

    def start(self, name: str, report: Report) -> None:
        self._bar.clear()
        self._advance = self._bar.start(name, sum(row.elements for row in report.rows))

    def advance(self, elements: int) -> None:
        self._advance(elements)


@contextmanager
def weights_bar() -> Iterator[Progress]:
    """A bar on standard error while the block runs; nothing where that is not a terminal."""
    with progress_bar(shares=True) as bar:
        yield _OfWeights(bar)
