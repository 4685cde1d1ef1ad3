"""IR files as files: where the constants of an .xml lie in its .bin, and reading both with errors for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError, iterparse

import openvino as ov

from ov_weight_compression.ir_utils.errors import ModelError, WorkError, one_line
from ov_weight_compression.ir_utils.journal import note
from ov_weight_compression.ir_utils.publish import mend

_CONSTANT = re.compile(rb'<data\b[^>]*?\boffset="(\d+)"[^>]*?\bsize="(\d+)"')
_READABLE = (".xml", ".onnx")
_HEAD_BYTES = 1 << 16
_DIGITS = 19  # of an offset; a damaged file may have thousands
_BEGINS = re.compile(rb"(?s)(?:\xef\xbb\xbf)?(?:\s|<\?(?:(?!\?>).)*\?>|<!--(?:(?!-->).)*-->)*<net\b")
"""An IR: its first element is <net>, behind declarations and comments."""
_VERSION = re.compile(rb"<net\b[^<>]{0,4096}?\bversion\s*=\s*[\"'](\d{1,9})[\"']")
_VERSIONS = (10, 11)

_SAYS_NOTHING = ("Exception from", "Check '", "Converting input model", "Loading input model", "FrontEnd API failed")
_IN_WORDS = (
    (
        re.compile(r"Cannot create (\S+) layer (.+?)(?: id:\d+)? from unsupported opset: (.*)"),
        r"nobody here knows the operation \1 of layer '\2' (from '\3'): it belongs to an extension or a newer OpenVINO",
    ),
    (
        re.compile(r"Opset (\S+) doesn't contain the operation with type: (.*)"),
        r"nobody here knows the operation '\2': there is none of this name in \1",
    ),
    (re.compile(r"^sto[a-z]+$|^invalid sto[a-z]+ argument$"), "damaged: a number in it is none"),
    (re.compile(r"^Unable to read the model.*"), "damaged, or of a kind that it does not know"),
)
_VALIDATED = re.compile(r"While validating node '(\S+) .*with friendly_name '(.*)':")


@dataclass(frozen=True)
class StoredConstant:
    """A run of bytes of a .bin file."""

    offset: int
    size: int


def stored_constants(xml: Path) -> list[StoredConstant]:
    """Where the constants that an .xml names lie in its .bin; several may name the same bytes."""
    found = _CONSTANT.findall(xml.read_bytes())
    return [StoredConstant(int(offset[:_DIGITS]), int(size[:_DIGITS])) for offset, size in found]


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
    try:
        if not path.exists():
            mend(path)
        there = path.exists()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not there:
        raise ModelError(f"{path}: there is no such file")
    if not path.is_file() or path.suffix.lower() not in _READABLE:
        raise ModelError(
            f"{path}: not a model; expected an .xml or .onnx file, or a folder with openvino_*.xml files (to compress "
            "also a checkpoint's folder, with config.json and *.safetensors)"
        )
    if path.suffix.lower() == ".xml":
        _check_ir(path)
    note("reads", path)
    try:
        return ov.Core().read_model(path) if path.suffix.lower() == ".xml" else _read_onnx(path)
    except Exception as error:  # RuntimeError, those of the frontends, and text in them that is no UTF-8
        reason = _malformed(path) if path.suffix.lower() == ".xml" else None
        raise ModelError(f"{path}: OpenVINO cannot read it: {reason or openvino_reason(error)}") from error


def _read_onnx(path: Path) -> ov.Model:
    """With the reader for ONNX alone: asked to choose, OpenVINO tries others on a damaged file, and TensorFlow's prints
    what it thinks of that."""
    from openvino.frontend import FrontEndManager

    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(str(path), True))


def _check_ir(xml: Path) -> None:
    """Refuses what is no IR at all, on which OpenVINO would try its other readers, and TensorFlow's prints what it
    thinks of that; and one whose weights are not there as a whole."""
    try:
        with xml.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ModelError(f"{xml}: cannot be read: {error.strerror}") from error
    if _BEGINS.match(head) is None:
        raise ModelError(f"{xml}: OpenVINO cannot read it: an IR begins with <net, and this file does not")
    version = _VERSION.search(head)
    if version is None or int(version[1]) not in _VERSIONS:
        said = "has no version" if version is None else f"is of version {int(version[1])}"
        raise ModelError(f"{xml}: OpenVINO cannot read it: this IR {said}; versions 10 and 11 can be read")
    try:
        xml.read_bytes().decode("utf-8")  # OpenVINO takes other bytes, and names that cannot be shown come of it
    except UnicodeDecodeError as error:
        raise ModelError(f"{xml}: damaged: byte {error.start} is no UTF-8") from error
    except OSError as error:
        raise ModelError(f"{xml}: cannot be read: {error.strerror}") from error
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


def openvino_reason(error: BaseException) -> str:
    """What an exception of OpenVINO says, in one line and without where in its sources it says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_SAYS_NOTHING)]
    where = ""
    for line in telling:
        node = _VALIDATED.match(line)
        if node is not None:
            where = f"layer '{node[2]}' ({node[1].split('::')[-1]}): "
    rest = [line for line in telling if not _VALIDATED.match(line) and not line.startswith("Shape inference input")]
    reason = rest[0] if rest else "it does not say why"
    for pattern, words in _IN_WORDS:
        reason = pattern.sub(words, reason)
    return one_line(where + reason, 400)
