"""Jobs computed when they are asked for, a little ahead, once each, whatever goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov_weight_compression.ir_utils.errors import OptionError, WorkError
from ov_weight_compression.ir_utils.worker_pool import Job, Pipeline, default_threads


@dataclass
class Counting:
    """An encoding of some pieces that notes what happens to it."""

    name: str
    nbytes: int = 100
    pieces: int = 4
    fail: BaseException | None = None
    wait: threading.Event | None = None
    begun: int = 0
    finished: int = 0
    seen: list[int] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    """Set when the first piece is under way."""

    together: str | None = None
    beside: list[str] = field(default_factory=list)
    """Names of those that it was last begun with."""

    def begin(self, jobs: Sequence[Job]) -> tuple[list[Callable[[], None]], Callable[[], None]]:
        self.begun += 1
        assert jobs[0].encoding is self
        self.beside = [job.encoding.name for job in jobs[1:]]
        done: list[int] = []

        def piece(number: int) -> None:
            self.entered.set()
            if self.wait is not None:
                assert self.wait.wait(20)
            for job in jobs:
                if job.encoding.fail is not None:
                    raise job.encoding.fail
            self.seen.append(number)
            done.append(number)

        def finish() -> None:
            self.finished += 1
            for job in jobs:
                job.tensors.update({"codes": sorted(done), "scale": job.encoding.name})

        return [lambda number=number: piece(number) for number in range(self.pieces)], finish


def with_jobs(*jobs: Counting, **options: Any) -> Pipeline:
    pipeline = Pipeline(**{"small_job": 0, **options})
    for number, job in enumerate(jobs):
        assert pipeline.batches.add(Job(job)) == number
    return pipeline


def run_all(pipeline: Pipeline, *jobs: Counting) -> list[dict[str, Any]]:
    return pipeline.run_all([Job(job) for job in jobs])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_job_is_computed_once_for_all_its_parts(threads: int) -> None:
    jobs = [Counting(f"job {number}", pieces=number) for number in range(6)]
    pipeline = with_jobs(*jobs, threads=threads)
    for number, job in enumerate(jobs):
        assert pipeline.take(number, "codes") == list(range(number))
        assert pipeline.take(number, "scale") == job.name
    assert [job.begun for job in jobs] == [1] * 6
    assert [sorted(job.seen) for job in jobs] == [list(range(number)) for number in range(6)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["codes", "scale"])), max_size=30), st.integers(1, 3))
def test_any_order_of_questions_is_answered(questions: list[tuple[int, str]], threads: int) -> None:
    jobs = [Counting(f"job {number}") for number in range(5)]
    pipeline = with_jobs(*jobs, threads=threads, look_ahead=250)
    for number, part in questions:
        assert pipeline.take(number, part) == ([0, 1, 2, 3] if part == "codes" else f"job {number}")
    pipeline.stop()


def test_asked_twice_it_computes_again() -> None:
    job = Counting("job")
    pipeline = with_jobs(job, threads=1)
    assert pipeline.take(0, "codes") == pipeline.take(0, "codes")
    assert job.begun == 2


def test_no_more_is_held_than_allowed() -> None:
    jobs = [Counting(f"job {number}", nbytes=100) for number in range(10)]
    pipeline = with_jobs(*jobs, threads=1, look_ahead=350)
    for part, held in (("codes", 3), ("scale", 4)):
        pipeline.take(0, part)
        deadline = time.monotonic() + 10
        while sum(job.begun for job in jobs) < held and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert sum(job.begun for job in jobs) == held


def test_one_job_that_is_larger_than_allowed_is_computed_all_the_same() -> None:
    jobs = [Counting("small"), Counting("large", nbytes=10_000), Counting("next")]
    pipeline = with_jobs(*jobs, threads=2, look_ahead=300)
    assert [pipeline.take(number, "scale") for number in range(3)] == ["small", "large", "next"]


def test_an_error_names_the_weight() -> None:
    jobs = [Counting("fine"), Counting("layers.7.weight", fail=ArithmeticError("overflow")), Counting("after")]
    pipeline = with_jobs(*jobs, threads=2)
    assert pipeline.take(0, "codes")
    with pytest.raises(WorkError, match=r"layers\.7\.weight: ArithmeticError: overflow") as caught:
        pipeline.take(1, "codes")
    assert isinstance(caught.value.__cause__, ArithmeticError)
    assert pipeline.take(2, "scale") == "after"


def test_an_error_of_our_own_stays_what_it_is() -> None:
    pipeline = with_jobs(Counting("weight", fail=OptionError("group_size: too large")), threads=1)
    with pytest.raises(OptionError, match="group_size"):
        pipeline.take(0, "codes")


def test_a_failed_job_can_be_tried_again() -> None:
    job = Counting("weight", fail=ValueError("once"))
    pipeline = with_jobs(job, threads=1)
    with pytest.raises(WorkError):
        pipeline.take(0, "codes")
    job.fail = None
    assert pipeline.take(0, "codes") == [0, 1, 2, 3]


def test_who_waits_is_told_when_a_weight_is_done() -> None:
    told = []
    pipeline = with_jobs(Counting("a"), Counting("b"), threads=2, on_finished=lambda job: told.append(job.name))
    pipeline.take(0, "codes")
    pipeline.take(1, "codes")
    assert sorted(told) == ["a", "b"]


def test_several_threads_may_ask() -> None:
    jobs = [Counting(f"job {number}") for number in range(8)]
    pipeline = with_jobs(*jobs, threads=2)
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = (pipeline.take(number, "codes"), pipeline.take(number, "scale"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {number: ([0, 1, 2, 3], f"job {number}") for number in range(8)}


class TestRunAll:
    """Jobs that put most of their parts somewhere themselves."""

    def test_the_list_is_left_alone(self) -> None:
        pipeline = with_jobs(Counting("listed"), threads=2)
        run_all(pipeline, Counting("beside"))
        assert pipeline.take(0, "scale") == "listed"
        assert run_all(pipeline, Counting("beside"))[0]["scale"] == "beside"
        assert pipeline.take(0, "codes") == [0, 1, 2, 3]

    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_each_runs_once(self, threads: int) -> None:
        told: list[str] = []
        jobs = [Counting(f"job {number}", pieces=number % 3) for number in range(20)]
        pipeline = with_jobs(threads=threads, on_finished=lambda job: told.append(job.name))
        assert [parts["codes"] for parts in run_all(pipeline, *jobs)] == [
            list(range(number % 3)) for number in range(20)
        ]
        assert [(job.begun, job.finished, sorted(job.seen)) for job in jobs] == [
            (1, 1, list(range(number % 3))) for number in range(20)
        ]
        assert sorted(told) == sorted(job.name for job in jobs)
        run_all(pipeline, *jobs[:2])
        assert jobs[1].finished == 2

    def test_no_more_are_begun_than_keep_the_workers_busy(self) -> None:
        gate = threading.Event()
        jobs = [Counting(f"job {number}", pieces=1, wait=gate) for number in range(9)]
        pipeline = with_jobs(threads=2)
        begun = []

        def look() -> None:
            assert all(job.entered.wait(20) for job in jobs[:2])
            time.sleep(0.1)
            begun.append(sum(job.begun for job in jobs))
            gate.set()

        looking = threading.Thread(target=look)
        looking.start()
        run_all(pipeline, *jobs)
        looking.join()
        assert begun == [2]

    @pytest.mark.parametrize(
        ("nbytes", "threads"), [([100, 200], 1), ([100, 299], 1), ([100, 300], 4), ([10, 10, 1000], 4)]
    )
    def test_jobs_that_are_small_on_average_are_done_by_one_thread(self, nbytes: list[int], threads: int) -> None:
        others, seen = set(workers()), set()
        jobs = [Counting("weight", nbytes=size) for size in nbytes]
        for job in jobs:
            begin = job.begin

            def slow(jobs: Any, begin: Any = begin) -> Any:
                time.sleep(0.1)
                seen.update(set(workers()) - others)
                return begin(jobs)

            job.begin = slow  # type: ignore[method-assign]
        run_all(with_jobs(threads=4, small_job=200), *jobs)
        assert len(seen) == threads

    def test_an_error_names_the_weight_and_ends_the_rest(self) -> None:
        jobs = [Counting("fine"), Counting("bad", fail=ArithmeticError("overflow"))]
        later = [Counting(f"later {number}") for number in range(100)]
        pipeline, others = with_jobs(threads=2), set(workers())
        with pytest.raises(WorkError, match="bad: ArithmeticError: overflow"):
            run_all(pipeline, *jobs, *later)
        assert not all(job.begun for job in later)
        assert not set(workers()) - others
        run_all(pipeline, *later)
        assert all(job.finished for job in later)

    @pytest.mark.parametrize("place", ["begin", "finish"])
    def test_an_error_at_the_ends(self, place: str) -> None:
        def broken(*jobs: Any) -> Any:
            raise ArithmeticError("overflow")

        job = Counting("bad")
        if place == "begin":
            job.begin = broken  # type: ignore[method-assign]
        else:
            job.begin = lambda jobs: ([], broken)  # type: ignore[method-assign]
        with pytest.raises(WorkError, match="bad: ArithmeticError: overflow"):
            run_all(with_jobs(threads=2), job)

    def test_interrupted_it_leaves_nobody_at_work(self) -> None:
        done = []

        def slow() -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
            done.append(1)

        job = Counting("slow")
        job.begin = lambda jobs: ([slow, slow, slow], lambda: None)  # type: ignore[method-assign,assignment]
        others = set(workers())
        with pytest.raises(KeyboardInterrupt):
            run_all(with_jobs(threads=1), job)
        assert done == [1]
        assert not set(workers()) - others


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ov-weight-compression"]


def test_workers_end_when_nothing_is_left_to_do() -> None:
    pipeline = with_jobs(Counting("a"), threads=3)
    pipeline.take(0, "codes")
    deadline = time.monotonic() + 10
    while workers() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not workers()
    assert pipeline.take(0, "scale") == "a"


def test_stop_waits_for_the_pieces_under_way() -> None:
    gate = threading.Event()
    jobs = [Counting("a"), Counting("b", wait=gate, pieces=50)]
    pipeline = with_jobs(*jobs, threads=2)
    pipeline.take(0, "codes")
    assert jobs[1].entered.wait(20)
    threading.Timer(0.2, gate.set).start()
    pipeline.stop()
    assert gate.is_set()
    assert len(jobs[1].seen) <= 2
    assert pipeline.take(1, "codes") == list(range(50))


def test_the_interpreter_ends_while_work_is_under_way(tmp_path: Path) -> None:
    """Workers inside OpenVINO must not be cut off: that aborts the process."""
    script = tmp_path / "leave.py"
    script.write_text(
        "import numpy as np, openvino as ov\nfrom openvino import opset13 as op\n"
        "from ov_weight_compression.passes import WeightCompression\n"
        "x = op.parameter([-1, 1024], np.float32)\n"
        "ends = [op.matmul(x, op.constant(np.ones((1024, 1024), np.float32) * n), False, True) for n in range(8)]\n"
        "model = ov.Model([op.result(end) for end in ends], [x])\n"
        "WeightCompression(mode='int4_asym', scale_search=50, threads=4).run_on_model(model)\n"
        "lazy = next(n for n in model.get_ordered_ops() if n.get_type_name() == 'PostponedConstant')\n"
        "lazy.m_maker()\nprint('left')\n"
    )
    for _ in range(3):
        own = [sys.executable, "-W", "ignore", script]
        done = subprocess.run(own, capture_output=True, text=True, timeout=120, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads() == 3
    for nonsense in ("", "0", "many", "-2"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert 1 <= default_threads() <= (os.cpu_count() or 1)


class TestJobsBegunTogether:
    def small(self, count: int, **options: Any) -> list[Counting]:
        return [Counting(f"job {number}", together="a kind", nbytes=1 << 15, **options) for number in range(count)]

    def test_they_are_alike_and_not_too_many(self) -> None:
        jobs = self.small(6)
        jobs.insert(1, Counting("apart"))
        jobs.insert(3, Counting("other", together="another kind"))
        told: list[str] = []
        pipeline = with_jobs(threads=2, on_finished=lambda job: told.append(job.name))
        parts = run_all(pipeline, *jobs)
        assert [part["scale"] for part in parts] == [job.name for job in jobs]
        assert jobs[0].beside == ["job 1", "job 2", "job 3"]
        assert [job.name for job in jobs if job.begun] == ["job 0", "apart", "other", "job 4"]
        assert sorted(told) == sorted(job.name for job in jobs)

    def test_each_part_is_handed_out_once_whichever_is_asked_for_first(self) -> None:
        jobs = self.small(5)
        pipeline = with_jobs(*jobs, threads=1)
        order = [3, 0, 4, 1, 2]
        assert [pipeline.take(number, "scale") for number in order] == [f"job {number}" for number in order]
        assert [pipeline.take(number, "codes") for number in order] == [[0, 1, 2, 3]] * 5
        assert [job.begun for job in jobs] == [1, 0, 0, 0, 1]
        assert pipeline.take(2, "scale") == "job 2"
        assert jobs[0].begun == 2

    def test_an_error_names_the_one_that_fails_alone(self) -> None:
        jobs = self.small(3)
        jobs[1].fail = ArithmeticError("overflow")
        with pytest.raises(WorkError, match="job 1: ArithmeticError: overflow"):
            run_all(with_jobs(threads=2), *jobs)
        with pytest.raises(WorkError, match="job 1: ArithmeticError: overflow"):
            with_jobs(*jobs, threads=1).take(0, "codes")

    def test_a_job_that_is_added_to_a_batch_under_way_has_it_begun_anew(self) -> None:
        first, second = self.small(2)
        pipeline = with_jobs(first, threads=1)
        assert pipeline.take(0, "codes") == [0, 1, 2, 3]
        assert pipeline.take(pipeline.batches.add(Job(second)), "scale") == "job 1"
        assert first.beside == ["job 1"]
        assert pipeline.take(0, "scale") == "job 0"
