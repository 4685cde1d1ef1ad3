"""Compute what postponed constants ask for: one weight at a time, a little ahead, in a bounded amount of memory.

A `Job` is one weight. Its parts (codes, zero points, scales) come from one computation, cut into pieces that worker
threads run in any order. `ov.save_model` asks for the parts in graph order; while it writes one weight, the workers
compute the next ones, as many as fit into `look_ahead` bytes. A part is handed out once and forgotten; asking again
computes again, so that a model can be saved twice, or saved and compiled.

The package's own `save_model` has the jobs write their parts themselves, and runs them all at once.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet

from ov_weight_compression.ir_utils.errors import CompressionError, WorkError
from ov_weight_compression.ir_utils.jobs import Job, Task, default_threads

__all__ = ["Pipeline"]

_IDLE_SECONDS = 0.2


@dataclass
class _Run:
    """A job under way, or done and waiting to be fetched."""

    number: int
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
    _queue: deque[tuple[int, Job]] = field(default_factory=deque)
    """Jobs of `run_all` that no worker has begun; their numbers are negative, so that they come first."""
    _results: list[dict[str, Any] | None] = field(default_factory=list)
    _failed: _Run | None = None
    """The first of them that failed."""

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

    def run_all(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Run jobs beside the list, as many at a time as keep every worker busy, and return their parts. For jobs with
        small parts or none; one call at a time. It returns, or raises, when no worker touches them any more.

        Raises:
            WorkError: a computation failed; names the weight.
        """
        try:
            failed = self._run_through(jobs)
        except BaseException:
            self.stop()
            raise
        if failed is not None:
            self.stop()
            assert failed.error is not None
            raise _as_work_error(failed.job.name, failed.error) from failed.error
        return [parts or {} for parts in self._results]

    def _run_through(self, jobs: Sequence[Job]) -> _Run | None:
        """The first run that failed, or None when all are done."""
        with self._changed:
            self._queue = deque((number - len(jobs), job) for number, job in enumerate(jobs))
            self._results, self._failed = [None] * len(jobs), None
            self._start_workers()
            while self._failed is None and None in self._results:
                self._changed.wait()
            return self._failed

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
        run = self._begin(number, self._jobs[number])
        self._start_workers()
        return run

    def _begin(self, number: int, job: Job) -> _Run:
        tasks: Sequence[Task] = ()
        try:
            tasks, finish = job.begin()
        except BaseException as caught:
            finish = partial(_raise, caught)
        run = self._runs[number] = _Run(number, job, deque(tasks), finish, len(tasks))
        if not tasks:
            self._conclude(run)
        return run

    def _start_workers(self) -> None:
        while self._workers < self.threads:
            self._workers += 1
            threading.Thread(target=self._work, name="ov-weight-compression", daemon=True).start()
        self._changed.notify_all()

    def _start_ahead(self, number: int) -> None:
        """Start the jobs that follow, while what is held stays within `look_ahead`; what lies behind goes first."""
        held = sum(run.job.nbytes for run in self._runs.values())
        for old in [key for key, run in self._runs.items() if 0 <= key < number and run.done]:
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
        self._queue.clear()
        for run in self._runs.values():
            run.waiting.clear()
            if not run.done:
                run.error = _Cancelled()
        self._runs.clear()
        self._changed.notify_all()

    def _work(self) -> None:
        with self._changed:
            while True:
                run = self._next()
                if run is None:
                    rested = self._stopping or not self._changed.wait(_IDLE_SECONDS)
                    if rested and not self._queue and not any(r.waiting for r in self._runs.values()):
                        self._workers -= 1
                        self._changed.notify_all()
                        return
                    continue
                task = run.waiting.popleft()
                error = self._unlocked(task)
                del task
                run.left -= 1
                if run.error is None and error is not None:
                    run.error = error
                    run.waiting.clear()
                    self._settled(run)
                elif run.left == 0 and run.error is None:
                    self._conclude(run)
                del run, error

    def _next(self) -> _Run | None:
        """A run with something to do: the first of those under way, or the next of the queue."""
        run = next((run for _, run in sorted(self._runs.items()) if run.waiting), None)
        while run is None and self._queue:
            begun = self._begin(*self._queue.popleft())
            run = begun if begun.waiting else None
        return run

    def _unlocked(self, work: Callable[[], None]) -> BaseException | None:
        """Do a piece of work while others hold the lock; what it raised."""
        self._changed.release()
        try:
            work()
        except BaseException as caught:
            return caught
        finally:
            self._changed.acquire()
        return None

    def _conclude(self, run: _Run) -> None:
        """Let a job whose tasks are done put its parts together."""

        def put_together() -> None:
            run.parts = run.finish()

        run.error = self._unlocked(put_together) or run.error
        if self.on_finished is not None and run.error is None:
            self.on_finished(run.job)
        self._settled(run)

    def _settled(self, run: _Run) -> None:
        if run.number < 0:
            self._runs.pop(run.number, None)
            self._results[run.number] = run.parts
            if run.error is not None:
                self._failed = self._failed or run
                self._queue.clear()
        self._changed.notify_all()


def _raise(error: BaseException) -> dict[str, Any]:
    raise error


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
