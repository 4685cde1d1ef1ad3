"""Weights computed by threads: those that postponed constants ask for, a little ahead, in a bounded amount of memory.

A job is one weight: what computes it (its `Encoding`), and where its parts go, codes, zero points and scales: each into
a tensor or straight to its place in a file. They come from one computation, cut into pieces that threads run in any
order; small weights that are alike are begun together, for most of what each costs alone is the interpreter's.

`ov.save_model` asks for the parts in graph order; while it writes one weight, the next ones are computed, as many as
fit into `look_ahead` bytes. A part is handed out once and forgotten; asking again computes again, so that a model can
be saved twice, or saved and compiled. The package's own `save_model` gives all parts places, and runs all jobs at once.

All clones of a model ask the same pipeline. What is under way belongs to the thread that asks (OpenVINO calls the
makers of constants in the thread that saves or compiles), so any number of threads may save, compile and clone at once:
each has its own walk through the jobs, with threads of its own, which start with the first job and end by themselves
when they have had nothing to do for a while. Only the encodings are shared, which running does not change. A process
that was forked begins anew.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import CompressionError, WorkError
from ov_weight_compression.ir_utils.file_io import ForeignFiles, WriteBehind, write_at
from ov_weight_compression.ir_utils.types import Array, element_type, tensor_bytes

Task = Callable[[], None]

_T = TypeVar("_T")
_R = TypeVar("_R")

Held = Callable[[], AbstractContextManager[object]]
"""What each thread enters for as long as it works: resources that are freed with the last one."""

_TURNS = 64
_IDLE_SECONDS = 0.1
_IDLE_TIMES = 10  # with a look in between at whether the interpreter ends
_TOGETHER_BYTES = 1 << 17
"""Of jobs that are begun together: as much as the quantiser takes in one run, most often."""
_MOST_AHEAD = 64  # batches: enough to keep every thread busy, and few enough to look through


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


@dataclass(frozen=True)
class Part:
    """One constant as it will be stored: OpenVINO's name of its type, and its shape."""

    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes in the .bin file."""
        return tensor_bytes(math.prod(self.shape), element_type(self.type).bitwidth)


class Sink(Protocol):
    """Where a part goes piece by piece: memory, or the output file itself."""

    def room(self, offset: int, size: int) -> Array:
        """Memory (uint8) to put in what will be written at byte `offset`; this thread's until it asks again."""

    def write(self, offset: int, data: Array) -> None:
        """Put the bytes of `data` at byte `offset` of the part."""


@dataclass(frozen=True, eq=False)
class MemorySink:
    """The bytes of a tensor, or of a mapped file."""

    bytes: Array

    def room(self, offset: int, size: int) -> Array:
        """The place itself."""
        return self.bytes[offset : offset + size]

    def write(self, offset: int, data: Array) -> None:
        """Copy what does not lie there already."""
        data = data.reshape(-1).view(np.uint8)
        target = self.bytes[offset : offset + data.size]
        if not np.may_share_memory(target, data):  # it is `room`
            target[:] = data


@dataclass(frozen=True, eq=False)
class FileSink:
    """A stretch of an open file that pieces are written into, from any thread."""

    descriptor: int
    offset: int
    behind: WriteBehind | None = None

    def room(self, offset: int, size: int) -> Array:
        """Memory of the calling thread, which its next call hands out again."""
        buffer: Array | None = getattr(_own, "buffer", None)
        if buffer is None or buffer.size < size:
            buffer = _own.buffer = np.empty(size, dtype=np.uint8)
        return buffer[:size]

    def write(self, offset: int, data: Array) -> None:
        """Put the bytes of `data` at byte `offset` of the stretch."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        start = self.offset + offset
        write_at(self.descriptor, view, start)
        if self.behind is not None:
            self.behind.note(start, len(view))


_own = threading.local()


class Encoding(Protocol):
    """What computes a weight's constants. Running it changes nothing of it."""

    @property
    def name(self) -> str:
        """The weight's, for errors."""
        ...

    @property
    def identity(self) -> Hashable | None:
        """Equal for weights whose constants are the same bytes, which are then stored once; None is equal to none."""
        ...

    @property
    def parts(self) -> Mapping[str, Part]:
        """The constants; the first is computed in pieces."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held while it is computed in memory."""
        ...

    @property
    def together(self) -> Hashable | None:
        """Equal for small weights that `begin` takes together; None for one that is computed alone."""
        ...

    def begin(self, jobs: Sequence[Job]) -> tuple[Sequence[Task], Task]:
        """The tasks that put this weight's computed parts, and those of others that are computed together with it,
        where they go, to be run in any order and thread; and what is to be run after the last. The first job is its
        own."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """A weight to be computed, and where its parts go: into sinks of their own, else into tensors."""

    encoding: Any
    sinks: Mapping[str, Sink] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    """Complete when it has been run."""

    def sink(self, name: str) -> Sink:
        """Of a part; asked for once."""
        if name in self.sinks:
            return self.sinks[name]
        part = self.encoding.parts[name]
        # A tensor that owns its memory: one over a numpy array dangles once that is collected.
        tensor = self.tensors[name] = ov.Tensor(element_type(part.type), ov.Shape(list(part.shape)))
        return MemorySink(tensor.data.reshape(-1).view(np.uint8))


@dataclass(eq=False)
class JobBatch:
    """Jobs that are begun together, most often one."""

    jobs: list[Job] = field(default_factory=list)
    nbytes: int = 0


@dataclass(eq=False)
class Batches:
    """Jobs in the order in which they were added, and which of them are begun together."""

    each: list[JobBatch] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    """Of each job: which batch it is in, and where there."""
    _open: dict[Hashable, int] = field(default_factory=dict)

    def add(self, job: Job) -> int:
        """Append a job, to the batch of those before it that are alike if there is room; its number."""
        number, together, nbytes = len(self.each), job.encoding.together, job.encoding.nbytes
        if together is not None:
            number = self._open.get(together, number)
            if number < len(self.each) and self.each[number].nbytes + nbytes > _TOGETHER_BYTES:
                number = len(self.each)
            self._open[together] = number
        if number == len(self.each):
            self.each.append(JobBatch())
        batch = self.each[number]
        self.places.append((number, len(batch.jobs)))
        batch.jobs.append(job)
        batch.nbytes += nbytes
        return len(self.places) - 1


@dataclass(eq=False)
class Run:
    """A batch under way, or over: then its jobs have their tensors or an error."""

    jobs: Sequence[Job]
    nbytes: int
    tasks: deque[Task] = field(default_factory=deque)
    finish: Task | None = None
    left: int = 0
    """Tasks that are not done."""
    fetched: int = 0
    """Of how many jobs all parts have been fetched."""
    error: BaseException | None = None
    over: bool = False

    def fail(self, caught: BaseException) -> None:
        """Note what went wrong first, as the caller is to be told; the rest of the tasks is dropped."""
        self.tasks.clear()
        if self.error is not None:
            return
        self.error = caught
        if isinstance(caught, (KeyboardInterrupt, SystemExit)):
            return
        failed = self.jobs[0]
        # It may be of any of several: the first that fails alone is named.
        for job in self.jobs if len(self.jobs) > 1 else ():
            try:
                tasks, finish = job.encoding.begin([replace(job, tensors={})])
                for task in tasks:
                    task()
                finish()
            except BaseException as again:
                failed, caught = job, again
                break
        self.error = caught
        if not isinstance(caught, CompressionError):
            self.error = WorkError(f"{failed.encoding.name}: {type(caught).__name__}: {caught}")
            self.error.__cause__ = caught


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
    on_finished: Callable[[Encoding], object] | None = None
    """Called, in whichever thread, after each weight's last piece, for one at a time: for progress bars."""
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
        """Run jobs beside the list, as many at a time as keep every thread busy, and return their tensors. For jobs
        with small ones or none. It returns, or raises, when no thread touches them any more; jobs that are begun when
        one has failed are the last.

        Raises:
            WorkError: a computation failed; names the weight.
        """
        batches = Batches()
        for job in jobs:
            batches.add(job)
        walk = _Walk(self, batches, takes=False)
        try:
            walk.wait(None)
        except BaseException:
            walk.close(wait=True)
            raise
        for run in walk.runs.values():
            if run.error is not None:
                raise run.error
        return [walk.runs[batch].jobs[place].tensors for batch, place in batches.places]


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
                if run is None or lacks or (run.over and run.error is None and part not in run.jobs[place].tensors):
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
        job = run.jobs[place]
        value = job.tensors.pop(part)
        if not job.tensors:
            self._pipeline.files.handed_out(job.encoding.nbytes)
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
        batch = self._batches.each[number]
        run = self.runs[number] = Run([replace(job, tensors={}) for job in batch.jobs], batch.nbytes)
        try:
            tasks, run.finish = run.jobs[0].encoding.begin(run.jobs)
            run.tasks.extend(tasks)
            run.left = len(run.tasks)
        except BaseException as caught:
            run.fail(caught)
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
                        self._pipeline.on_finished(job.encoding)
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
