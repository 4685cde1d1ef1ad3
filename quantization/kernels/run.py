"""Running kernels over any number of groups, from any number of threads.

A kernel is compiled once per key, for a fixed block of groups, with one stream per core: each calling thread takes an
infer request of its own from a pool and runs it on its own stream, so N threads use N cores. The last block of a
weight is run half empty instead of compiling for its size.

Compiling costs tens of milliseconds, as much as the numpy reference needs for some ten thousand weights; so a key is
compiled when it has been asked for that many, and until then (or for good, in a model of small odd weights) the
reference does the work. They agree to the bit, so nobody can tell.
"""

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_weight_compression.quantization.kernels import codes
from ov_weight_compression.quantization.kernels.build import Key, build

__all__ = ["COMPILE_AFTER", "Kernel", "block_of", "forget_kernels", "kernel_for"]

# Weights of one key that the reference works off before a kernel is compiled.
COMPILE_AFTER = 1 << 17

# Elements of the largest intermediate tensor, of a plain kernel and of a search: they should stay in a core's cache.
_PLAIN_ELEMENTS = 1 << 19
_SEARCH_ELEMENTS = 5 << 17

# Rows of a weight that a block must hold at least to be filled with whole ones only.
_WHOLE_PERIODS = 8

# Kernels kept compiled, some megabytes each; the one not used for longest goes first.
_KEPT = 24

_lock = threading.Lock()
_asked: dict[Key, int] = {}
_slots: "dict[Key, tuple[threading.Lock, list[Kernel]]]" = {}


def block_of(key: Key) -> int:
    """Groups in a kernel's block: a multiple of eight."""
    size = _PLAIN_ELEMENTS // key.group
    if key.spec.search > 1:
        size = _SEARCH_ELEMENTS // (key.group * key.spec.search)
    return max(8, size // 8 * 8)


def kernel_for(key: Key, elements: int) -> "Kernel | None":
    """The kernel to use for ``elements`` more weights of this kind, or None where the reference is better."""
    if key.group > _PLAIN_ELEMENTS or not codes.supported(key.spec.format):
        return None
    if key.spec.search > 1 and not codes.searchable(key.spec.format):
        return None
    with _lock:
        _asked[key] = _asked.get(key, 0) + elements
        if _asked[key] < COMPILE_AFTER:
            return None
    return _kernel(key)


def forget_kernels() -> None:
    """Drop every compiled kernel, and the memory that it holds."""
    with _lock:
        _slots.clear()
        _asked.clear()


def _kernel(key: Key) -> "Kernel":
    with _lock:
        slot = _slots.pop(key) if key in _slots else (threading.Lock(), [])
        _slots[key] = slot  # the last in the dict's order
        while len(_slots) > _KEPT:
            del _slots[next(iter(_slots))]
    lock, made = slot
    with lock:  # two threads that ask for the same new kernel: one compiles, the other waits
        if not made:
            made.append(Kernel(key, block_of(key)))
        return made[0]


class Periodic(Protocol):
    """Importance of input channels, which repeats with every row of a weight."""

    @property
    def period(self) -> int:
        """Groups in a row."""
        ...

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """[stop - start, g] f32 of these groups."""
        ...


class Kernel:
    """A compiled kernel and its pool of infer requests."""

    def __init__(self, key: Key, block: int) -> None:
        self.key = key
        self.block = block
        streams = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = ov.Core().compile_model(build(key, block), "CPU", config)
        self._free: list[_Request] = []
        self._lock = threading.Lock()

    def run(
        self,
        groups: npt.NDArray[Any],
        importance: "Periodic | None",
        tensor_scale: np.float32 | None,
        take: Callable[[int, list[npt.NDArray[Any]]], None],
    ) -> None:
        """Run over all groups, block by block.

        Args:
            groups: [n, g] of the key's source type.
            importance: that of the groups, for a key that has it.
            tensor_scale: for a format that has one.
            take: called with each block's start and its outputs, cut to the groups it holds; they are the request's own
                memory, to be read before ``take`` returns.
        """
        request = self._acquire()
        try:
            if tensor_scale is not None:
                request.inputs["tensor_scale"][:] = tensor_scale
            step, refill = self.block, importance is not None
            if importance is not None and importance.period * _WHOLE_PERIODS <= self.block:
                # Blocks that begin where the importance does all have the same, at the price of some empty groups.
                step, refill = self.block // importance.period * importance.period, False
                request.fill("importance", importance.rows(0, step))
            for start in range(0, len(groups), step):
                size = min(step, len(groups) - start)
                request.fill("groups", groups[start : start + size])
                if importance is not None and refill:
                    request.fill("importance", importance.rows(start, start + size))
                take(start, request.infer(size))
        finally:
            self._release(request)

    def _acquire(self) -> "_Request":
        with self._lock:
            if self._free:
                return self._free.pop()
        return _Request(self._compiled)

    def _release(self, request: "_Request") -> None:
        with self._lock:
            self._free.append(request)


class _Request:
    """An infer request, and its tensors as arrays: asking for them costs as much as small blocks do."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = {port.get_any_name(): self._request.get_tensor(port).data for port in compiled.inputs}
        self._outputs = [self._request.get_tensor(port).data for port in compiled.outputs]

    def fill(self, name: str, rows: npt.NDArray[Any]) -> None:
        """Copy rows into an input. What is left of the block keeps what it held: nobody looks at its outputs."""
        self.inputs[name][: len(rows)] = rows

    def infer(self, size: int) -> list[npt.NDArray[Any]]:
        """Run, and the outputs of the first ``size`` groups: the request's own memory (a copy costs a tenth)."""
        self._request.infer(share_outputs=True)
        return self._outputs if size == len(self._outputs[0]) else [output[:size] for output in self._outputs]
