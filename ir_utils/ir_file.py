"""IR files as files: where the constants of an .xml lie in its .bin, and reading both with errors for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError, iterparse

import openvino as ov

from ov_weight_compression.ir_utils.errors import ModelError, WorkError
from ov_weight_compression.ir_utils.publish import mend

__all__ = ["StoredConstant", "changed_since", "read_model", "stored_constants"]

_CONSTANT = re.compile(rb'<data\b[^>]*?\boffset="(\d+)"[^>]*?\bsize="(\d+)"')
_READABLE = (".xml", ".onnx")
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class StoredConstant:
    """A run of bytes of a .bin file."""

    offset: int
    size: int


def stored_constants(xml: Path) -> list[StoredConstant]:
    """Where the constants that an .xml names lie in its .bin; several may name the same bytes."""
    return [StoredConstant(int(offset), int(size)) for offset, size in _CONSTANT.findall(xml.read_bytes())]


def changed_since(path: str | Path) -> Callable[[], None]:
    """What raises, when it is called, if somebody has written into a model's files.

    The weights stay in the mapped file until they are computed: whoever writes into it meanwhile changes the result.
    A file that was replaced or removed does no harm: what is mapped is the old one.

    Raises:
        WorkError: (when called) a file was written to; names it.
    """
    files = [Path(path), Path(path).with_suffix(".bin")]
    before = [_state(file) for file in files]

    def check() -> None:
        for file, old in zip(files, before, strict=True):
            new = _state(file)
            if old is not None and new is not None and old[:2] == new[:2] and old != new:
                raise WorkError(f"{file}: was changed while it was read; nothing was written")

    return check


def _state(file: Path) -> tuple[int, ...] | None:
    """Which file it is, and what changes when it is written to."""
    try:
        known = file.stat()
    except OSError:
        return None
    return known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns


def read_model(path: str | Path) -> ov.Model:
    """Read an .xml (with its .bin) or an .onnx (external data included); its weights stay in the mapped file.

    Raises:
        ModelError: the file is missing or unreadable, is of another kind, is corrupt, or its .bin is missing or
            shorter than the .xml says. The message names the file.
    """
    path = Path(path)
    if not path.exists():
        mend(path)
    if not path.exists():
        raise ModelError(f"{path}: there is no such file")
    if not path.is_file() or path.suffix.lower() not in _READABLE:
        raise ModelError(f"{path}: not a model; expected an .xml or .onnx file, or a folder with openvino_*.xml files")
    if path.suffix.lower() == ".xml":
        _check_head(path)
        _check_weights(path)
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        reason = _malformed(path) if path.suffix.lower() == ".xml" else None
        raise ModelError(f"{path}: OpenVINO cannot read it: {reason or _reason(error)}") from error


def _check_head(xml: Path) -> None:
    """Refuses what is no IR at all: OpenVINO would try its other readers on it, and TensorFlow's prints what it
    thinks of that."""
    try:
        with xml.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ModelError(f"{xml}: cannot be read: {error.strerror}") from error
    if not _begins_with_net(head):
        raise ModelError(f"{xml}: OpenVINO cannot read it: an IR begins with <net, and this file does not")


def _begins_with_net(head: bytes) -> bool:
    """Whether the first element is <net>, after declarations and comments."""
    place = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    while True:
        place += len(head[place:]) - len(head[place:].lstrip())
        for begin, end in ((b"<?", b"?>"), (b"<!--", b"-->")):
            if head.startswith(begin, place):
                stop = head.find(end, place + len(begin))
                if stop < 0:
                    return False
                place = stop + len(end)
                break
        else:
            return re.match(rb"<net\b", head[place : place + 5]) is not None


def _check_weights(xml: Path) -> None:
    weights = xml.with_suffix(".bin")
    try:
        needed = max((constant.offset + constant.size for constant in stored_constants(xml)), default=0)
        size = weights.stat().st_size if weights.exists() else None
        if size:
            with weights.open("rb"):
                pass
    except OSError as error:
        raise ModelError(f"{error.filename or xml}: cannot be read: {error.strerror}") from error
    if needed and size is None:
        raise ModelError(f"{weights}: the weights of {xml.name} are missing")
    if size is not None and size < needed:
        raise ModelError(f"{weights}: truncated: {xml.name} needs {needed} bytes, the file has {size}")


def _malformed(xml: Path) -> str | None:
    """Where the XML breaks off or is broken; None where it is well-formed, and OpenVINO knows better."""
    try:
        for _, element in iterparse(xml):
            element.clear()
    except ParseError as error:
        return f"damaged or cut short: {error}"
    return None


def _reason(error: Exception) -> str:
    """The line of an OpenVINO exception that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("Exception from")]
    return (telling or lines or ["no reason given"])[0]
