"""Writing a model so that neither memory nor a crash matters.

`ov.save_model` holds one weight at a time, but all of it: the table of a large vocabulary is hundreds of megabytes. And
it writes on one thread. Here the graph is written first, with a stub for each constant of a weight: a few bytes that
no other constant has. Then all weights are computed straight into their places in the .bin, by all threads and in any
order. For that the .xml is made into one that has room for what the stubs stand for:

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
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils import option_kinds
from ov_weight_compression.ir_utils.errors import CompressionError, OptionError, WorkError
from ov_weight_compression.ir_utils.file_io import WriteBehind, reserve
from ov_weight_compression.ir_utils.ir_file import openvino_reason
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight, here
from ov_weight_compression.ir_utils.publish import Publication, cannot_write
from ov_weight_compression.ir_utils.worker_pool import FileSink, Job

_STUB_BYTES = 16
_DATA = re.compile(rb'<data element_type="[^"]*" shape="[^"]*" offset="(\d+)" size="(\d+)" />')
_PORT = re.compile(rb'precision="U8"([^>]*)>(\s*)<dim>%d</dim>(\s*</port>)' % _STUB_BYTES)
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
    path = Path(option_kinds.PATH.parse("path", path))
    if path.suffix != ".xml":
        raise OptionError(f"path: {path} must end in .xml")
    try:
        with Publication(path, [path.with_suffix(".bin").name]) as partial:
            weights, stubs = partial.with_suffix(".bin"), partial.with_suffix(".stubs.bin")
            with stubbing() as stood_for:
                ov.serialize(model, str(partial), str(stubs))
            text = partial.read_bytes()
            needed = max((int(offset) + int(size) for offset, size in _DATA.findall(text)), default=0)
            written = stubs.stat().st_size if stubs.exists() else 0
            if written < needed:  # which OpenVINO does not notice
                raise OSError(errno.ENOSPC, f"the disk is full ({written} of {needed} bytes were written)")
            if not stood_for:
                stubs.replace(weights)
            else:
                text, places = make_room(text, stubs, weights, stood_for)
                stubs.unlink()
                partial.write_bytes(text)
                descriptor = os.open(weights, os.O_WRONLY | getattr(os, "O_BINARY", 0))
                try:
                    behind, sinks = WriteBehind(descriptor), dict[LazyWeight, dict[str, FileSink]]()
                    for mark, (weight, part) in stood_for.items():
                        sinks.setdefault(weight, {})[part] = FileSink(descriptor, places[mark], behind)
                    for pipeline in dict.fromkeys(weight.pipeline for weight in sinks):
                        own = [weight for weight in sinks if weight.pipeline is pipeline]
                        pipeline.run_all([Job(weight.encoding, sinks[weight]) for weight in own])
                finally:
                    os.close(descriptor)
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


def _reason(error: RuntimeError) -> str:
    """What OpenVINO says; in plain words where that is only that a stream failed."""
    line = openvino_reason(error)
    return f"the disk is full, or refuses more for another reason ({line})" if "iostream" in line else line


Stubs = dict[bytes, tuple[LazyWeight, str]]
"""By the bytes of a stub the constant that it stands for: whose, and which part."""


@contextmanager
def stubbing() -> Iterator[Stubs]:
    """Let makers of constants that this thread calls hand over stubs; they are in what is returned. Parts of weights
    whose constants are the same bytes have one in common."""
    stubs: Stubs = {}
    marks: dict[tuple[LazyWeight, str], bytes] = {}
    first: dict[Hashable, LazyWeight] = {}  # of those that are alike, by their identity and by each of them

    def stub(weight: LazyWeight, part: str) -> ov.Tensor:
        if weight not in first:
            identity = weight.encoding.identity
            first[weight] = weight if identity is None else first.setdefault(identity, weight)
        constant = first[weight], part
        mark = marks.setdefault(constant, b"to be filled" + (len(marks) + 1).to_bytes(_STUB_BYTES - 12, "little"))
        stubs[mark] = constant
        tensor = ov.Tensor(ov.Type.u8, ov.Shape([_STUB_BYTES]))
        tensor.data[:] = np.frombuffer(mark, dtype=np.uint8)
        return tensor

    here.stub = stub
    try:
        yield stubs
    finally:
        here.stub = None


def make_room(
    xml: bytes, written: Path, target: Path, stubs: Stubs, sparse: bool = False
) -> tuple[bytes, dict[bytes, int]]:
    """The .xml with the constants in place of the stubs, and a .bin at `target` with all that is known already.

    Args:
        xml: as written.
        written: the .bin as written.
        target: the .bin to write.
        stubs: what is stood for.
        sparse: leave holes that take no space on the disk.

    Returns:
        the new .xml, and the offset of each stub's constant in `target`.

    Raises:
        WorkError: a stub is not there.
        OSError: the disk is too small for the whole of it, or refuses.
    """
    parts = {mark: weight.encoding.parts[part] for mark, (weight, part) in stubs.items()}
    found: dict[int, bytes] = {}  # by its offset, rising
    growth, first = [0], dict[bytes, int]()  # by how many bytes what is before, and behind each stub, moves
    with written.open("rb") as source, target.open("wb") as file:
        for offset in sorted({int(offset) for offset, size in _DATA.findall(xml) if int(size) == _STUB_BYTES}):
            source.seek(offset)
            mark = source.read(_STUB_BYTES)
            if mark in stubs:
                found[offset] = mark
                grown = parts[mark].nbytes if first.setdefault(mark, offset) == offset else 0
                growth.append(growth[-1] + grown - _STUB_BYTES)
        for mark in stubs.keys() - first.keys():
            weight, part = stubs[mark]
            raise WorkError(f"{weight.encoding.name}: its {part} were not found in {written}")
        size = os.fstat(source.fileno()).st_size
        if sparse:
            os.ftruncate(file.fileno(), size + growth[-1])
        else:
            reserve(file.fileno(), size + growth[-1])
        starts, stops = [0, *(offset + _STUB_BYTES for offset in found)], [*found, size]
        for start, stop, moved in zip(starts, stops, growth, strict=True):
            source.seek(start)
            file.seek(start + moved)
            for place in range(start, stop, _COPY_BYTES):
                file.write(source.read(min(_COPY_BYTES, stop - place)))
    offsets = list(found)
    places = {mark: offset + growth[bisect_left(offsets, offset)] for mark, offset in first.items()}
    pieces, done = [], 0
    for data in _DATA.finditer(xml):  # every constant at its new offset, in place of a stub with its own type and shape
        offset = int(data[1])
        if offset not in found or int(data[2]) != _STUB_BYTES:
            pieces += [xml[done : data.start(1)], b"%d" % (offset + growth[bisect_left(offsets, offset)])]
            done = data.end(1)
            continue
        mark = found[offset]
        stored = parts[mark]
        shape = ", ".join(map(str, stored.shape))
        tag = f'<data element_type="{stored.type}" shape="{shape}" offset="{places[mark]}" size="{stored.nbytes}" />'
        port = _PORT.search(xml, data.end())
        assert port is not None
        output = b'precision="%s"%s' % (_PRECISIONS.get(stored.type, stored.type.upper()).encode(), port[1])
        sizes = b"".join(b"%s<dim>%d</dim>" % (port[2], size) for size in stored.shape)
        output += b">" + sizes + port[3] if sizes else b" />"  # as the serialiser writes it
        pieces += [xml[done : data.start()], tag.encode(), xml[data.end() : port.start()], output]
        done = port.end()
    return b"".join([*pieces, xml[done:]]), places
