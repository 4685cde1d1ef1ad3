"""Rows of a weight to stored arrays and back: the front door of this room.

A weight comes as its canonical matrix ``[rows, in]``, the reduction axis last; rows do not depend on each other, so a
caller may cut them as it likes and use as many threads as it likes: the bytes are the same.

**Kernels or the reference.** A kernel computes a fixed block of groups. Each thread that runs one compiles it for
itself, for one stream of one thread: OpenVINO then computes in the thread that asks, so N threads use N cores and no
more. A large weight takes many blocks, the last one partly empty. Small weights get a block of the size of the first of
them, which serves for all that fill half of it; a model's weights are of few sizes.

Compiling costs tens of milliseconds, as much as the numpy reference needs for some ten thousand weights; so a key is
compiled when it has been asked for that many, and until then (or for good, in a model of small odd weights) the
reference does the work. They agree to the bit, so nobody can tell.

Kernels are kept while somebody is inside ``kept_kernels``, and freed with the last one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.file_io import FileRows
from ov_weight_compression.ir_utils.types import Array, Float32, pack, tensor_bytes, to_f32
from ov_weight_compression.quantization.formats import E4M3, SCALE_DTYPES, Encoded, Spec
from ov_weight_compression.quantization.kernels import SMALL, Key, build, cells
from ov_weight_compression.quantization.reference import (
    STARTS,
    decode_codes,
    encode_groups,
    scale_values,
    tensor_scale_of,
)

Weighting = Literal["graph", "data", "trial"]

# Elements that the reference works on at a time.
_REFERENCE_ELEMENTS = 1 << 17


def encode_rows(
    values: Array | FileRows,
    spec: Spec,
    *,
    importance: Float32 | None = None,
    weighting: Weighting = "graph",
    tensor_scale: np.float32 | None = None,
    packed: bool = False,
    into: Encoded | None = None,
) -> Encoded:
    """Quantise rows of a weight.

    Args:
        values: [rows, in] of any float type, all of them finite. float16 and float32 are read as they are, and may lie
            in a file still.
        spec: how to store them.
        importance: [in] f32 >= 0, what an error in each input channel weighs in the scale search; None for all alike.
            With ``"graph"`` also [blocks, in], for so many weights one below the other.
        weighting: ``"data"``: importance is E[x_j^2] of the layer's input and used as it is, and what the search finds
            is refitted (see ``refit``); ``"trial"``: the same in a third of the time and not quite as well, for codes
            that are improved afterwards or only measured; ``"graph"``: it is what the graph alone tells (squared gains
            of the norm in front) and is multiplied by ``|W| + rms(W)``.
        tensor_scale: ``tensor_scale_of`` the whole weight's largest magnitude, for formats that have one; by default
            that of these rows, which is right only where they are the whole weight.
        packed: return ``codes`` [rows, bytes of a row] uint8 as the tensor holds them: faster than packing later.
        into: contiguous arrays of the right shapes and types, to be filled and returned; new ones by default.

    Returns:
        The stored arrays for these rows.

    Raises:
        ValueError: the rows cannot be cut into groups as ``spec`` says, or packed rows are not whole bytes (blocks, for
            3 bits).
    """
    copy: Callable[[Array, Array], None] = np.copyto
    if isinstance(values, FileRows):
        copy, values = values.read_into, values.mapped
    elif values.dtype != np.float16:
        values = values.astype(np.float32, copy=False)
    rows, width = values.shape
    format, bits, group = spec.format, spec.format.bits, spec.group_of(width)
    groups = np.ascontiguousarray(values).reshape(-1, group)
    if format.tensor_scale and tensor_scale is None:
        whole = np.empty_like(groups)
        copy(whole, groups)
        tensor_scale = tensor_scale_of(float(np.abs(whole).max(initial=0.0)), format)
    energy = None if importance is None or spec.search <= 1 else _per_group(importance, rows, group)
    starts: tuple[float, ...] = ()
    if energy is not None and weighting != "graph":
        starts = STARTS if weighting == "data" and format.levels is None else STARTS[:1]
    graph = weighting == "graph" and spec.search > 1

    row_bytes, group_bytes = tensor_bytes(width, bits), tensor_bytes(group, bits)
    if packed and row_bytes * 8 != width * bits:
        raise ValueError(f"a row of {width} codes of {bits} bits does not end on a whole byte")
    # Where groups end on whole bytes too, each block is packed while it is still in the cache.
    in_blocks = packed and group_bytes * 8 == group * bits
    shape = (len(groups), group_bytes if in_blocks else group)
    if into is not None and into.codes.size == shape[0] * shape[1]:
        codes = into.codes.reshape(shape)
    else:
        codes = np.empty(shape, dtype=np.uint8 if in_blocks else format.code_dtype)
    if into is not None:
        scale, zero_point = into.scale, into.zero_point
    else:
        scale = np.empty((rows, width // group), dtype=SCALE_DTYPES[spec.scale_type])
        zero_point = np.empty(scale.shape, dtype=np.uint8) if format.asymmetric else None
    source = "f16" if groups.dtype == np.float16 else "f32"
    kernel = kernel_for(Key(spec, group, source, graph, energy is not None, starts), groups.size)
    if kernel is not None:
        blocks, flip = kernel.run(groups, copy, energy, tensor_scale), format.flip
    else:
        blocks, flip = _by_reference(groups, copy, spec, tensor_scale, energy, graph, starts), 0
    if in_blocks and bits == 4:
        flip *= 0x11
    for start, (block, *beside) in blocks:
        stop = start + len(block)
        target = codes[start:stop]
        if in_blocks and bits != 8:
            block = pack(block, bits, target.reshape(-1)).reshape(target.shape)
        if flip:
            np.bitwise_xor(block, block.dtype.type(flip), out=target)
        elif not in_blocks or bits == 8:
            target[:] = block
        scale.reshape(-1)[start:stop] = beside[0]
        if zero_point is not None:
            zero_point.reshape(-1)[start:stop] = beside[1]
    if packed and not in_blocks:
        codes = pack(codes, bits, None if into is None else into.codes.reshape(-1))
    return Encoded(
        codes=codes.reshape(rows, row_bytes if packed else width),
        scale=scale.reshape(rows, width // group),
        zero_point=None if zero_point is None else zero_point.reshape(rows, width // group),
        tensor_scale=tensor_scale if format.tensor_scale else None,
        codebook=format.table,
    )


def _by_reference(
    groups: Array,
    copy: Callable[[Array, Array], None],
    spec: Spec,
    tensor_scale: np.float32 | None,
    importance: Float32 | None,
    graph: bool,
    starts: tuple[float, ...],
) -> Iterator[tuple[int, list[Array]]]:
    """As `Kernel.run`, with codes as they are stored."""
    step = max(1, _REFERENCE_ELEMENTS // groups.shape[1])
    for start in range(0, len(groups), step):
        block = np.empty(groups[start : start + step].shape, groups.dtype)
        copy(block, groups[start : start + step])
        weights = None if importance is None else importance[np.arange(start, start + len(block)) % len(importance)]
        codes, scale, zero_point = encode_groups(to_f32(block), spec, tensor_scale, weights, graph, starts)
        yield start, [codes, scale] if zero_point is None else [codes, scale, zero_point]


def _per_group(importance: Float32, rows: int, group: int) -> Float32 | None:
    """[groups of a row, g], or of all rows where there are blocks: importance scaled to the block's largest, nothing
    counts for less than 2^-40 of it. None where nothing counts at all."""
    blocks = np.atleast_2d(importance)
    largest = blocks.max(axis=1, initial=0.0, keepdims=True).astype(np.float64)
    known = (largest > 0) & (largest < np.inf)
    if not known.any():
        return None
    scaled = np.clip(np.where(known, blocks, 1) / np.where(known, largest, 1), 2.0**-40, 1).astype(np.float32)
    if len(scaled) > 1:
        scaled = np.repeat(scaled, rows // len(scaled), axis=0)
    return scaled.reshape(-1, group)


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


@dataclass
class _Cache:
    """What is kept while somebody computes."""

    users: int = 0
    asked: dict[Key, int] = field(default_factory=dict)
    kernels: dict[Key, Kernel] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_cache = _Cache()
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
                count, target = min(step, len(groups)), compiled.inputs["importance"]
                whole = count // len(importance) * len(importance)
                target[:whole].reshape(-1, *importance.shape)[...] = importance
                target[whole:count] = importance[: count - whole]
            for start in range(0, len(groups), step):
                size = min(step, len(groups) - start)  # the rest of the block keeps what it held: nobody looks at it
                copy(compiled.inputs["groups"][:size], groups[start : start + size])
                if importance is not None and refill:
                    compiled.inputs["importance"][:size] = importance[np.arange(start, start + size) % len(importance)]
                compiled.request.infer(share_outputs=True)
                yield start, [output[:size] for output in compiled.outputs]
        finally:
            with self._lock:
                self._free[block].append(compiled)

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
                compiled = _core().compile_model(model, "CPU", _CONFIG | _LOOPS[refused])
                break
            except RuntimeError:
                if refused + 1 == len(_LOOPS):
                    raise
                self._refused = max(self._refused, refused + 1)
        request = compiled.create_infer_request()
        return _Compiled(
            request,
            {port.get_any_name(): request.get_tensor(port).data for port in compiled.inputs},
            [request.get_tensor(port).data for port in compiled.outputs],
        )


@dataclass(frozen=True, eq=False)
class _Compiled:
    """A compiled kernel's request, and its tensors as arrays: asking for them costs as much as small blocks do."""

    request: ov.InferRequest
    inputs: dict[str, Array]
    outputs: list[Array]


def decode_rows(encoded: Encoded, spec: Spec) -> Float32:
    """[rows, in] f32 from unpacked codes: exactly what OpenVINO computes from the stored chain with f32 inference."""
    values = scale_values(encoded.scale, spec, encoded.tensor_scale)[..., None]
    zero_point = None if encoded.zero_point is None else encoded.zero_point[..., None]
    groups = encoded.codes.reshape(*encoded.scale.shape, -1)
    return decode_codes(groups, values, zero_point, spec.format).reshape(encoded.codes.shape)


def turn_over_first_group(encoded: Encoded, spec: Spec, *, packed: bool) -> Encoded:
    """The same values with another zero point than 0 in the first group, for codes of u2 that have one in each group.

    Where all zero points of a tensor are 0 OpenVINO (2026.4) drops the Subtract, and u2 without one its CPU plugin does
    not compile. So a first group with zero point 0 is stored the other way round: codes `3 - q`, zero point 3, and the
    scale negative. Arrays that can be written to are changed in place.

    Args:
        encoded: the first rows of a weight.
        spec: how it is stored, in u2.
        packed: its codes are bytes as the tensor holds them.
    """
    if encoded.zero_point is None or encoded.zero_point.reshape(-1)[:1].any():
        return encoded
    parts = (encoded.codes, encoded.scale, encoded.zero_point)
    codes, scale, zero_point = (part if part.flags.writeable else part.copy() for part in parts)
    group = spec.group_of(codes.shape[1] * 4 if packed else codes.shape[1])
    flat = codes.reshape(-1)
    if packed:
        flat[: group // 4] ^= 0xFF
        flat[group // 4 : group // 4 + 1] ^= (1 << 2 * (group % 4)) - 1
    else:
        flat[:group] ^= 3
    scale.reshape(-1)[:1] *= -1
    zero_point.reshape(-1)[:1] = 3
    return replace(encoded, codes=codes, scale=scale, zero_point=zero_point)
