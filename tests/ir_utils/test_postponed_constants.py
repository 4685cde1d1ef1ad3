"""OpenVINO's lazy constant, and the variant that becomes plain in clones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.lazy_weight import postponed_constant
from tests.running import run

VALUES = np.arange(12, dtype=np.float16).reshape(3, 4)


class Maker:
    """Counts how often it is asked."""

    calls = 0

    def __call__(self) -> ov.Tensor:
        self.calls += 1
        tensor = ov.Tensor(ov.Type.f16, ov.Shape([3, 4]))
        tensor.data[:] = VALUES
        return tensor


def model_of(plain_in_clones: bool) -> tuple[ov.Model, Maker]:
    maker = Maker()
    plain = (lambda: ov.op.Constant(maker(), shared_memory=True)) if plain_in_clones else None
    constant = postponed_constant(ov.Type.f16, ov.Shape([3, 4]), maker, plain)
    constant.set_friendly_name("weight")
    x = op.parameter([-1, 4], np.float32)
    return ov.Model([op.result(op.matmul(x, op.convert(constant, "f32"), False, True))], [x]), maker


def weight_of(model: ov.Model) -> ov.Node:
    return next(node for node in model.get_ops() if node.get_friendly_name() == "weight")


def test_nothing_is_computed_until_it_is_needed(tmp_path: Path) -> None:
    model, maker = model_of(False)
    assert maker.calls == 0
    ov.save_model(model, tmp_path / "m.xml")
    assert maker.calls == 1
    read = ov.Core().read_model(tmp_path / "m.xml")
    assert (weight_of(read).data == VALUES).all()


def test_clones_stay_lazy_or_become_plain() -> None:
    model, maker = model_of(False)
    assert weight_of(model.clone()).get_type_name() == "PostponedConstant"
    assert maker.calls == 0
    model, maker = model_of(True)
    clone = model.clone()
    assert weight_of(clone).get_type_name() == "Constant"
    assert (weight_of(clone).data == VALUES).all()
    assert weight_of(model).get_type_name() != "Constant"
    assert maker.calls == 1


@pytest.mark.parametrize("plain", [False, True])
def test_both_give_the_same_outputs_saved_and_not(plain: bool, tmp_path: Path) -> None:
    model, _ = model_of(plain)
    eye = {0: np.eye(4, dtype=np.float32)}
    assert (run(model, eye)[0] == VALUES.T).all()
    for number in range(2):
        ov.save_model(model, tmp_path / f"{number}.xml")
        assert (run(tmp_path / f"{number}.xml", eye)[0] == VALUES.T).all()


@pytest.mark.parametrize("plain", [False, True])
def test_a_clone_outlives_its_model(plain: bool) -> None:
    model, _ = model_of(plain)
    clone = model.clone()
    del model
    assert (run(clone, {0: np.eye(4, dtype=np.float32)})[0] == VALUES.T).all()


def test_a_large_clone_is_saved_from_where_it_lies(tmp_path: Path) -> None:
    """OpenVINO copies a plain Constant that is marked as postponed before it writes it, and marks clones like their
    originals."""
    values = np.random.default_rng(0).integers(0, 256, (1 << 10, 1 << 11), dtype=np.uint8)
    scales = np.arange(1 << 10, dtype=np.float16).reshape(-1, 1)

    def node(data: np.ndarray) -> ov.Node:
        kind, shape = ov.Tensor(data).element_type, ov.Shape(list(data.shape))
        constant = ov.op.Constant(data, shared_memory=True)
        return postponed_constant(kind, shape, lambda: ov.Tensor(data), lambda: constant)

    table, scale = node(values), node(scales)
    model = ov.Model([op.result(op.multiply(op.convert(table, "f16"), scale))], [])
    for clone in (model.clone(), model.clone().clone()):
        marks = {
            kind.get_byte_size(): "postponed_constant" in kind.get_rt_info()
            for kind in clone.get_ops()
            if kind.get_type_name() == "Constant"
        }
        assert marks == {values.nbytes: False, scales.nbytes: True}
    ov.save_model(model, tmp_path / "cloned.xml")
    ov.serialize(model, str(tmp_path / "itself.xml"))
    for name in ("cloned", "itself"):
        assert (tmp_path / f"{name}.bin").read_bytes() == values.tobytes() + scales.tobytes()
