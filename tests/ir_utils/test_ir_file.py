"""IR files as files: what lies where, and what is wrong with them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import openvino as ov
import pytest

from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.ir_file import read_model, stored_constants
from tests.models import in_loop, layers, linear, no_weights
from tests.running import constants


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ov.save_model(layers(2, dtype="f16"), tmp_path / "m.xml")
    return tmp_path / "m.xml"


def test_where_constants_lie(path: Path) -> None:
    runs = stored_constants(path)
    weights = path.with_suffix(".bin").read_bytes()
    assert max(run.offset + run.size for run in runs) == len(weights)
    for name, node in constants(ov.Core().read_model(path)).items():
        if name.startswith("weight"):
            assert node.data.tobytes() in {weights[run.offset : run.offset + run.size] for run in runs}


def test_constants_in_bodies_count(tmp_path: Path) -> None:
    ov.save_model(in_loop(), tmp_path / "m.xml", compress_to_fp16=False)
    assert 64 * 64 * 4 in {run.size for run in stored_constants(tmp_path / "m.xml")}


def test_a_model_is_read_with_its_weights_in_the_file(path: Path) -> None:
    assert len(read_model(path).get_ops()) == len(ov.Core().read_model(path).get_ops())
    assert read_model(str(path)).inputs


def test_a_model_without_weights_needs_no_bin(tmp_path: Path) -> None:
    ov.save_model(no_weights(), tmp_path / "m.xml")
    (tmp_path / "m.bin").unlink()
    assert read_model(tmp_path / "m.xml").inputs


@pytest.mark.parametrize("cut", [1, 100, 8000])
def test_a_truncated_bin(path: Path, cut: int) -> None:
    weights = path.with_suffix(".bin")
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-cut])
    with pytest.raises(ModelError, match=rf"m\.bin: truncated: m\.xml needs {size} bytes, the file has {size - cut}"):
        read_model(path)


def test_a_missing_bin(path: Path) -> None:
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=r"m\.bin: the weights of m\.xml are missing"):
        read_model(path)


def test_an_empty_bin(path: Path) -> None:
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ModelError, match="truncated"):
        read_model(path)


def test_a_bin_that_is_a_folder(path: Path) -> None:
    path.with_suffix(".bin").unlink()
    path.with_suffix(".bin").mkdir()
    with pytest.raises(ModelError, match=r"m\.bin"):
        read_model(path)


@pytest.mark.parametrize(
    "text", [b"", b"\x00\x01\x02", b"<?xml version='1.0'?>", b"<?xml version='1.0'?><net name='x' version='11'>"]
)
def test_a_corrupt_xml(path: Path, text: bytes) -> None:
    path.write_bytes(text)
    with pytest.raises(ModelError, match=r"m\.xml: OpenVINO cannot read it: .+") as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"\x00\x01\x02", b"# a text\n", b"<html><net/></html>", b"<netting/>"])
def test_what_is_no_ir_never_reaches_the_other_readers(
    path: Path, text: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(text)
    with pytest.raises(ModelError, match="an IR begins with <net, and this file does not"):
        read_model(path)
    assert capfd.readouterr() == ("", "")


def test_a_damaged_xml_says_where(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"damaged or cut short: .*line \d+, column \d+"):
        read_model(path)


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b"\n", b"<!-- made by hand -->\n"])
def test_what_may_stand_before_an_ir(path: Path, head: bytes) -> None:
    whole = path.read_bytes()
    begin = whole.index(b"<net")
    path.write_bytes(head + whole[begin:])
    assert read_model(path).get_ops()


def test_an_xml_cut_short_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(ModelError, match=r"m\.xml"):
            read_model(path)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.xml: there is no such file"):
        read_model(tmp_path / "none.xml")
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"m\.bin: not a model; expected an \.xml or .*checkpoint's folder"):
        read_model(tmp_path / "m.bin")
    with pytest.raises(ModelError, match="not a model"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b'version="opset1"', b'version="opset99"', "nobody here knows the operation MatMul of layer '"),
        (
            b'type="MatMul"',
            b'type="Mat"',
            "nobody here knows the operation 'Mat': there is none of",
        ),
        (b'version="11"', b'version="99"', "this IR is of version 99; versions 10 and 11 can be read"),
        (b'from-layer="', b'from-layer="x', "damaged: a number in it is none"),
        (b'name="', b'name="\xff', "damaged: byte "),
    ],
)
def test_what_openvino_says_is_one_line_that_says_what_is_wrong(
    old: bytes, new: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.xml"
    ov.save_model(linear(), path)
    text = path.read_bytes()
    place = text.index(b'type="MatMul"') if b"opset" in old else 0
    path.write_bytes(text[:place] + text[place:].replace(old, new, 1))
    with pytest.raises(ModelError) as caught:
        read_model(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert said in line
    assert "\n" not in line
    assert not re.search(r"Check '|Exception from|\.[ch]pp", line)


def test_many_comments_before_net_are_no_riddle(tmp_path: Path) -> None:
    ov.save_model(linear(), tmp_path / "m.xml")
    text = (tmp_path / "m.xml").read_bytes()
    (tmp_path / "m.xml").write_bytes(text.replace(b"<net ", b"<!--a-->" * 50 + b"\n<net ", 1))
    assert read_model(tmp_path / "m.xml").get_parameters()
    (tmp_path / "m.xml").write_bytes(b"<?xml version='1.0'?>" + b"<!--a-->" * 5000 + b"x")
    begun = time.monotonic()
    with pytest.raises(ModelError, match="an IR begins with <net"):
        read_model(tmp_path / "m.xml")
    assert time.monotonic() - begun < 20  # or hours
