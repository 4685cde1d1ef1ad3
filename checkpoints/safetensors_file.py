"""safetensors files: what is in them, and their tensors as arrays and Constants that share the mapped file.

    8 bytes      N, little-endian
    N bytes      JSON: {"a": {"dtype": "BF16", "shape": [4, 8], "data_offsets": [first, end]}, …, "__metadata__": {…}}
    the rest     the tensors; offsets count from here

Nothing in a header is believed before it has been held to the file: where a tensor begins and ends, that its shape is
as large as that, that no two share bytes, and that the file is as long as they need and no longer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import Array, Float32, to_f32

_LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # what the format's own library reads
_LARGEST = 2**63 - 1
_POINTER = int.from_bytes(b"version ", "little")
"""How a pointer of Git LFS begins, taken for a length."""


@dataclass(frozen=True)
class Dtype:
    """A type of the format: its size, what numpy sees its bits as, and OpenVINO's name of it where there is one."""

    bits: int
    numpy: Any
    openvino: str | None = None


DTYPES = {
    "F64": Dtype(64, np.float64, "f64"),
    "F32": Dtype(32, np.float32, "f32"),
    "F16": Dtype(16, np.float16, "f16"),
    "BF16": Dtype(16, np.uint16, "bf16"),
    "F8_E4M3": Dtype(8, np.uint8, "f8e4m3"),
    "F8_E5M2": Dtype(8, np.uint8, "f8e5m2"),
    "F8_E8M0": Dtype(8, np.uint8, "f8e8m0"),
    "F8_E4M3FNUZ": Dtype(8, np.uint8),
    "F8_E5M2FNUZ": Dtype(8, np.uint8),
    "F6_E2M3": Dtype(6, np.uint8),
    "F6_E3M2": Dtype(6, np.uint8),
    "F4": Dtype(4, np.uint8, "f4e2m1"),
    "C64": Dtype(64, np.complex64),
    "I64": Dtype(64, np.int64, "i64"),
    "I32": Dtype(32, np.int32, "i32"),
    "I16": Dtype(16, np.int16, "i16"),
    "I8": Dtype(8, np.int8, "i8"),
    "U64": Dtype(64, np.uint64, "u64"),
    "U32": Dtype(32, np.uint32, "u32"),
    "U16": Dtype(16, np.uint16, "u16"),
    "U8": Dtype(8, np.uint8, "u8"),
    "BOOL": Dtype(8, np.bool_, "boolean"),
}
_CACHE_NOTE = "WeightlessCacheAttribute_0"
_PRECISIONS = {"f16": "FP16", "f32": "FP32", "f64": "FP64", "boolean": "BOOL"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: what it is, and where its bytes are."""

    name: str
    file: Path
    offset: int
    """Of its first byte in the file."""
    nbytes: int
    dtype: str
    """As the format writes it: `"BF16"`."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)

    @property
    def openvino_type(self) -> str | None:
        """OpenVINO's name of its type; None where it has no such type."""
        return DTYPES[self.dtype].openvino

    def values(self) -> Array:
        """A read-only view of the mapped file; of types that numpy does not know, the bits (bf16 as uint16; of types
        below a byte all bytes, without the shape)."""
        dtype = DTYPES[self.dtype]
        shape = self.shape if dtype.bits % 8 == 0 else (self.nbytes,)
        if not self.nbytes:
            return np.empty(shape, dtype.numpy)
        mapped = np.memmap(self.file, np.uint8, "r", self.offset, (self.nbytes,))
        values: Array = mapped.view(dtype.numpy).reshape(shape)
        return values

    def floats(self) -> Float32:
        """The values of a tensor of f16, bf16, f32 or f64, as float32."""
        return to_f32(self.values(), self.dtype.lower())


@dataclass(frozen=True)
class SafetensorsFile:
    """What a file holds."""

    path: Path
    tensors: dict[str, StoredTensor]
    """By name, in the order of their places."""
    metadata: dict[str, str]


def read_header(path: Path) -> SafetensorsFile:
    """What a file says it holds, once it is certain that the file has it.

    Raises:
        ModelError: it cannot be read, is no safetensors file, or is damaged or cut short; names the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length == _POINTER:
                raise ModelError(f"{path}: a Git LFS pointer instead of the file: fetch it (git lfs pull)")
            if size < _LENGTH_BYTES or length > min(_LONGEST_HEADER, size - _LENGTH_BYTES):
                raise ModelError(
                    f"{path}: not a safetensors file, or cut short: its header would have {length} of {size} bytes"
                )
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    entries = _entries(path, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: damaged: its metadata are no texts")
    begin = _LENGTH_BYTES + length
    found = sorted((_tensor(path, begin, name, entry) for name, entry in entries.items()), key=_place)
    _check_places(path, begin, size, found)
    return SafetensorsFile(path, {tensor.name: tensor for tensor in found}, metadata)


def _place(tensor: StoredTensor) -> tuple[int, int]:
    return tensor.offset, tensor.nbytes


def _entries(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) < len(pairs):
            raise ValueError("a name stands there twice")
        return read

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError as error:
        raise ModelError(f"{path}: not a safetensors file, or damaged: its header is nested too deeply") from error
    except ValueError as error:
        raise ModelError(f"{path}: not a safetensors file, or damaged: its header is no JSON ({error})") from error
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: not a safetensors file: its header is no table of tensors")
    return entries


def _tensor(path: Path, begin: int, name: str, entry: Any) -> StoredTensor:
    """A tensor from its entry in the header, whose numbers fit each other."""
    what = f"{path}: damaged: tensor {shown(name)}"
    if not isinstance(entry, dict):
        raise ModelError(f"{what} is no table of dtype, shape and data_offsets")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    places: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelError(f"{what} is of type {shown(dtype)}; known are {', '.join(DTYPES)}")
    if not _are_counts(shape):
        raise ModelError(f"{what} has the shape {shown(shape)}")
    if not _are_counts(places) or len(places) != 2 or places[0] > places[1]:
        raise ModelError(f"{what} lies at {shown(places)}, which is no begin and end")
    nbytes, bits = places[1] - places[0], prod(shape) * DTYPES[dtype].bits
    if bits != nbytes * 8:
        raise ModelError(f"{what} has {nbytes} bytes, where {dtype} {shown(shape)} has {-(-bits // 8)}")
    return StoredTensor(name, path, begin + places[0], nbytes, dtype, tuple(shape))


def _are_counts(value: Any) -> bool:
    """Whether a value of the header is a list of sizes or places."""
    return isinstance(value, list) and all(type(one) is int and 0 <= one <= _LARGEST for one in value)


def _check_places(path: Path, begin: int, size: int, tensors: Sequence[StoredTensor]) -> None:
    end, last = begin, ""
    for tensor in tensors:
        if tensor.offset < end:
            raise ModelError(f"{path}: damaged: tensors {shown(last)} and {shown(tensor.name)} overlap")
        if tensor.offset > end:
            raise ModelError(
                f"{path}: damaged: {tensor.offset - end} bytes before {shown(tensor.name)} are no tensor's"
            )
        end, last = tensor.offset + tensor.nbytes, tensor.name
    if end > size:
        raise ModelError(f"{path}: cut short: its tensors need {end} bytes, the file has {size}")
    if end < size:
        raise ModelError(f"{path}: damaged: the last {size - end} bytes are no tensor's")


def mapped_constants(
    tensors: Sequence[StoredTensor],
    shapes: Sequence[tuple[int, ...]] | None = None,
    element_types: Sequence[str] | None = None,
) -> list[Any]:
    """Constants whose memory is the mapped files: nothing is read or copied.

    A Constant over a numpy array would not keep the mapping (nor could it be bf16). So OpenVINO maps the file itself:
    an IR may have any file for its weights, and its constants may lie anywhere in it.

    Args:
        tensors: what the constants are; of any number of files.
        shapes: theirs; by default the tensors' own.
        element_types: OpenVINO's names of the types that the bytes are taken for; by default the tensors' own.

    Raises:
        ModelError: OpenVINO has no such type, or cannot read a file.
    """
    shapes = [tensor.shape for tensor in tensors] if shapes is None else shapes
    kinds = [_openvino_type(tensor) for tensor in tensors] if element_types is None else element_types
    by_file: dict[Path, list[int]] = {}
    for number, tensor in enumerate(tensors):
        by_file.setdefault(tensor.file, []).append(number)
    found: dict[int, Any] = {}
    for file, numbers in by_file.items():
        described = [(tensors[number], shapes[number], kinds[number]) for number in numbers]
        found.update(zip(numbers, _constants_of(file, described), strict=True))
    return [found[number] for number in range(len(tensors))]


def _openvino_type(tensor: StoredTensor) -> str:
    kind = tensor.openvino_type
    if kind is None:
        raise ModelError(f"{tensor.file}: {tensor.name} is of type {tensor.dtype}, which OpenVINO does not have")
    return kind


def _constants_of(file: Path, described: Sequence[tuple[StoredTensor, tuple[int, ...], str]]) -> list[Any]:
    layers, edges = [], []
    for number, (tensor, shape, kind) in enumerate(described):
        port = f'<port id="0" precision="{_PRECISIONS.get(kind, kind.upper())}">'
        port += "".join(f"<dim>{size}</dim>" for size in shape) + "</port>"
        layers.append(
            f'<layer id="{2 * number}" name="c{number}" type="Const" version="opset1">'
            f'<data element_type="{kind}" shape="{", ".join(map(str, shape))}" offset="{tensor.offset}" '
            f'size="{tensor.nbytes}"/><output>{port}</output></layer>'
            f'<layer id="{2 * number + 1}" name="{number}" type="Result" version="opset1"><input>{port}</input></layer>'
        )
        edges.append(f'<edge from-layer="{2 * number}" from-port="0" to-layer="{2 * number + 1}" to-port="0"/>')
    text = f'<net name="tensors" version="11"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges></net>'
    with tempfile.TemporaryDirectory(prefix="ov-weight-compression-") as folder:
        xml = Path(folder) / "tensors.xml"
        xml.write_text('<?xml version="1.0"?>' + text, encoding="utf-8")
        try:
            model = ov.Core().read_model(xml, file)
        except RuntimeError as error:
            raise ModelError(f"{file}: OpenVINO cannot read it: {str(error).strip().splitlines()[-1]}") from error
    constants = {int(result.get_friendly_name()): result.input_value(0).get_node() for result in model.get_results()}
    for number, (tensor, _, _) in enumerate(described):
        constants[number].set_friendly_name(tensor.name)
        # Where OpenVINO notes that a constant lies in the weights of "the" model, for models cached without weights, it
        # would look into another file.
        notes = constants[number].get_rt_info()
        if _CACHE_NOTE in notes:
            del notes[_CACHE_NOTE]
    return [constants[number] for number in range(len(described))]
