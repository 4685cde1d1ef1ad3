"""Running kernels over any number of groups, from any number of threads.

A kernel computes a fixed block of groups. Each thread that runs one compiles it for itself, for one stream of one
thread: OpenVINO then computes in the thread that asks, so N threads use N cores and no more. A large weight takes many
blocks, the last one partly empty. Small weights get a block of the size of the first of them, which serves for all that
fill half of it; a model's weights are of few sizes.

Compiling costs tens of milliseconds, as much as the numpy reference needs for some ten thousand weights; so a key is
compiled when it has been asked for that many, and until then (or for good, in a model of small odd weights) the
reference does the work. They agree to the bit, so nobody can tell.

Kernels are kept while somebody is inside `kept_kernels`, and freed with the last one.

**Row sums**, weighted, of squares: how large a layer's outputs are, as far as its weight tells.

    rows of W [n, in], weights c [in]      s_i = Σ_j c_j W_ij²

A small compiled OpenVINO model reads half-precision rows several times faster than numpy converts them.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from ov_weight_compression.ir_utils.file_io import FileRows
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.formats import E4M3
from ov_weight_compression.quantization.kernels.graph import SMALL, Key, build, cells

# Weights of one key that the reference works off before a kernel is compiled.
COMPILE_AFTER = 1 << 17

# Elements of a plain kernel, and those times candidates of a search and starts of a refit: inputs and outputs of a
# block stay in a core's cache, what a refit keeps of each start too, and pieces of 2^21 weights in groups of 128 are
# whole blocks.
_PLAIN_ELEMENTS = 1 << 19
_SEARCH_ELEMENTS = 3 << 19

# Sizes of small blocks beside the whole one: compiling one takes as long as a thousand runs.
_SMALL_SIZES = 3

# Rows of a weight that a block must hold at least to be filled with whole ones only.
_WHOLE_PERIODS = 8

# Kernels kept compiled, some megabytes each; the one not used for longest goes first.
_KEPT = 24

_CONFIG = {
    "INFERENCE_PRECISION_HINT": "f32",
    "NUM_STREAMS": 1,
    "INFERENCE_NUM_THREADS": 1,
    "ENABLE_CPU_PINNING": False,
}

# OpenVINO (2026.4) makes one loop of element-wise operations, of reductions over the last axis too where it is not
# asked to judge for itself whether that pays. Here it does: no intermediate tensor leaves the registers. A kernel with
# more constants than a processor has vector registers (16 without AVX-512) is refused then, and so it is where OpenVINO
# judges; it can be had without such loops.
_LOOPS: tuple[dict[str, str], ...] = ({"SNIPPETS_MODE": "IGNORE_CALLBACK"}, {}, {"SNIPPETS_MODE": "DISABLE"})
if platform.machine().lower() not in ("x86_64", "amd64"):
    _LOOPS = ({},)


class _Cache:
    """What is kept while somebody computes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.asked: dict[Key, int] = {}
        self.kernels: dict[Key, Kernel] = {}


_usable = True
"""Whether the CPU plugin can be relied on in this process."""


@contextmanager
def kept_kernels() -> Iterator[None]:
    """Keep compiled kernels until the last user is gone."""
    cache = _cache
    with cache.lock:
        cache.users += 1
    try:
        yield
    finally:
        with cache.lock:
            cache.users -= 1
            freed = () if cache.users else (*cache.kernels.values(),)
            if not cache.users:
                cache.kernels.clear()
                cache.asked.clear()
        del freed  # outside the lock: it takes a while


def block_of(key: Key) -> int:
    """Groups in a kernel's block: a multiple of eight."""
    size = _PLAIN_ELEMENTS // key.group
    if key.spec.search > 1:
        size = _SEARCH_ELEMENTS // (key.group * key.spec.search * max(1, len(key.starts)))
    return max(8, size // 8 * 8)


def kernel_for(key: Key, elements: int) -> Kernel | None:
    """The kernel to use for ``elements`` more weights of this kind, or None where the reference is better."""
    if not _usable or key.group > _PLAIN_ELEMENTS:
        return None
    format = key.spec.format
    large = format.levels is not None and len(format.levels) > SMALL
    if large and (key.spec.search > 1 or (format.levels != E4M3 and cells(format) is None)):
        return None
    cache = _cache
    with cache.lock:
        asked = elements
        if cache.users:
            asked = cache.asked[key] = cache.asked.get(key, 0) + elements
        if asked < COMPILE_AFTER:
            return None
        kernel = cache.kernels.pop(key) if key in cache.kernels else Kernel(key, block_of(key))
        if cache.users:
            cache.kernels[key] = kernel  # the last in the dict's order
            while len(cache.kernels) > _KEPT:
                del cache.kernels[next(iter(cache.kernels))]
    return kernel


@functools.cache
def _core() -> ov.Core:
    """One for the whole process, which is never freed: the CPU plugin of OpenVINO 2026.4 gives the thread that loads it
    a stack for signals, and takes it away from whichever thread frees the plugin. Were that another one, the next
    Ctrl-C would end the process with a segmentation fault."""
    return ov.Core()


def _after_fork() -> None:
    """A child of a process in which the CPU plugin has been at work has none of its threads: compiling there hangs now
    and then (one time in twenty with OpenVINO 2026.4), and so does freeing what has threads. It computes with numpy
    only, and what it has inherited stays as it is."""
    global _cache, _usable
    inherited = [*_cache.kernels.values(), *([_core()] if _core.cache_info().currsize else [])]
    for one in inherited:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))
    _core.cache_clear()
    _cache = _Cache()
    try:
        _usable = _usable and "openvino_intel_cpu_plugin" not in Path("/proc/self/maps").read_text()
    except OSError:
        _usable = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Kernel:
    """A kernel, and what is compiled of it: for each thread that runs it at the same time as others, of each size."""

    def __init__(self, key: Key, block: int) -> None:
        self.key = key
        self.block = block
        self._free: dict[int, list[_Compiled]] = {self.block: []}
        self._made: list[_Compiled] = []
        self._refused = 0
        """How many of `_LOOPS` cannot be had."""
        self._lock = threading.Lock()

    def run(
        self,
        groups: Array,
        copy: Callable[[Array, Array], None],
        importance: Float32 | None,
        tensor_scale: np.float32 | None,
    ) -> Iterator[tuple[int, list[Array]]]:
        """Run over all groups, block by block.

        Args:
            groups: [n, g] of the key's source type, perhaps mapped from a file and not to be touched.
            copy: puts some of them into an array.
            importance: [groups of a row, g] f32, for a key that has it.
            tensor_scale: for a format that has one.

        Returns:
            Each block's start and its outputs, cut to the groups it holds: the kernel's own memory, until the next.
        """
        block = self._block_for(len(groups))
        compiled = self._acquire(block)
        try:
            if tensor_scale is not None:
                compiled.inputs["tensor_scale"][:] = tensor_scale
            step, refill = block, importance is not None
            if importance is not None and len(importance) * _WHOLE_PERIODS <= block:
                # Blocks that begin where the importance does all have the same, at the price of some empty groups.
                step, refill = block // len(importance) * len(importance), False
                compiled.repeat("importance", importance, min(step, len(groups)))
            for start in range(0, len(groups), step):
                size = min(step, len(groups) - start)  # the rest of the block keeps what it held: nobody looks at it
                copy(compiled.inputs["groups"][:size], groups[start : start + size])
                if importance is not None and refill:
                    compiled.inputs["importance"][:size] = importance[np.arange(start, start + size) % len(importance)]
                yield start, compiled.infer(size)
        finally:
            self._release(block, compiled)

    def _block_for(self, groups: int) -> int:
        """The size of the blocks for a weight of so many groups."""
        with self._lock:
            fitting = [size for size in self._free if groups <= size <= 2 * groups]
            if fitting or groups * 2 > self.block:
                return min(fitting, default=self.block)
            if len(self._free) <= _SMALL_SIZES:
                size = -(-groups // 8) * 8
                self._free[size] = []
                return size
            return min(size for size in self._free if size >= groups)

    def _acquire(self, block: int) -> _Compiled:
        with self._lock:
            if self._free[block]:
                return self._free[block].pop()
        model = build(self.key, block)
        while True:
            refused = self._refused
            try:
                compiled = _Compiled(_core().compile_model(model, "CPU", _CONFIG | _LOOPS[refused]))
                break
            except RuntimeError:
                if refused + 1 == len(_LOOPS):
                    raise
                self._refused = max(self._refused, refused + 1)
        with self._lock:
            self._made.append(compiled)
        return compiled

    def _release(self, block: int, compiled: _Compiled) -> None:
        with self._lock:
            self._free[block].append(compiled)


class _Compiled:
    """A compiled kernel, its request, and its tensors as arrays: asking for them costs as much as small blocks do."""

    def __init__(self, compiled: ov.CompiledModel) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = {port.get_any_name(): self._request.get_tensor(port).data for port in compiled.inputs}
        self._outputs = [self._request.get_tensor(port).data for port in compiled.outputs]

    def repeat(self, name: str, rows: Array, count: int) -> None:
        """Copy rows into an input again and again, until `count` are filled."""
        whole = count // len(rows)
        target = self.inputs[name]
        target[: whole * len(rows)].reshape(whole, *rows.shape)[...] = rows
        target[whole * len(rows) : count] = rows[: count - whole * len(rows)]

    def infer(self, size: int) -> list[Array]:
        """Run, and the outputs of the first ``size`` groups: the kernel's own memory (a copy costs a tenth)."""
        self._request.infer(share_outputs=True)
        return self._outputs if size == len(self._outputs[0]) else [output[:size] for output in self._outputs]


_cache = _Cache()


_BLOCK_ELEMENTS = 1 << 18
_COMPILE_FROM = 1 << 20
"""Elements below which numpy is done before a model is compiled."""


def row_sums(values: Array | FileRows, weights: Float32) -> Float32:
    """[n] f32 for `values` [n, in] of f16 or f32, which may lie in a file still, and `weights` [in]. Not for several
    threads at once."""
    copy: Callable[[Array, Array], None] = np.copyto
    if isinstance(values, FileRows):
        copy, values = values.read_into, values.mapped
    rows, columns = values.shape
    if values.size < _COMPILE_FROM or values.dtype != np.float16:
        read = np.empty(values.shape, values.dtype)
        copy(read, values)
        return np.asarray(np.square(read.astype(np.float32)) @ weights, dtype=np.float32)
    block = max(1, _BLOCK_ELEMENTS // columns)
    request = _request(block, columns)
    request.get_tensor("weights").data[:] = weights
    target = request.get_tensor("values").data
    sums = np.empty(rows, dtype=np.float32)
    for start in range(0, rows, block):
        size = min(block, rows - start)
        copy(target[:size], values[start : start + size])
        request.infer()
        sums[start : start + size] = request.output_tensors[0].data[:size]
    return sums


@lru_cache(maxsize=32)
def _request(block: int, columns: int) -> ov.InferRequest:
    values = ops.parameter([block, columns], ov.Type.f16, name="values")
    weights = ops.parameter([columns], ov.Type.f32, name="weights")
    for node in (values, weights):
        node.output(0).set_names({node.get_friendly_name()})
    wide = ops.convert(values, ov.Type.f32)
    sums = ops.reduce_sum(ops.multiply(ops.multiply(wide, wide), weights), np.array([1]), keep_dims=False)
    model = ov.Model([ops.result(sums)], [values, weights])
    config = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    return ov.Core().compile_model(model, "CPU", config).create_infer_request()
