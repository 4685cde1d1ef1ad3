"""Threads that work off jobs for one caller. A job is one weight, cut into tasks that threads run in any order; small
ones that are alike are one task together, for most of what each costs alone is the interpreter's.

Whoever wants jobs computed has a pool of its own: one call of `run_all`, or one thread that asks for constants. So
nothing is shared between callers but the jobs, which are not changed by running them. A pool's threads start with its
first task and end by themselves when they have had nothing to do for a while.

**A pipeline** computes what postponed constants ask for, a little ahead, in a bounded amount of memory. A `Job` is one
weight, or one of many small ones that are computed together. Its parts (codes, zero points, scales) come from one
computation, cut into pieces that threads run in any order. `ov.save_model` asks for the parts in graph order; while it
writes one weight, the next ones are computed, as many as fit into `look_ahead` bytes. A part is handed out once and
forgotten; asking again computes again, so that a model can be saved twice, or saved and compiled.

All clones of a model ask the same pipeline. What is under way belongs to the thread that asks (OpenVINO calls the
makers of constants in the thread that saves or compiles), so any number of threads may save, compile and clone at once:
each computes for itself. A process that was forked begins anew.

The package's own `save_model` has the jobs write their parts themselves, and runs them all at once.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ov_weight_compression.ir_utils.errors import CompressionError, WorkError
from ov_weight_compression.ir_utils.file_io import ForeignFiles

Task = Callable[[], None]

_T = TypeVar("_T")
_R = TypeVar("_R")

Held = Callable[[], AbstractContextManager[object]]
"""What each thread enters for as long as it works: resources that are freed with the last one."""

_TURNS = 64
_IDLE_SECONDS = 0.1
_IDLE_TIMES = 10  # with a look in between at whether the interpreter ends


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

    @property
    def together(self) -> Hashable | None:
        """Equal for small jobs that are begun together; None for one that is done alone."""
        ...

    def begin(self, *others: Any) -> tuple[Sequence[Task], Callable[[], Sequence[dict[str, Any]]]]:
        """The tasks of this job and of `others`, to be run in any order and thread, and what returns the parts of each
        by name after the last."""
        ...


_TOGETHER_BYTES = 1 << 17
"""Of jobs that are begun together: as much as the quantiser takes in one run, most often."""


class Batches:
    """Jobs in the order in which they were added, and which of them are begun together."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self.each: list[list[Job]] = []
        self.places: list[tuple[int, int]] = []
        """Of each job: which batch it is in, and where there."""
        self._open: dict[Hashable, tuple[int, int]] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> None:
        """Append a job, to the batch of those before it that are alike if there is room."""
        kind, number = job.together, len(self.each)
        if kind is not None:
            number, held = self._open.get(kind, (number, 0))
            if held + job.nbytes > _TOGETHER_BYTES:
                number, held = len(self.each), 0
            self._open[kind] = number, held + job.nbytes
        if number == len(self.each):
            self.each.append([])
        self.places.append((number, len(self.each[number])))
        self.each[number].append(job)


def default_threads() -> int:
    """Threads to compute with: OMP_NUM_THREADS where it is set, else the processors that this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[_T], _R], parts: Sequence[_T], threads: int) -> list[_R]:
    """The function's results for all parts, in their order; a thread takes several at a time where there are many."""
    if threads == 1 or len(parts) < 2:
        return [function(part) for part in parts]
    step = -(-len(parts) // (threads * _TURNS))
    with ThreadPoolExecutor(threads) as pool:
        shares = [parts[start : start + step] for start in range(0, len(parts), step)]
        return [one for found in pool.map(lambda share: [function(part) for part in share], shares) for one in found]


class Run:
    """Jobs under way together, most often one, or over: then they have their parts or an error."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = (*jobs,)
        self.parts: Sequence[dict[str, Any]] = ()
        """Of each job, by name."""
        self.fetched = 0
        """Of how many jobs all parts have been fetched."""
        self.error: BaseException | None = None
        self.over = False
        self.tasks: deque[Task] = deque()
        self.finish: Callable[[], Sequence[dict[str, Any]]] = tuple
        try:
            tasks, self.finish = self.jobs[0].begin(*self.jobs[1:])
            self.tasks.extend(tasks)
        except BaseException as caught:
            self.fail(caught)
        self.left = len(self.tasks)

    def fail(self, caught: BaseException) -> None:
        """Note what went wrong first, as the caller is to be told; the rest of the tasks is dropped."""
        self.tasks.clear()
        if self.error is not None:
            return
        self.error = caught
        if isinstance(caught, (KeyboardInterrupt, SystemExit)):
            return
        if len(self.jobs) > 1:  # it may be of any of them: the first that fails alone is named
            self.error = next((error for error in map(_error_alone, self.jobs) if error is not None), caught)
        if not isinstance(self.error, CompressionError):
            self.error = WorkError(f"{self.jobs[0].name}: {type(caught).__name__}: {caught}")
            self.error.__cause__ = caught


def _error_alone(job: Job) -> BaseException | None:
    """What goes wrong with a job that is done here; None where nothing does."""
    run = Run((job,))
    try:
        for task in run.tasks:
            task()
        run.finish()
    except BaseException as caught:
        run.fail(caught)
    return run.error


class WorkerPool:
    """Up to `threads` threads for the jobs that are begun here, and then for those of `jobs`, batch by batch.

    Tasks are done in the order in which their jobs were begun. `tell` is called in whichever thread finishes a job,
    by one at a time; what it raises becomes the job's error, as it is.
    """

    def __init__(
        self,
        threads: int,
        held: Held,
        tell: Callable[[Job], object] | None = None,
        jobs: Iterable[Sequence[Job]] | None = None,
    ) -> None:
        self._threads, self._held, self._tell = threads, held, tell
        self._telling = threading.Lock()
        self._jobs: Iterator[Sequence[Job]] | None = None if jobs is None else iter(jobs)
        self._waiting: deque[Run] = deque()
        self._lock = threading.Lock()
        self._more, self._changed = threading.Condition(self._lock), threading.Condition(self._lock)
        self._gone = threading.Condition(self._lock)  # apart: whoever waits for the threads is not woken by each job
        self._working = 0
        self._closed = jobs is not None
        self.taken: list[Run] = []
        """The runs of `jobs`, in their order."""

    def begin(self, jobs: Sequence[Job]) -> Run:
        """Begin jobs together; the threads work on them from now on."""
        run = Run(jobs)
        with self._lock:
            if run.tasks:
                self._waiting.append(run)
                self._start_threads()
                self._more.notify(len(run.tasks))
                return run
        self._conclude(run)
        return run

    def wait(self, run: Run) -> None:
        """Until a run is over."""
        with self._lock:
            while not run.over and self._working:
                self._changed.wait()
        if not run.over:  # no thread could be started
            self._work_here(lambda: run.over)

    def run_all(self) -> list[Run]:
        """Work off all of `jobs`; those that are begun when one has failed are the last."""
        with self._lock:
            self._start_threads()
        try:
            self.join()
            self._work_here(lambda: False)
        except BaseException:
            self.close()
            raise
        return self.taken

    def drop(self) -> None:
        """Forget the tasks that nobody has begun, and their jobs."""
        with self._lock:
            self._clear()

    def close(self) -> None:
        """Forget the tasks that nobody has begun, and wait until the threads have ended."""
        self.dismiss()
        self.join()

    def dismiss(self) -> None:
        """As `close`, without waiting."""
        with self._lock:
            self._clear()
            self._closed = True
            self._more.notify_all()

    def join(self) -> None:
        """Wait until the threads have ended, which they do without being told only where `jobs` were given."""
        with self._lock:
            while self._working:
                self._gone.wait()

    def _clear(self) -> None:
        for run in self._waiting:
            run.tasks.clear()
        self._waiting.clear()
        self._jobs = None

    def _start_threads(self) -> None:
        while self._working < self._threads:
            thread = threading.Thread(target=self._work, name="ov-weight-compression")
            self._working += 1
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, or the system has no more threads: those that are there do it
                self._working -= 1
                return

    def _work(self) -> None:
        try:
            with self._held():
                while (piece := self._next()) is not None:
                    self._do(*piece)
        finally:
            with self._lock:
                self._working -= 1
                if self._waiting and threading.main_thread().is_alive():  # begun while this thread was leaving
                    self._start_threads()
                self._changed.notify_all()
                self._gone.notify_all()

    def _work_here(self, done: Callable[[], bool]) -> None:
        with self._held():
            while not done() and (piece := self._next(patient=False)) is not None:
                self._do(*piece)

    def _next(self, patient: bool = True) -> tuple[Run, Task | None] | None:
        """A task, or a job that has none; None where there is nothing more to do."""
        with self._lock:
            for _ in range(_IDLE_TIMES):
                if patient and not threading.main_thread().is_alive():  # whoever still waits does the rest
                    return None
                if self._waiting:
                    run = self._waiting[0]
                    task = run.tasks.popleft()
                    if not run.tasks:
                        self._waiting.popleft()
                    return run, task
                jobs = None if self._jobs is None else next(self._jobs, None)
                if jobs is not None:
                    run = Run(jobs)
                    self.taken.append(run)
                    if not run.tasks:
                        return run, None
                    task = run.tasks.popleft()
                    if run.tasks:
                        self._waiting.append(run)
                    return run, task
                if self._closed or not patient:
                    return None
                self._more.wait(_IDLE_SECONDS)
            return None

    def _do(self, run: Run, task: Task | None) -> None:
        error: BaseException | None = None
        try:
            if task is not None and run.error is None:
                task()
        except BaseException as caught:
            error = caught
        with self._lock:
            run.left -= task is not None
            if error is not None:
                run.fail(error)
                if run in self._waiting:
                    self._waiting.remove(run)
            elif run.left or run.error is not None:
                return
        del task, error
        self._conclude(run)

    def _conclude(self, run: Run) -> None:
        """Put together the parts of a run whose tasks are done."""
        try:
            if run.error is None:
                run.parts = run.finish()
        except BaseException as caught:
            run.fail(caught)
        try:
            if self._tell is not None and run.error is None:
                with self._telling:
                    for job in run.jobs:
                        self._tell(job)
        except BaseException as caught:
            run.error = caught
        run.finish = tuple  # what it holds
        with self._lock:
            run.over = True
            if run.error is not None and self._jobs is not None:
                self._clear()
            self._changed.notify_all()


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
