"""Compute what postponed constants ask for: one weight at a time, a little ahead, in a bounded amount of memory.

A `Job` is one weight, or one of many small ones that are computed together. Its parts (codes, zero points, scales) come
from one computation, cut into pieces that threads run in any order. `ov.save_model` asks for the parts in graph order;
while it writes one weight, the next ones are computed, as many as fit into `look_ahead` bytes. A part is handed out
once and forgotten; asking again computes again, so that a model can be saved twice, or saved and compiled.

All clones of a model ask the same pipeline. What is under way belongs to the thread that asks (OpenVINO calls the
makers of constants in the thread that saves or compiles), so any number of threads may save, compile and clone at once:
each computes for itself. A process that was forked begins anew.

The package's own `save_model` has the jobs write their parts themselves, and runs them all at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from ov_weight_compression.ir_utils.worker_pool import Batches, Held, Job, Run, WorkerPool, default_threads
from ov_weight_compression.ir_utils.write_behind import ForeignFiles

_MOST_AHEAD = 64  # batches: enough to keep every thread busy, and few enough to look through


@dataclass(eq=False)
class Pipeline:
    """The jobs of one model in graph order.

    An exception in a task reaches the caller of `take` as a `WorkError` that names the weight, and what `on_finished`
    raises as it is. Ctrl-C stops the threads after the pieces that they are at.
    """

    threads: int = field(default_factory=default_threads)
    look_ahead: int = 64 << 20
    small_job: int = 32 << 10
    """Bytes below which most of a job's time is the interpreter's, which runs one thread at a time."""
    on_finished: Callable[[Job], object] | None = None
    """Called, in whichever thread, after each job's last piece: for progress bars."""
    held: Held = nullcontext
    """What each thread enters for as long as it works."""
    files: ForeignFiles = field(default_factory=ForeignFiles)
    """What OpenVINO writes the parts into that `take` returns."""
    batches: Batches = field(default_factory=Batches)
    _local: threading.local = field(default_factory=threading.local)

    def add(self, job: Job) -> int:
        """Append a job; its number is what `take` wants."""
        self.batches.add(job)
        return len(self.batches.places) - 1

    def take(self, number: int, part: str) -> Any:
        """One part of a job, computed now unless it was computed ahead. The caller owns it.

        Raises:
            WorkError: the computation failed; names the weight.
        """
        return self._walk().take(*self.batches.places[number], part)

    def run_all(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Run jobs beside the list, as many at a time as keep every thread busy, and return their parts. For jobs with
        small parts or none. It returns, or raises, when no thread touches them any more.

        Raises:
            WorkError: a computation failed; names the weight.
        """
        batches = Batches(jobs)
        runs = WorkerPool(self.threads_for(batches), self.held, self.on_finished, batches.each).run_all()
        for run in runs:
            if run.error is not None:
                raise run.error
        return [runs[batch].parts[place] for batch, place in batches.places]

    def threads_for(self, batches: Batches) -> int:
        """How many threads do these jobs: one where they are small on average. Two would wait for each other, and each
        compile its kernels."""
        return 1 if sum(map(_bytes, batches.each)) < self.small_job * len(batches.places) else self.threads

    def stop(self) -> None:
        """Give up what is under way for this thread and wait until nobody works on it. A later request starts anew."""
        self._walk().stop()

    def _walk(self) -> _Walk:
        walk: _Walk | None = getattr(self._local, "walk", None)
        if walk is None or walk.process != os.getpid():
            walk = self._local.walk = _Walk(self)
        return walk


class _Walk:
    """One thread's way through the jobs. Nobody else touches it."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.process = os.getpid()
        self._pipeline = pipeline
        self._pool = self._new_pool()
        self._runs: dict[int, Run] = {}
        """By the number of the batch."""
        self._held = 0
        """Bytes of the runs."""
        self._taken: set[int] = set()
        """Batches whose parts have all been fetched this time round: nothing to compute ahead."""
        self._following = 0
        """The batch to begin next, ahead of being asked for it."""

    def take(self, number: int, place: int, part: str) -> Any:
        run = self._runs.get(number)
        try:
            lacks = run is not None and place >= len(run.jobs)  # it was added to its batch meanwhile
            if run is None or lacks or (run.over and run.error is None and part not in run.parts[place]):
                run = self._begin_anew(number)
            self._begin_ahead(number)
            self._pool.wait(run)
            if run.error is None and part not in run.parts[place]:  # computed, but that part has been fetched meanwhile
                run = self._begin_anew(number)
                self._pool.wait(run)
            if run.error is not None:
                raise run.error
        except BaseException:
            self._forget_all()
            raise
        value = run.parts[place].pop(part)
        if not run.parts[place]:
            self._pipeline.files.handed_out(run.jobs[place].nbytes)
            run.fetched += 1
        if run.fetched == len(run.jobs):
            self._forget(number)
            self._taken.add(number)
            self._begin_ahead(number)
            if len(self._taken) == len(self._pipeline.batches.each):  # everything is saved
                self._pool.dismiss()
                self._pool = self._new_pool()
        return value

    def stop(self) -> None:
        self._forget_all()
        self._pool.close()
        self._pool = self._new_pool()

    def _new_pool(self) -> WorkerPool:
        pipeline = self._pipeline
        return WorkerPool(pipeline.threads_for(pipeline.batches), pipeline.held, self._tell)

    def _tell(self, job: Job) -> None:
        if self._pipeline.on_finished is not None:
            self._pipeline.on_finished(job)

    def _begin_anew(self, number: int) -> Run:
        """Begin a batch that was not foreseen: out of order, or asked for once more."""
        if number in self._taken:  # the model is being saved or compiled once more
            self._taken.clear()
        self._pool.drop()
        for key in [key for key, run in self._runs.items() if key == number or not run.over]:
            self._forget(key)
        self._following = number + 1
        return self._begin(number)

    def _begin(self, number: int) -> Run:
        jobs = self._pipeline.batches.each[number]
        run = self._runs[number] = self._pool.begin(jobs)
        self._held += _bytes(run.jobs)
        return run

    def _begin_ahead(self, number: int) -> None:
        """Begin the batches that follow, while what is held stays within `look_ahead`; what lies behind goes first."""
        limit, batches = self._pipeline.look_ahead, self._pipeline.batches.each
        if self._held > limit:
            for old in [key for key, run in self._runs.items() if key < number and run.over]:
                if self._held > limit:
                    self._forget(old)
        for _ in range(_MOST_AHEAD):
            following = self._following
            if following >= len(batches) or len(self._runs) > _MOST_AHEAD:
                return
            if following not in self._runs and following not in self._taken:
                if self._held + _bytes(batches[following]) > limit:
                    return
                self._begin(following)
            self._following += 1

    def _forget(self, number: int) -> None:
        self._held -= _bytes(self._runs.pop(number).jobs)

    def _forget_all(self) -> None:
        self._pool.drop()
        self._runs.clear()
        self._held = 0


def _bytes(jobs: Sequence[Job]) -> int:
    return sum(job.nbytes for job in jobs)
