"""Requests that run while their caller does something else: everything once, in order, with what is wrong named."""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from ov_weight_compression.calibration.runner import Requests
from ov_weight_compression.ir_utils.errors import WorkError


def requests(threads: int = 0, side_by_side: int = 2) -> Requests:
    """Of a model that squares its input, which may have any number of rows, by a matrix of 4."""
    x = ops.parameter([-1, 4], np.float32)
    four = ops.constant(np.eye(4, dtype=np.float32))
    model = ov.Model([ops.result(ops.matmul(ops.multiply(x, x), four, False, False))], [x])
    return Requests(model, threads=threads, side_by_side=side_by_side)


@pytest.mark.parametrize(("threads", "side_by_side"), [(0, 1), (0, 2), (1, 2)])
def test_what_is_started_is_received_once_and_in_order(threads: int, side_by_side: int) -> None:
    running, found = requests(threads, side_by_side), []
    for number in range(7):
        size = 1 if number % 2 else 3000  # a short one overtakes a long one
        for job, (output,) in running.received(room=1):
            found.append((job, float(output[-1, 0])))
        running.start(number, [np.full((size, 4), number, np.float32)])
    found += [(job, float(output[-1, 0])) for job, (output,) in running.received()]
    assert found == [(number, number**2) for number in range(7)]


def test_an_input_that_cannot_be_run_is_named_and_what_runs_is_waited_for() -> None:
    running, found = requests(), []
    running.start(0, [np.ones((2, 4), np.float32)])

    def run_both() -> None:
        running.start(1, [np.ones((2, 3), np.float32)], "window 1 of the data")
        found.extend(job for job, _ in running.received())

    with pytest.raises(WorkError, match="the model fails on window 1 of the data: "):
        run_both()
    running.stop()
    assert not list(running.received())
    assert found in ([], [0])
    for number in range(2):  # every request is free again
        running.start(number, [np.ones((2, 4), np.float32)])
    assert [job for job, _ in running.received()] == [0, 1]


def test_what_runs_is_waited_for_where_a_reader_stops() -> None:
    running = requests()
    for number in range(2):
        running.start(number, [np.ones((2, 4), np.float32)])
    for _ in running.received():
        break
    running.stop()
    assert not list(running.received(room=2))
