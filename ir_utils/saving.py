"""Writing a model so that neither memory nor a crash matters.

`ov.save_model` holds one weight at a time, but all of it: the table of a large vocabulary is hundreds of megabytes. And
it writes on one thread. Here the graph is written first, with stubs for its weights (see `lazy_weight`), and then
all weights are computed straight into their places in the .bin. For that the .xml is made into one that has room for
what the stubs stand for:

    <data element_type="u8" shape="16" offset="4" size="16" />                 before
    <data element_type="u4" shape="64, 8, 128" offset="4" size="32768" />      after; all that follows lies 32752 later

OpenVINO writes constants in the order of the .xml, so the result is, byte for byte, what it would have written from the
constants themselves.

Both files are written beside the destination and take their places at once (see `ir_utils.publish`): whenever a process
is killed, the old model or the new one is there, never a mixture.
"""

from __future__ import annotations

import errno
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openvino as ov

from ov_weight_compression.ir_utils import option_kinds
from ov_weight_compression.ir_utils.errors import CompressionError, OptionError, WorkError
from ov_weight_compression.ir_utils.file_io import read_at, reserve, write_at
from ov_weight_compression.ir_utils.ir_file import openvino_reason, stored_constants
from ov_weight_compression.ir_utils.lazy_weight import STUB_BYTES, Stub, Stubs, stubbing
from ov_weight_compression.ir_utils.publish import Publication, cannot_write

_DATA = re.compile(rb'<data element_type="[^"]*" shape="[^"]*" offset="(\d+)" size="(\d+)" />')
_PORT = re.compile(rb'precision="U8"([^>]*)>(\s*)<dim>%d</dim>(\s*</port>)' % STUB_BYTES)
_PRECISIONS = {"bf16": "BF16", "f16": "FP16", "f32": "FP32", "f64": "FP64", "boolean": "BOOL", "u1": "BIN"}
_COPY_BYTES = 4 << 20


def save_model(model: Any, path: str | Path, after_write: Callable[[], None] | None = None) -> None:
    """Write `model` as `path` (.xml) and its .bin, in bounded memory and all or nothing.

    Unlike `ov.save_model` it leaves the precision of everything that was not compressed as it is.

    Args:
        model: any model; weights that are still to be computed are, a few at a time.
        path: of the .xml; the .bin lies beside it. A model may be written over the files that it was read from.
        after_write: called when both files are complete and before they take their names: what it raises leaves the
            destination as it was.

    Raises:
        WorkError: the disk is full or the files cannot be written, or a weight could not be computed.
    """
    option_kinds.check_model(model)
    path = Path(option_kinds.path().parse("path", path))
    if path.suffix != ".xml":
        raise OptionError(f"path: {path} must end in .xml")
    try:
        with Publication(path, [path.with_suffix(".bin").name]) as partial:
            weights, stubs = partial.with_suffix(".bin"), partial.with_suffix(".stubs.bin")
            with stubbing() as stubbed:
                ov.serialize(model, str(partial), str(stubs))
            _check_complete(partial, stubs)
            _fill(partial, stubs, weights, stubbed)
            if after_write is not None:
                after_write()
    except (OSError, ValueError) as error:
        if isinstance(error, CompressionError):
            raise
        raise cannot_write(path, error) from error
    except RuntimeError as error:
        if isinstance(error.__cause__, OSError):
            raise cannot_write(path, error.__cause__) from error
        if isinstance(error, CompressionError):
            raise
        raise WorkError(f"{path}: cannot be written: {_reason(error)}") from error


def _fill(xml: Path, stubs: Path, weights: Path, stubbed: Stubs) -> None:
    """Put what the stubs stand for in their place."""
    if not stubbed.stubs:
        stubs.replace(weights)
        return
    text = xml.read_bytes()
    found = find_stubs(text, stubs, stubbed.stubs)
    for mark in stubbed.stubs.keys() - set(found.values()):
        stub = stubbed.stubs[mark]
        raise WorkError(f"{stub.owner.name}: its {stub.part} were not found in {stubs}")
    text, places = make_room(text, stubs, weights, found, stubbed.stubs)
    stubs.unlink()
    xml.write_bytes(text)
    descriptor = os.open(weights, os.O_WRONLY | getattr(os, "O_BINARY", 0))
    try:
        stubbed.compute(descriptor, places)
    finally:
        os.close(descriptor)


def _reason(error: RuntimeError) -> str:
    """What OpenVINO says; in plain words where that is only that a stream failed."""
    line = openvino_reason(error)
    return f"the disk is full, or refuses more for another reason ({line})" if "iostream" in line else line


def _check_complete(xml: Path, weights: Path) -> None:
    """OpenVINO does not notice a full disk."""
    needed = max((constant.offset + constant.size for constant in stored_constants(xml)), default=0)
    size = weights.stat().st_size if weights.exists() else 0
    if size < needed:
        raise OSError(errno.ENOSPC, f"the disk is full ({size} of {needed} bytes were written)")


@dataclass(frozen=True)
class _Room:
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
        read = {offset: read_at(file.fileno(), STUB_BYTES, offset) for offset in places}
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
    room = _Room(tuple(found), tuple(growth))
    places = {mark: room.moved(offset) for mark, offset in first.items()}
    with written.open("rb") as source, target.open("wb") as file:
        size = os.fstat(source.fileno()).st_size
        if sparse:
            os.ftruncate(file.fileno(), size + growth[-1])
        else:
            reserve(file.fileno(), size + growth[-1])
        ends = [*found, size]
        for start, stop in zip([0, *(offset + STUB_BYTES for offset in found)], ends, strict=True):
            _copy(source.fileno(), file.fileno(), start, stop, room.moved(start) if start < stop else 0)
    return _edited(xml, room, found, stubs, places), places


def _edited(
    xml: bytes, room: _Room, found: Mapping[int, bytes], stubs: Mapping[bytes, Stub], places: Mapping[bytes, int]
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


def _copy(source: int, target: int, start: int, stop: int, place: int) -> None:
    while start < stop:
        data = read_at(source, min(_COPY_BYTES, stop - start), start)
        write_at(target, data, place)
        start, place = start + len(data), place + len(data)
