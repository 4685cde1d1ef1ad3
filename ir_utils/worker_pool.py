"""Jobs worked off by threads: those that postponed constants ask for, a little ahead, in a bounded amount of memory.

A job is one weight. Its parts (codes, zero points, scales) come from one computation, cut into pieces that threads run
in any order; small jobs that are alike are begun together, for most of what each costs alone is the interpreter's.

`ov.save_model` asks for the parts in graph order; while it writes one weight, the next ones are computed, as many as
fit into `look_ahead` bytes. A part is handed out once and forgotten; asking again computes again, so that a model can
be saved twice, or saved and compiled. The package's own `save_model` has the jobs write their parts themselves, and
runs them all at once.

All clones of a model ask the same pipeline. What is under way belongs to the thread that asks (OpenVINO calls the
makers of constants in the thread that saves or compiles), so any number of threads may save, compile and clone at once:
each has its own walk through the jobs, with threads of its own, which start with the first job and end by themselves
when they have had nothing to do for a while. Only the jobs are shared, which running does not change. A process that
was forked begins anew.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
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
    """One weight's computation."""

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

    def begin(self, *others: Any) -> tuple[Sequence[Task], Task, Sequence[dict[str, Any]]]:
        """The tasks of this job and of `others`, to be run in any order and thread; what is to be run after the last;
        and the parts of each job by name, which are complete then."""
        ...


_TOGETHER_BYTES = 1 << 17
"""Of jobs that are begun together: as much as the quantiser takes in one run, most often."""


@dataclass(eq=False)
class JobBatch:
    """Jobs that are begun together, most often one."""

    jobs: list[Job] = field(default_factory=list)
    nbytes: int = 0


class Batches:
    """Jobs in the order in which they were added, and which of them are begun together."""

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self.each: list[JobBatch] = []
        self.places: list[tuple[int, int]] = []
        """Of each job: which batch it is in, and where there."""
        self._open: dict[Hashable, int] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> int:
        """Append a job, to the batch of those before it that are alike if there is room; its number."""
        number = len(self.each)
        if job.together is not None:
            number = self._open.get(job.together, number)
            if number < len(self.each) and self.each[number].nbytes + job.nbytes > _TOGETHER_BYTES:
                number = len(self.each)
            self._open[job.together] = number
        if number == len(self.each):
            self.each.append(JobBatch())
        batch = self.each[number]
        self.places.append((number, len(batch.jobs)))
        batch.jobs.append(job)
        batch.nbytes += job.nbytes
        return len(self.places) - 1


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
    """A batch under way, or over: then its jobs have their parts or an error."""

    def __init__(self, batch: JobBatch) -> None:
        self.jobs, self.nbytes = (*batch.jobs,), batch.nbytes
        self.parts: Sequence[dict[str, Any]] = ()
        """Of each job, by name."""
        self.fetched = 0
        """Of how many jobs all parts have been fetched."""
        self.error: BaseException | None = None
        self.over = False
        self.tasks: deque[Task] = deque()
        self.finish: Task | None = None
        try:
            tasks, self.finish, self.parts = self.jobs[0].begin(*self.jobs[1:])
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
    run = Run(JobBatch([job], job.nbytes))
    try:
        for task in run.tasks:
            task()
        if run.finish is not None:
            run.finish()
    except BaseException as caught:
        run.fail(caught)
    return run.error


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
    """Bytes below which most of a job's time is the interpreter's, which runs one thread at a time: jobs that are
    smaller on average are done by one. Two would wait for each other, and each compile its kernels."""
    on_finished: Callable[[Job], object] | None = None
    """Called, in whichever thread, after each job's last piece, for one job at a time: for progress bars."""
    held: Held = nullcontext
    """What each thread enters for as long as it works."""
    files: ForeignFiles = field(default_factory=ForeignFiles)
    """What OpenVINO writes the parts into that `take` returns."""
    batches: Batches = field(default_factory=Batches)
    _local: threading.local = field(default_factory=threading.local)

    def take(self, number: int, part: str) -> Any:
        """One part of a job, computed now unless it was computed ahead. The caller owns it.

        Raises:
            WorkError: the computation failed; names the weight.
        """
        walk: _Walk | None = getattr(self._local, "walk", None)
        if walk is None or walk.closed or walk.process != os.getpid():
            walk = self._local.walk = _Walk(self, self.batches)
        return walk.take(*self.batches.places[number], part)

    def stop(self) -> None:
        """Give up what is under way for this thread and wait until nobody works on it. A later request starts anew."""
        walk: _Walk | None = getattr(self._local, "walk", None)
        if walk is not None and walk.process == os.getpid():
            walk.close(wait=True)

    def run_all(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Run jobs beside the list, as many at a time as keep every thread busy, and return their parts. For jobs with
        small parts or none. It returns, or raises, when no thread touches them any more; jobs that are begun when one
        has failed are the last.

        Raises:
            WorkError: a computation failed; names the weight.
        """
        batches = Batches(jobs)
        walk = _Walk(self, batches, takes=False)
        try:
            walk.wait(None)
        except BaseException:
            walk.close(wait=True)
            raise
        for run in walk.runs.values():
            if run.error is not None:
                raise run.error
        return [walk.runs[batch].parts[place] for batch, place in batches.places]


class _Walk:
    """One caller's way through batches. Its threads begin them in order and do their tasks: a little ahead of a caller
    who takes parts (`closed` while it may), else all, as fast as they can."""

    def __init__(self, pipeline: Pipeline, batches: Batches, takes: bool = True) -> None:
        self.process = os.getpid()
        self.closed = not takes
        """Whether threads end as soon as they find nothing to do."""
        self.runs: dict[int, Run] = {}
        """By the number of the batch."""
        self._pipeline, self._batches, self._takes = pipeline, batches, takes
        small = sum(batch.nbytes for batch in batches.each) < pipeline.small_job * len(batches.places)
        self._threads = 1 if small else pipeline.threads
        self._following = 0
        """The batch to begin next."""
        self._held = 0
        """Bytes of the runs."""
        self._taken: set[int] = set()
        """Batches whose parts have all been fetched this time round: nothing to compute ahead."""
        self._waiting: deque[Run] = deque()
        """Runs with tasks that nobody has begun."""
        self._working = 0
        """Threads."""
        self._lock, self._telling = threading.Lock(), threading.Lock()
        self._more, self._told = threading.Condition(self._lock), threading.Condition(self._lock)
        """For threads that wait for work, and for the caller, who waits for them."""

    def take(self, number: int, place: int, part: str) -> Any:
        """A part of a job, by its places; see `Pipeline.take`."""
        try:
            with self._lock:
                run = self.runs.get(number)
                lacks = run is not None and place >= len(run.jobs)  # it was added to its batch meanwhile
                if run is None or lacks or (run.over and run.error is None and part not in run.parts[place]):
                    if number in self._taken:  # the model is being saved or compiled once more
                        self._taken.clear()
                    if run is not None:
                        self._held -= run.nbytes
                    run = self._begin(number)
                    self._waiting.rotate(1)  # before what was begun ahead
                    self._following = number + 1
                behind = [] if self._held <= self._pipeline.look_ahead else [key for key in self.runs if key < number]
                for old in behind:  # goes first
                    if self._held > self._pipeline.look_ahead and self.runs[old].over:
                        self._held -= self.runs.pop(old).nbytes
            self.wait(run)
            if run.error is not None:
                raise run.error
        except BaseException:
            self.close()
            raise
        value = run.parts[place].pop(part)
        if not run.parts[place]:
            self._pipeline.files.handed_out(run.jobs[place].nbytes)
            run.fetched += 1
        if run.fetched == len(run.jobs):
            with self._lock:
                self._held -= self.runs.pop(number).nbytes
                self._taken.add(number)
                self._start_threads()
            if len(self._taken) == len(self._batches.each):  # everything is saved
                self.close()
        return value

    def _begin(self, number: int) -> Run:
        run = self.runs[number] = Run(self._batches.each[number])
        self._held += run.nbytes
        self._waiting.append(run)
        self._more.notify_all()
        return run

    def wait(self, run: Run | None) -> None:
        """Until a run is over; without one, until all are and no thread is left."""
        with self._lock:
            if run is None or not run.over:
                self._start_threads()
            while self._working and (run is None or not run.over):
                self._told.wait(_IDLE_SECONDS)  # with a look for a Ctrl-C that came just before the wait began
        if run is None or not run.over:  # no thread could be started, or the interpreter ends
            with self._pipeline.held():
                while (run is None or not run.over) and (piece := self._next(patient=False)) is not None:
                    self._do(*piece)

    def close(self, wait: bool = False) -> None:
        """Forget the tasks that nobody has begun; the threads end, and may be waited for."""
        with self._lock:
            self.closed, self._following = True, len(self._batches.each)
            self._waiting.clear()
            self._more.notify_all()
            while wait and self._working:
                self._told.wait()

    def _start_threads(self) -> None:
        """Have threads look for work, as far as there is any."""
        self._more.notify_all()
        while self._working < self._threads and (self._waiting or self._following < len(self._batches.each)):
            thread = threading.Thread(target=self._work, name="ov-weight-compression")
            self._working += 1
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, or the system has no more threads: those that are there do it
                self._working -= 1
                return

    def _work(self) -> None:
        try:
            with self._pipeline.held():
                while (piece := self._next()) is not None:
                    self._do(*piece)
        finally:
            with self._lock:
                self._working -= 1
                self._told.notify()

    def _next(self, patient: bool = True) -> tuple[Run, Task | None] | None:
        """A task, or a run that has none: of those that wait, else of the batch that follows, where there is room for
        it; None where there is nothing more to do."""
        with self._lock:
            for _ in range(_IDLE_TIMES):
                if patient and not threading.main_thread().is_alive():  # whoever still waits does the rest
                    return None
                for _ in range(_MOST_AHEAD):
                    number = self._following
                    if self._waiting or number == len(self._batches.each):
                        break
                    if number not in self.runs and number not in self._taken:
                        held = self._held + self._batches.each[number].nbytes
                        if self._takes and (held > self._pipeline.look_ahead or len(self.runs) > _MOST_AHEAD):
                            break
                        self._begin(number)
                    self._following += 1
                if self._waiting:
                    run = self._waiting[0]
                    task = run.tasks.popleft() if run.tasks else None
                    if not run.tasks:
                        self._waiting.popleft()
                    return run, task
                if self.closed or not patient:
                    return None
                self._more.wait(_IDLE_SECONDS)
            return None

    def _do(self, run: Run, task: Task | None) -> None:
        """A task; with the last of a run its parts are put together."""
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
            elif run.left or (run.error is not None and task is not None):
                return
        del task, error
        try:
            if run.finish is not None and run.error is None:
                run.finish()
        except BaseException as caught:
            run.fail(caught)
        try:
            if self._pipeline.on_finished is not None and run.error is None:
                with self._telling:
                    for job in run.jobs:
                        self._pipeline.on_finished(job)
        except BaseException as caught:
            run.error = caught
        run.finish = None  # what it holds
        with self._lock:
            run.over = True
            if run.error is not None and not self._takes:
                self._waiting.clear()
                self._following = len(self._batches.each)
            if self._takes:  # who waits for all is not woken by each
                self._told.notify()
