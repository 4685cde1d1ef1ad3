"""safetensors files: read as their own library reads them, refused where they are damaged, and never copied."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.checkpoints.safetensors_file import mapped_constants, read_header
from ov_weight_compression.ir_utils.errors import ModelError
from tests.checkpoints.files import header_of, write_file, write_tensors

RANDOM = np.random.default_rng(0)
TENSORS = {
    "a.weight": RANDOM.standard_normal((4, 6)).astype(np.float16),
    "b": RANDOM.integers(0, 2**16, (3, 5), dtype=np.uint16),
    "c": np.array(2.5, np.float32),
    "d": RANDOM.integers(0, 256, 7, dtype=np.uint8),
    "e": np.array([[1, -2]], np.int32),
    "f": np.empty((0, 3), np.float32),
    'g "<&\n': np.array([True, False]),
}


def test_tensors_are_views_of_the_file(tmp_path: Path) -> None:
    read = read_header(write_tensors(tmp_path / "t.safetensors", TENSORS))
    assert {name: stored.shape for name, stored in read.tensors.items()} == {n: v.shape for n, v in TENSORS.items()}
    assert read.tensors["b"].dtype == "BF16"
    for name, values in TENSORS.items():
        bits = read.tensors[name].values()
        assert bits.dtype == values.dtype
        assert np.array_equal(bits, values)
        assert values.size == 0 or not bits.flags.writeable


def test_the_formats_own_library_writes_the_same(tmp_path: Path) -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file({"x": TENSORS["a.weight"], "y": TENSORS["d"]}, tmp_path / "t.safetensors", {"format": "pt"})
    read = read_header(tmp_path / "t.safetensors")
    assert np.array_equal(read.tensors["x"].values(), TENSORS["a.weight"])
    assert np.array_equal(read.tensors["y"].values(), TENSORS["d"])
    assert read.metadata == {"format": "pt"}


def test_constants_lie_in_the_file_and_keep_it_mapped(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "t.safetensors", TENSORS)
    read = read_header(path)
    names = list(TENSORS)
    constants = mapped_constants([read.tensors[name] for name in names])
    gc.collect()
    assert [one.get_friendly_name() for one in constants] == names
    assert [one.get_element_type().to_string() for one in constants] == [
        "f16", "bf16", "f32", "u8", "i32", "f32", "boolean",
    ]  # fmt: skip
    for constant, values in zip(constants, TENSORS.values(), strict=True):
        assert tuple(constant.get_output_shape(0)) == values.shape
        assert constant.data.tobytes() == values.tobytes()
        assert not constant.output(0).get_target_inputs()
    assert mapped(path)
    kept = constants[1]
    del constants, constant
    gc.collect()
    assert kept.data.tobytes() == TENSORS["b"].tobytes()
    del kept
    gc.collect()
    assert not mapped(path)


def test_bytes_can_be_taken_for_another_type_and_shape(tmp_path: Path) -> None:
    read = read_header(write_tensors(tmp_path / "t.safetensors", {"d": np.arange(8, dtype=np.uint8)}))
    (constant,) = mapped_constants([read.tensors["d"]], [(2, 8)], ["f4e2m1"])
    assert constant.get_element_type() == ov.Type.f4e2m1
    assert list(constant.get_output_shape(0)) == [2, 8]


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def entry(dtype: Any = "F16", shape: Any = (2,), places: Any = (0, 4)) -> dict[str, Any]:
    listed = [list(one) if isinstance(one, tuple) else one for one in (shape, places)]
    return {"x": {"dtype": dtype, "shape": listed[0], "data_offsets": listed[1]}}


DAMAGED = {
    "no header": (b"", None, "not a safetensors file, or cut short"),
    "header longer than the file": (entry(), 1 << 40, "its header would have 1099511627776 of"),
    "no JSON": (b"{'x': 1}", None, "its header is no JSON"),
    "no text": (b"\xff\xfe{}", None, "its header is no JSON"),
    "a list": (b"[]", None, "its header is no table of tensors"),
    "nested": (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "nested too deeply"),
    "a name twice": (b'{"x": {}, "x": {}}', None, "a name stands there twice"),
    "no entry": ({"x": 1}, None, "tensor 'x' is no table"),
    "unknown type": (entry(dtype="F17"), None, "tensor 'x' is of type 'F17'; known are F64"),
    "type is no text": (entry(dtype=[]), None, "tensor 'x' is of type []"),
    "negative size": (entry(shape=(-2,)), None, "has the shape [-2]"),
    "size is no number": (entry(shape=(True, 2)), None, "has the shape [True, 2]"),
    "ends before it begins": (entry(places=(4, 0)), None, "lies at [4, 0], which is no begin and end"),
    "three places": (entry(places=(0, 2, 4)), None, "lies at [0, 2, 4]"),
    "larger than its bytes": (entry(shape=(3,)), None, "has 4 bytes, where F16 [3] has 6"),
    "larger than anything": (entry(shape=(2**40, 2**40, 2**40)), None, "has 4 bytes, where F16"),
    "beyond the end": (entry(shape=(4,), places=(0, 8)), None, "cut short: its tensors need 80 bytes, the file has 76"),
    "a gap": (entry(shape=(1,), places=(2, 4)), None, "damaged: 2 bytes before 'x' are no tensor's"),
    "more than its tensors": (entry(shape=(1,), places=(0, 2)), None, "the last 2 bytes are no tensor's"),
    "overlap": (
        {**entry(), "y": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}},
        None,
        "tensors 'x' and 'y' overlap",
    ),
    "metadata": ({**entry(), "__metadata__": {"format": 1}}, None, "its metadata are no texts"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_header_is_refused(case: str, tmp_path: Path) -> None:
    header, length, message = DAMAGED[case]
    path = write_file(tmp_path / "t.safetensors", header, b"\0" * 4, length)
    if case == "no header":
        path.write_bytes(b"\1\0\0")
    with pytest.raises(ModelError) as raised:
        read_header(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "t.safetensors", TENSORS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ModelError, match=f"cut short: its tensors need {len(whole)} bytes, the file has"):
        read_header(path)
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        read_header(tmp_path / "none.safetensors")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ModelError, match=r"a Git LFS pointer instead of the file: fetch it \(git lfs pull\)"):
        read_header(path)


def test_offsets_count_from_the_end_of_the_header(tmp_path: Path) -> None:
    path = write_file(tmp_path / "t.safetensors", json.dumps(header_of(TENSORS)).encode() + b" " * 100, b"")
    path.write_bytes(path.read_bytes() + b"".join(values.tobytes() for values in TENSORS.values()))
    assert np.array_equal(read_header(path).tensors["a.weight"].values(), TENSORS["a.weight"])
