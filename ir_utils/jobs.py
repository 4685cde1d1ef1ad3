"""What the pipeline computes: a job is one weight, cut into tasks that threads run in any order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

__all__ = ["Job", "Task", "default_threads"]

Task = Callable[[], None]


class Job(Protocol):
    """One weight's computation. `begin` allocates and cuts; `finish` hands over the parts once every task has run."""

    @property
    def name(self) -> str:
        """The weight's, for errors."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held from `begin` until the parts are taken."""
        ...

    def begin(self) -> tuple[Sequence[Task], Callable[[], dict[str, Any]]]:
        """The tasks, to be run in any order and thread, and what returns the parts by name after the last."""
        ...


def default_threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS where it is set, else the processors that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
