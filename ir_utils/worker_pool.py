"""Threads that work off jobs for one caller. A job is one weight, cut into tasks that threads run in any order; small
ones that are alike are one task together, for most of what each costs alone is the interpreter's.

Whoever wants jobs computed has a pool of its own: one call of `run_all`, or one thread that asks for constants. So
nothing is shared between callers but the jobs, which are not changed by running them. A pool's threads start with its
first task and end by themselves when they have had nothing to do for a while.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from ov_weight_compression.ir_utils.errors import CompressionError, WorkError

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
