"""Casts of a checkpoint's 16-bit tensors to f32 that are not computed: each is a place in memory instead.

An exporter may want in f32 what a checkpoint has in 16 bits: encoders whole, of language models convolutions and some
experts. All of these would be in memory at once, in twice the checkpoint's bytes. So while `Widening.casting` lasts, a
cast of a tensor that lies in a checkpoint's file returns a tensor of the wider type that lies in a region of its own:

    addresses    [ region of "a.weight" ][ region of "b.weight" ] …
    memory       the same few megabytes of NaN, mapped again and again

A constant of the exported graph that lies in a region is that tensor, widened. Exporters read regions: they run a model
to trace it, and look whether two constants are equal, or one is uniform, which neither regions are nor the tensors that
get one. But what is computed from a region is NaN, and so shows.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from ov_weight_compression.checkpoints.constant_origins import FileSpans, Stretch, TensorPlaces, is_written
from ov_weight_compression.checkpoints.safetensors_file import StoredTensor
from ov_weight_compression.checkpoints.skeleton import HOLES
from ov_weight_compression.ir_utils.errors import WorkError

_BLOCK_BYTES = 4 << 20
_PAGE = mmap.PAGESIZE
_NAN = np.uint32(0x7FC00000)
"""The first of the bit patterns: of what lies in a page no two numbers are alike."""
_PAYLOADS = np.uint32(0x3FFFFF)
_SAMPLE = 1024
_LEAST_ELEMENTS = 1024
"""A copy of a smaller tensor, and of a vector, costs less than a region."""
_MAP_FIXED, _MAP_NORESERVE, _PROT_NONE = 0x10, 0x4000, 0
_FAILED = ctypes.c_void_p(-1).value
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class Widening:
    """The regions of one export.

    Args:
        places: the checkpoint's tensors.
        computed: names of those whose casts are to be computed after all.
    """

    def __init__(self, places: TensorPlaces, computed: Collection[str] = ()) -> None:
        self._places, self._computed = places, frozenset(computed)
        self._regions: dict[str, tuple[int, StoredTensor]] = {}
        self._starts: list[tuple[int, StoredTensor]] = []
        self._beginnings: set[bytes] = set()
        self._nan, self._written = -1, 0

    @contextmanager
    def casting(self) -> Iterator[None]:
        """While it lasts, torch's casts to f32 return regions where they can."""
        import torch

        kept = torch.Tensor.to, torch.Tensor.float
        try:
            torch.Tensor.to = self._instead_of(kept[0], ())
            torch.Tensor.float = self._instead_of(kept[1], (torch.float32,))
            yield
        finally:
            torch.Tensor.to, torch.Tensor.float = kept

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """While it lasts, casts are torch's own again: it names what it traces after the variables around each call."""
        import torch

        ours = torch.Tensor.to, torch.Tensor.float
        try:
            torch.Tensor.to, torch.Tensor.float = (function.__wrapped__ for function in ours)
            yield
        finally:
            torch.Tensor.to, torch.Tensor.float = ours

    def find(self, spans: FileSpans, address: int, nbytes: int) -> Stretch | None:
        """The tensor that memory belongs to, as one of f32 where it is a region's; None as `TensorPlaces.find`."""
        number = bisect_right(self._starts, address, key=lambda one: one[0]) - 1
        if number >= 0 and nbytes:
            start, tensor = self._starts[number]
            if address + nbytes <= start + tensor.nbytes:
                return None if is_written(address, nbytes) else Stretch(tensor, address - start, nbytes)
        return self._places.find(spans, address, nbytes)

    @property
    def tensors(self) -> list[StoredTensor]:
        """Those that have a region, as of f32."""
        return [tensor for _, tensor in self._starts]

    def _instead_of(self, own: Callable[..., Any], usual: tuple[Any, ...]) -> Callable[..., Any]:
        """A function of torch's that casts, but for tensors that can have a region. `usual` is what it casts to without
        being told."""
        import torch

        @wraps(own)
        def cast(tensor: Any, *arguments: Any, **named: Any) -> Any:
            asked = (*usual, *arguments, named.get("dtype"))
            if torch.float32 in asked and not named.keys() - {"dtype"}:
                found = self._region(tensor)
                if found is not None:
                    return found
            return own(tensor, *arguments, **named)

        return cast

    def _region(self, tensor: Any) -> Any:
        """A tensor of f32 in place of one of 16 bits; None where that is not a checkpoint's."""
        import torch

        halves = tensor.dtype in (torch.float16, torch.bfloat16) and tensor.device.type == "cpu"
        if not halves or tensor.ndim < 2 or tensor.numel() < _LEAST_ELEMENTS or not tensor.is_contiguous():
            return None
        stretch = self._stretch(tensor.data_ptr(), 2 * tensor.numel())
        if stretch is None or stretch.tensor.name in self._computed:
            return None
        name = stretch.tensor.name
        if name not in self._regions:
            if not self._is_one_of_a_kind(stretch.tensor):
                return None
            wide = replace(stretch.tensor, dtype="F32", nbytes=2 * stretch.tensor.nbytes)
            self._regions[name] = self._map(wide.nbytes), wide
            self._starts = sorted(self._regions.values(), key=lambda one: one[0])
        start = self._regions[name][0] + 2 * stretch.begin
        memory = (ctypes.c_char * (4 * tensor.numel())).from_address(start)
        return torch.frombuffer(memory, dtype=torch.float32).view(tensor.shape)

    def _is_one_of_a_kind(self, tensor: StoredTensor) -> bool:
        """Whether a tensor begins neither like another nor with the same number again and again; of holes nobody can
        tell."""
        if tensor.file.name == HOLES:
            return True
        first = tensor.values().reshape(-1)[:_SAMPLE]
        beginning = first.tobytes()
        if bool((first == first[0]).all()) or beginning in self._beginnings:
            return False
        self._beginnings.add(beginning)
        return True

    def _stretch(self, address: int, nbytes: int) -> Stretch | None:
        # As it is now: a file that nothing of is kept is unmapped, and the next is mapped where it was.
        return self._places.find(FileSpans(), address, nbytes)

    def _map(self, nbytes: int) -> int:
        """The address of so many bytes of NaN: those of the file from a page on at which no other region begins."""
        if self._nan < 0:
            self._nan = os.memfd_create("nan")
        first = len(self._regions) * _PAGE
        while self._written < first + _BLOCK_BYTES:
            numbers = np.arange(self._written // 4, (self._written + _BLOCK_BYTES) // 4, dtype=np.uint32)
            self._written += os.write(self._nan, (_NAN + numbers % _PAYLOADS).tobytes())
        start = _mapped(None, nbytes, _PROT_NONE, mmap.MAP_ANONYMOUS, -1, 0)
        for place in range(0, nbytes, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, nbytes - place)
            _mapped(start + place, size, mmap.PROT_READ | mmap.PROT_WRITE, _MAP_FIXED, self._nan, first)
        return start


def _mapped(address: int | None, nbytes: int, access: int, flags: int, file: int, offset: int) -> int:
    found = _LIBC.mmap(address, nbytes, access, mmap.MAP_PRIVATE | _MAP_NORESERVE | flags, file, offset)
    if found in (None, _FAILED):
        raise WorkError(f"{nbytes} bytes of addresses cannot be had: {os.strerror(ctypes.get_errno())}")
    return int(found)
