"""An IR that was written with stubs, made into one that has room for the constants that they stand for.

    <data element_type="u8" shape="16" offset="4" size="16" />                 before
    <data element_type="u4" shape="64, 8, 128" offset="4" size="32768" />      after; all that follows lies 32752 later

OpenVINO writes constants in the order of the .xml, so the result is, byte for byte, what it would have written from the
constants themselves.
"""

from __future__ import annotations

import errno
import os
import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ov_weight_compression.ir_utils.deferral import STUB_BYTES, Stub

__all__ = ["Room", "find_stubs", "make_room"]

_DATA = re.compile(rb'<data element_type="[^"]*" shape="[^"]*" offset="(\d+)" size="(\d+)" />')
_PORT = re.compile(rb'precision="U8"([^>]*)>(\s*)<dim>%d</dim>(\s*</port>)' % STUB_BYTES)
_PRECISIONS = {"bf16": "BF16", "f16": "FP16", "f32": "FP32", "f64": "FP64", "boolean": "BOOL", "u1": "BIN"}
_COPY_BYTES = 4 << 20


@dataclass(frozen=True)
class Room:
    """Where everything of a .bin goes."""

    offsets: tuple[int, ...]
    """Of the stubs as they were written, rising."""
    growth: tuple[int, ...]
    """By how many bytes what follows each stub moves; one more than there are stubs, the first for what is before."""

    def moved(self, offset: int) -> int:
        """The new place of what was written at `offset`."""
        return offset + self.growth[bisect_left(self.offsets, offset)]


def find_stubs(xml: bytes, weights: Path, stubs: Mapping[bytes, Stub]) -> dict[int, bytes]:
    """The marks that the .bin holds, by their offsets, rising."""
    places = sorted({int(offset) for offset, size in _DATA.findall(xml) if int(size) == STUB_BYTES})
    with weights.open("rb") as file:
        read = {offset: os.pread(file.fileno(), STUB_BYTES, offset) for offset in places}
    return {offset: mark for offset, mark in read.items() if mark in stubs}


def make_room(
    xml: bytes,
    written: Path,
    target: Path,
    found: Mapping[int, bytes],
    stubs: Mapping[bytes, Stub],
    sparse: bool = False,
) -> tuple[bytes, dict[bytes, int]]:
    """The .xml with the constants in place of the stubs, and a .bin at `target` with all that is known already.

    Args:
        xml: as written.
        written: the .bin as written.
        target: the .bin to write.
        found: what `find_stubs` found.
        stubs: what the marks stand for.
        sparse: leave holes that take no space on the disk.

    Returns:
        the new .xml, and the offset of each mark's constant in `target`.

    Raises:
        OSError: the disk is too small for the whole of it, or refuses.
    """
    growth, first = [0], dict[bytes, int]()
    for offset, mark in found.items():
        grown = stubs[mark].nbytes if first.setdefault(mark, offset) == offset else 0
        growth.append(growth[-1] + grown - STUB_BYTES)
    room = Room(tuple(found), tuple(growth))
    places = {mark: room.moved(offset) for mark, offset in first.items()}
    with written.open("rb") as source, target.open("wb") as file:
        size = os.fstat(source.fileno()).st_size
        if sparse:
            os.ftruncate(file.fileno(), size + growth[-1])
        else:
            _reserve(file.fileno(), size + growth[-1])
        ends = [*found, size]
        for start, stop in zip([0, *(offset + STUB_BYTES for offset in found)], ends, strict=True):
            _copy(source.fileno(), file.fileno(), start, stop, room.moved(start) if start < stop else 0)
    return _edited(xml, room, found, stubs, places), places


def _edited(
    xml: bytes, room: Room, found: Mapping[int, bytes], stubs: Mapping[bytes, Stub], places: Mapping[bytes, int]
) -> bytes:
    pieces, done = [], 0
    for data in _DATA.finditer(xml):
        offset = int(data[1])
        if offset not in found or int(data[2]) != STUB_BYTES:
            pieces += [xml[done : data.start(1)], b"%d" % room.moved(offset)]
            done = data.end(1)
            continue
        stub = stubs[found[offset]]
        kind, shape = stub.kind.to_string(), ", ".join(map(str, stub.shape))
        tag = f'<data element_type="{kind}" shape="{shape}" offset="{places[found[offset]]}" size="{stub.nbytes}" />'
        port = _PORT.search(xml, data.end())
        assert port is not None
        pieces += [
            xml[done : data.start()],
            tag.encode(),
            xml[data.end() : port.start()],
            _port(port, kind, stub.shape),
        ]
        done = port.end()
    return b"".join([*pieces, xml[done:]])


def _port(port: re.Match[bytes], kind: str, shape: tuple[int, ...]) -> bytes:
    """The output as the serialiser writes it for this type and shape."""
    tag = b'precision="%s"%s' % (_PRECISIONS.get(kind, kind.upper()).encode(), port[1])
    if not shape:
        return tag + b" />"
    return tag + b">" + b"".join(b"%s<dim>%d</dim>" % (port[2], size) for size in shape) + port[3]


def _reserve(descriptor: int, size: int) -> None:
    """Take the space of the whole file at once: a disk that is too small says so now, and writing is faster."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
    os.ftruncate(descriptor, size)


def _copy(source: int, target: int, start: int, stop: int, place: int) -> None:
    while start < stop:
        data = os.pread(source, min(_COPY_BYTES, stop - start), start)
        start += len(data)
        while data:
            count = os.pwrite(target, data, place)
            data, place = data[count:], place + count
