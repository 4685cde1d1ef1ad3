"""Whose bytes a constant is: which tensor of a checkpoint, by the address of its memory.

transformers hands out parameters that are views of the mapped safetensors files, and OpenVINO's PyTorch frontend makes
Constants that share that memory. So a constant's address says which file it lies in and where, hence which tensor it is
(or which part of one), whatever either of them is called.

The files are mapped private and writable: where somebody has changed a parameter in place the address is still that of
the file, but the kernel has given the page a copy of its own, and says so. Such a constant is taken for computed.
"""

from __future__ import annotations

import struct
import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ov_weight_compression.checkpoints.safetensors_file import StoredTensor
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array, to_f32
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed

_PRESENT, _SWAPPED, _OF_A_FILE = 1 << 63, 1 << 62, 1 << 61  # bits of an entry of /proc/self/pagemap
_POSTPONED = "postponed_constant"
_ENTRY_BYTES = 8
_ENTRIES = 1 << 16  # read at a time
_SUMMED = 1 << 20


@dataclass(frozen=True)
class Stretch:
    """Bytes of a tensor: all of them, or a part."""

    tensor: StoredTensor
    begin: int
    """Where in the tensor's bytes they begin."""
    nbytes: int

    @property
    def whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.nbytes == self.tensor.nbytes


@dataclass(frozen=True)
class Span:
    """Addresses of this process that are a part of a file."""

    start: int
    stop: int
    offset: int
    """Of the first address in the file."""
    path: str


class FileSpans:
    """Which file, and where in it, an address of this process belongs to, as it is now.

    Raises:
        ModelError: this system does not say (it is not Linux).
    """

    def __init__(self) -> None:
        if not sys.platform.startswith("linux"):
            raise ModelError("a checkpoint can be read on Linux only: other systems do not say what memory is a file's")
        self._spans: list[Span] = []
        with open("/proc/self/maps") as lines:
            for line in lines:
                span, _, offset, _, inode, *path = line.split(maxsplit=5)
                if inode != "0" and path:
                    start, stop = (int(end, 16) for end in span.split("-"))
                    self._spans.append(Span(start, stop, int(offset, 16), path[0].rstrip("\n")))
        self._starts = [span.start for span in self._spans]

    def of(self, file: Path) -> list[Span]:
        """Where a file is mapped."""
        return [span for span in self._spans if span.path == str(file.resolve())]

    def find(self, address: int, nbytes: int) -> tuple[str, int] | None:
        """The file that has all bytes at an address, and where; None where they are memory, or have been written to."""
        place = bisect_right(self._starts, address) - 1
        if place < 0 or address + nbytes > self._spans[place].stop:
            return None
        span = self._spans[place]
        return None if is_written(address, nbytes) else (span.path, span.offset + address - span.start)


def is_written(address: int, nbytes: int) -> bool:
    """Whether a page under bytes of a private mapping is no longer the file's."""
    return any(
        entry & _SWAPPED or (entry & _PRESENT and not entry & _OF_A_FILE) for entry in _page_entries(address, nbytes)
    )


def is_present(address: int, nbytes: int) -> bool:
    """Whether a page under some bytes is in this process's memory: somebody has read or written it."""
    return any(entry & (_PRESENT | _SWAPPED) for entry in _page_entries(address, nbytes))


def _page_entries(address: int, nbytes: int) -> Iterator[int]:
    """What the kernel says of each page under some bytes."""
    first, last = address // PAGESIZE, -(-(address + nbytes) // PAGESIZE)
    with open("/proc/self/pagemap", "rb") as pages:
        pages.seek(first * _ENTRY_BYTES)
        for start in range(first, last, _ENTRIES):
            read = pages.read(min(_ENTRIES, last - start) * _ENTRY_BYTES)
            yield from struct.unpack(f"<{len(read) // _ENTRY_BYTES}Q", read)


class Places(Protocol):
    """Whose bytes some memory is."""

    def find(self, spans: FileSpans, address: int, nbytes: int) -> Stretch | None:
        """The tensor that memory belongs to; None where it is no tensor's, or more than one's."""
        ...


class TensorPlaces:
    """The tensors of a checkpoint by where they lie in their files."""

    def __init__(self, tensors: Iterable[StoredTensor]) -> None:
        self._in_file: dict[str, tuple[list[int], list[StoredTensor]]] = {}
        found: dict[Path, list[StoredTensor]] = {}
        for tensor in tensors:
            if tensor.nbytes:
                found.setdefault(tensor.file, []).append(tensor)
        for file, inside in found.items():
            inside.sort(key=lambda tensor: tensor.offset)
            self._in_file[str(file.resolve())] = [tensor.offset for tensor in inside], inside

    def find(self, spans: FileSpans, address: int, nbytes: int) -> Stretch | None:
        """The tensor that memory belongs to; None where it is no tensor's, or more than one's."""
        place = spans.find(address, nbytes) if nbytes else None
        offsets, inside = self._in_file.get(place[0], ([], [])) if place is not None else ([], [])
        if place is None or not inside:
            return None
        number = bisect_right(offsets, place[1]) - 1
        if number < 0 or place[1] + nbytes > inside[number].offset + inside[number].nbytes:
            return None
        return Stretch(inside[number], place[1] - inside[number].offset, nbytes)


@dataclass(frozen=True)
class Explained:
    """The constants of a model: those that are a tensor's bytes, and those that the exporter computed."""

    stored: tuple[tuple[Any, Stretch], ...]
    computed: tuple[Any, ...]
    turned: tuple[tuple[Any, Stretch], ...] = ()
    """Transposes of a tensor's last two axes that OpenVINO will fold only when it writes the model."""


def explain_constants(model: Any, places: Places) -> Explained:
    """Which of a model's constants, bodies included, are tensors.

    Raises:
        ModelError: a tensor's bytes are taken for another type than the checkpoint says.
    """
    spans = FileSpans()
    stored: list[tuple[Any, Stretch]] = []
    turned: list[tuple[Any, Stretch]] = []
    computed: list[Any] = []
    for graph in graphs_of(model):
        for constant, kind in graph.constants:
            stretch = None if kind == "string" or is_postponed(constant) else places.find(spans, *address_of(constant))
            if stretch is None:
                computed.append(constant)
                continue
            if kind != stretch.tensor.openvino_type:
                raise ModelError(
                    f"{stretch.tensor.file}: {stretch.tensor.name} is {stretch.tensor.dtype}, and the exporter took it "
                    f"for {kind}"
                )
            folded = folded_when_written(constant)
            if folded is None:
                stored.append((constant, stretch))
            else:
                turned.append((folded, stretch))
    return Explained(tuple(stored), tuple(computed), tuple(turned))


def folded_when_written(constant: Any) -> Any | None:
    """The Transpose behind a constant that OpenVINO folds only when it writes the model; None where there is none."""
    readers = [target.get_node() for target in constant.output(0).get_target_inputs()]
    if len(readers) != 1 or readers[0].get_type_name() != "Transpose" or _POSTPONED not in readers[0].get_rt_info():
        return None
    return readers[0]


def address_of(constant: Any) -> tuple[int, int]:
    """Where a Constant's memory is, and how many bytes."""
    data = constant.data
    return int(data.__array_interface__["data"][0]), int(data.nbytes)


def sum_of_bits(values: Array, kind: str) -> int:
    """The sum of floats' bits, each as float32: the same in whatever type and order they are stored, as far as that is
    exact. `kind` is OpenVINO's name of the type, `values` bits for bf16."""
    flat, total = values.reshape(-1), 0
    for start in range(0, flat.size, _SUMMED):
        wide = to_f32(flat[start : start + _SUMMED], kind)
        total += int(wide.view(np.uint32).sum(dtype=np.uint64))
    return total
