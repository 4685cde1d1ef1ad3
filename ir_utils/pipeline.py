"""Compute what postponed constants ask for: one weight at a time, a little ahead, in a bounded amount of memory.

A `Job` is one weight. Its parts (codes, zero points, scales) come from one computation, cut into pieces that worker
threads run in any order. `ov.save_model` asks for the parts in graph order; while it writes one weight, the workers
compute the next ones, as many as fit into `look_ahead` bytes. A part is handed out once and forgotten; asking again
computes again, so that a model can be saved twice, or saved and compiled.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakSet

from ov_weight_compression.ir_utils.errors import CompressionError, WorkError

__all__ = ["Job", "Pipeline", "Task", "default_threads"]

Task = Callable[[], None]
_IDLE_SECONDS = 0.2
_AT_ONCE = -1  # the number of a run that is no job of the list: before all others


class Job(Protocol):
    """One weight's computation. `begin` allocates and cuts; `finish` hands over the parts once every task has run."""

    name: str

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


@dataclass
class _Run:
    """A job under way, or done and waiting to be fetched."""

    job: Job
    waiting: deque[Task]
    finish: Callable[[], dict[str, Any]]
    left: int
    parts: dict[str, Any] | None = None
    error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.parts is not None or self.error is not None


class _Cancelled(Exception):  # noqa: N818  (a state, never raised)
    """The run was given up because a caller of `take` was interrupted."""


@dataclass(eq=False)
class Pipeline:
    """The jobs of one model in graph order, and the threads that run them when parts are asked for.

    `threads` workers compute; they start with the first request and end when nothing is left to do. An exception in a
    task reaches the caller of `take` as a `WorkError` that names the weight. Ctrl-C in `take` stops the workers after
    the pieces that they are at.
    """

    threads: int = field(default_factory=default_threads)
    look_ahead: int = 64 << 20
    on_finished: Callable[[Job], None] | None = None
    """Called, in whichever thread, after each job's last piece: for progress bars."""
    _jobs: list[Job] = field(default_factory=list)
    _runs: dict[int, _Run] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _workers: int = 0
    _taken: set[int] = field(default_factory=set)
    """Jobs whose parts have all been fetched this time round: nothing to compute ahead."""
    _stopping: bool = False

    def __post_init__(self) -> None:
        _pipelines.add(self)

    def add(self, job: Job) -> int:
        """Append a job; its number is what `take` wants."""
        self._jobs.append(job)
        return len(self._jobs) - 1

    def take(self, number: int, part: str) -> Any:
        """One part of a job, computed now unless it was computed ahead. The caller owns it.

        Raises:
            WorkError: the computation failed; names the weight.
        """
        with self._changed:
            try:
                run = self._finished(number, part)
            except BaseException:
                self._cancel()
                raise
            if run.error is not None:
                self._cancel()
                raise _as_work_error(run.job.name, run.error) from run.error
            parts = run.parts or {}
            value = parts.pop(part)
            if not parts:
                self._runs.pop(number, None)
                self._taken.add(number)
                self._start_ahead(number)
            return value

    def run(self, job: Job, tasks: Sequence[Task], finish: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run a job's tasks now, on the workers, and return what `finish` does.

        Raises:
            WorkError: the computation failed; names the weight.
        """
        run = _Run(job, deque(tasks), finish, len(tasks))
        with self._changed:
            try:
                self._enqueue(_AT_ONCE, run)
                while not run.done:
                    self._changed.wait()
                self._runs.pop(_AT_ONCE, None)
            except BaseException:
                self._cancel()
                raise
        if run.error is not None:
            raise _as_work_error(job.name, run.error) from run.error
        return run.parts or {}

    def stop(self) -> None:
        """Give up what is under way and wait until every worker has ended. A later request starts anew."""
        with self._changed:
            self._cancel()
            self._stopping = True
            self._changed.notify_all()
            while self._workers:
                self._changed.wait()
            self._stopping = False

    def _finished(self, number: int, part: str) -> _Run:
        """The run of a job that holds `part` or has failed; a run that somebody else's Ctrl-C ended is made again."""
        while True:
            run = self._runs.get(number)
            if run is None or (run.parts is not None and part not in run.parts):
                if number in self._taken:  # the model is being saved or compiled once more
                    self._taken.clear()
                run = self._start(number)
            self._start_ahead(number)
            while not run.done:
                self._changed.wait()
            if not isinstance(run.error, _Cancelled):
                return run

    def _start(self, number: int) -> _Run:
        job = self._jobs[number]
        tasks, finish = job.begin()
        run = _Run(job, deque(tasks), finish, len(tasks))
        self._enqueue(number, run)
        return run

    def _enqueue(self, number: int, run: _Run) -> None:
        self._runs[number] = run
        if not run.waiting:
            self._conclude(run)
        while self._workers < self.threads:
            self._workers += 1
            threading.Thread(target=self._work, name="ov-weight-compression", daemon=True).start()
        self._changed.notify_all()

    def _start_ahead(self, number: int) -> None:
        """Start the jobs that follow, while what is held stays within `look_ahead`; what lies behind goes first."""
        held = sum(run.job.nbytes for run in self._runs.values())
        for old in [key for key, run in self._runs.items() if _AT_ONCE < key < number and run.done]:
            if held > self.look_ahead:
                held -= self._jobs[old].nbytes
                del self._runs[old]
        for following in range(number + 1, len(self._jobs)):
            if following in self._runs or following in self._taken:
                continue
            held += self._jobs[following].nbytes
            if held > self.look_ahead:
                return
            self._start(following)

    def _cancel(self) -> None:
        for run in self._runs.values():
            run.waiting.clear()
            if not run.done:
                run.error = _Cancelled()
        self._runs.clear()
        self._changed.notify_all()

    def _work(self) -> None:
        with self._changed:
            while True:
                run = next((run for _, run in sorted(self._runs.items()) if run.waiting), None)
                if run is None:
                    rested = self._stopping or not self._changed.wait(_IDLE_SECONDS)
                    if rested and not any(r.waiting for r in self._runs.values()):
                        self._workers -= 1
                        self._changed.notify_all()
                        return
                    continue
                task = run.waiting.popleft()
                self._changed.release()
                error: BaseException | None = None
                try:
                    task()
                except BaseException as caught:
                    error = caught
                finally:
                    self._changed.acquire()
                del task
                run.left -= 1
                if run.error is None and error is not None:
                    run.error = error
                    run.waiting.clear()
                    self._changed.notify_all()
                elif run.left == 0 and run.error is None:
                    self._conclude(run)
                del run, error

    def _conclude(self, run: _Run) -> None:
        try:
            run.parts = run.finish()
        except BaseException as caught:
            run.error = caught
        if self.on_finished is not None and run.error is None:
            self.on_finished(run.job)
        self._changed.notify_all()


def _as_work_error(name: str, error: BaseException) -> BaseException:
    if isinstance(error, (CompressionError, KeyboardInterrupt)):
        return error
    return WorkError(f"{name}: {type(error).__name__}: {error}")


_pipelines: WeakSet[Pipeline] = WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pipelines.clear)  # a fork has no threads to wait for


@atexit.register
def _stop_all() -> None:
    """The interpreter ends threads where they are, and one that is inside OpenVINO then takes the process down."""
    for pipeline in list(_pipelines):
        pipeline.stop()
