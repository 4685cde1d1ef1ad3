"""A compiled model that runs on one input after another, while its caller is at work on what the ones before gave.

    start(a) ─┐     start(b) ─┐     start(c): what a gave is received first
     stream 0 └─ a ────────────────┐  ─ c ─ …
     stream 1                 └─ b ──────────┐

Beside another model that runs, or beside numpy, two inputs side by side, each on half of the processors, are done
sooner: the halves of one wait for each other at every operation, and both for whatever the caller does between two
inputs. Alone they are not: activations take twice the memory, and large weights are prepared by one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.ir_file import openvino_reason
from ov_weight_compression.ir_utils.worker_pool import default_threads

_Receive = Callable[[ov.InferRequest], None]


@cache
def _core() -> ov.Core:
    return ov.Core()


class Requests:
    """Requests of one compiled model. Not for several threads at once."""

    def __init__(
        self, model: ov.Model, config: Mapping[str, str | int], threads: int = 0, side_by_side: int = 1
    ) -> None:
        """Compile a model, to compute in so many `threads` in all, 0 for all that there are, so many inputs
        `side_by_side` at most.

        Raises WorkError where it cannot be compiled.
        """
        streams = min(side_by_side, threads or default_threads())
        # A thread that is tied to a processor waits for it while numpy has it and another one is idle.
        how = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams, "ENABLE_CPU_PINNING": False}
        try:
            compiled = _core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **config, **how})
        except RuntimeError as error:
            reason = openvino_reason(error)
            raise WorkError(f"calibration: the model cannot be compiled for the data: {reason}") from error
        self._idle = [compiled.create_infer_request() for _ in range(streams)]
        self._running: deque[tuple[Sequence[NDArray[Any]], _Receive, str, ov.InferRequest]] = deque()

    def start(self, arrays: Sequence[NDArray[Any]], receive: _Receive, name: str = "the data") -> None:
        """Run the model on these inputs, contiguous and not to be changed until `receive` is called with the request
        that ran: in this thread, by a later `start` or by `finish`, in the order in which they were started. Its
        outputs are the runtime's memory, to be used or copied before `receive` returns.

        Raises WorkError where the model cannot run on an input, this one or one before; by that one's `name`.
        """
        if not self._idle:
            self._receive_first()
        request = self._idle.pop()
        self._running.append((arrays, receive, name, request))
        with _blamed_on(name):
            request.start_async(dict(enumerate(arrays)), share_inputs=True)

    def finish(self) -> None:
        """Receive what is still running. Raises as `start` does."""
        while self._running:
            self._receive_first()

    def stop(self) -> None:
        """Wait for what is still running, which nobody receives, so that its inputs can go."""
        while self._running:
            *_, request = self._running.popleft()
            with suppress(RuntimeError):
                request.wait()
            self._idle.append(request)

    def _receive_first(self) -> None:
        _, receive, name, request = self._running.popleft()
        try:
            with _blamed_on(name):
                request.wait()
            receive(request)
        finally:
            self._idle.append(request)


@contextmanager
def _blamed_on(name: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = openvino_reason(error)
        raise WorkError(f"calibration: the model fails on {name}: {reason}") from error
