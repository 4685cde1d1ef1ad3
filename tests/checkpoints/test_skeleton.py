"""A skeleton holds everything of a model but its weights, and the same model comes back when they are put in."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest

from ov_weight_compression.checkpoints.constant_origins import (
    FileSpans,
    TensorPlaces,
    address_of,
    explain_constants,
    sum_of_bits,
)
from ov_weight_compression.checkpoints.safetensors_file import StoredTensor, mapped_constants, read_header
from ov_weight_compression.checkpoints.skeleton import Placed, fill, read_skeleton, write_skeleton
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.saving import save_model
from tests.checkpoints.files import write_tensors

pytestmark = pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="only Linux says whose memory it is")

NAMES = ("filled", "usual")
RANDOM = np.random.default_rng(0)
TENSORS = {
    "table": RANDOM.standard_normal((512, 64)).astype(np.float16),
    "fused": RANDOM.integers(0, 2**14, (2, 64, 64), dtype=np.uint16),
    "inner": RANDOM.standard_normal((64, 64)).astype(np.float32),
}


def stored(path: Path) -> dict[str, StoredTensor]:
    return read_header(write_tensors(path, TENSORS)).tensors


def part_of(tensor: StoredTensor, index: int) -> StoredTensor:
    half = tensor.nbytes // 2
    return StoredTensor(tensor.name, tensor.file, tensor.offset + index * half, half, tensor.dtype, tensor.shape[1:])


def make_model(tensors: dict[str, StoredTensor]) -> ov.Model:
    """An embedding whose table is the head too, flat; two layers that are halves of one tensor; one in an If; and a
    constant that is no tensor."""
    halves = [part_of(tensors["fused"], index) for index in range(2)]
    table, head, first, second, inner = mapped_constants(
        [tensors["table"], tensors["table"], *halves, tensors["inner"]],
        [(512, 64), (1, 512, 64), (64, 64), (64, 64), (64, 64)],
    )
    for number, constant in enumerate((table, head, first, second, inner)):
        constant.set_friendly_name(f"weight {number}")
        constant.output(0).set_names({f"tensor {number}", f"also {number}"})
    ids = opset.parameter([-1], ov.Type.i64, name="ids")
    hidden = opset.gather(opset.convert(table, "f32"), ids, opset.constant(0))
    for half in (first, second):
        hidden = opset.matmul(hidden, opset.convert(half, "f32"), False, True)
    hidden = opset.add(hidden, opset.constant(np.arange(64, dtype=np.float32)))
    given = [opset.parameter([-1, 64], ov.Type.f32) for _ in range(2)]
    bodies = [
        ov.Model([opset.matmul(given[0], inner, False, True)], [given[0]], "then"),
        ov.Model([opset.relu(given[1])], [given[1]], "else"),
    ]
    branch = opset.if_op(opset.constant(True))
    branch.set_then_body(bodies[0])
    branch.set_else_body(bodies[1])
    branch.set_input(hidden.output(0), given[0], given[1])
    found = branch.set_output(bodies[0].get_results()[0], bodies[1].get_results()[0])
    scores = opset.matmul(found, opset.squeeze(opset.convert(head, "f32"), opset.constant([0])), False, True)
    model = ov.Model([scores], [ids], "model")
    model.output(0).get_tensor().set_names({"scores"})
    return model


def test_the_same_model_comes_back(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "t.safetensors")
    ov.save_model(make_model(tensors), tmp_path / "usual.xml", compress_to_fp16=False)
    save_model(ov.Core().read_model(tmp_path / "usual.xml"), tmp_path / "usual.xml")

    model = make_model(tensors)
    explained = explain_constants(model, TensorPlaces(tensors.values()))
    assert [(constant.get_friendly_name(), one.tensor.name, one.begin) for constant, one in explained.stored] == [
        ("weight 0", "table", 0),
        ("weight 2", "fused", 0),
        ("weight 3", "fused", tensors["fused"].nbytes // 2),
        ("weight 1", "table", 0),
        ("weight 4", "inner", 0),
    ]
    assert [one.whole for _, one in explained.stored] == [True, False, False, True, True]
    placed = write_skeleton(model, tmp_path / "skeleton.xml", explained.stored)
    assert not list(tmp_path.glob("*.stubs.bin"))
    written = (tmp_path / "skeleton.bin").stat()
    assert written.st_size > sum(one.nbytes for one in tensors.values())
    assert written.st_blocks * 512 < 1 << 16

    read, holes = read_skeleton(tmp_path / "skeleton.xml", placed)
    assert len(holes) == 5
    assert not any(hole.constant.data.any() for hole in holes)
    fill(holes, tensors)
    assert len(explain_constants(read, TensorPlaces(tensors.values())).stored) == 5
    save_model(read, tmp_path / "filled.xml")
    # OpenVINO numbers what has no name, and does not begin again for a second model.
    filled, usual = (re.sub(r'(name|names)="[A-Z]\w*_\d+"', "", (tmp_path / f"{one}.xml").read_text()) for one in NAMES)
    assert filled == usual
    assert (tmp_path / "filled.bin").read_bytes() == (tmp_path / "usual.bin").read_bytes()


def test_a_hole_that_the_model_does_not_have_is_an_error(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "t.safetensors")
    model = make_model(tensors)
    placed = write_skeleton(model, tmp_path / "m.xml", explain_constants(model, TensorPlaces(tensors.values())).stored)
    with pytest.raises(ModelError, match=r"m\.xml: 1 tensors of the checkpoint have no place in it, 'lost'"):
        read_skeleton(tmp_path / "m.xml", [*placed, Placed(1 << 30, "lost", 0, 8)])


def test_a_tensor_taken_for_another_type_is_an_error(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "t.safetensors")
    (constant,) = mapped_constants([tensors["table"]], None, ["bf16"])
    model = ov.Model([opset.result(opset.convert(constant, "f32"))], [], "model")
    with pytest.raises(ModelError, match=r"t\.safetensors: table is F16, and the exporter took it for bf16"):
        explain_constants(model, TensorPlaces(tensors.values()))


def test_memory_that_has_been_written_to_is_no_tensor_any_more(tmp_path: Path) -> None:
    tensors = stored(tmp_path / "t.safetensors")
    table = tensors["table"]
    mapped = np.memmap(table.file, np.uint8, "c", table.offset, (table.nbytes,))
    places, address = TensorPlaces(tensors.values()), mapped.__array_interface__["data"][0]
    found = places.find(FileSpans(), address, table.nbytes)
    assert found is not None
    assert found.tensor is table
    assert places.find(FileSpans(), address, table.nbytes + 2) is None  # more than the tensor
    mapped[-1] ^= 1
    assert places.find(FileSpans(), address, table.nbytes) is None
    assert places.find(FileSpans(), address, 16) is not None  # a page that is still the file's
    assert places.find(FileSpans(), *address_of(opset.constant(np.ones(64, np.float32)))) is None


def test_numbers_have_the_same_sum_in_whatever_type_and_order() -> None:
    bits = RANDOM.integers(0, 2**15, (30, 40), dtype=np.uint16) & 0x7F7F
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    assert sum_of_bits(bits, "bf16") == sum_of_bits(wide.T.copy(), "f32") == sum_of_bits(wide.astype(np.float64), "f64")
    changed = wide.copy()
    changed[3, 4] = np.nextafter(changed[3, 4], 1)
    assert sum_of_bits(changed, "f32") != sum_of_bits(wide, "f32")
    half = RANDOM.standard_normal(2_100_000).astype(np.float16)
    assert sum_of_bits(half, "f16") == int(half.astype(np.float32).view(np.uint32).sum(dtype=np.uint64))
