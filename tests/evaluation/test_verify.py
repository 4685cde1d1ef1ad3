"""`verify` finds the layer that computes something else, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.cli import main
from ov_weight_compression.evaluation import inspect, verify
from ov_weight_compression.ir_utils.dequantization import ChainParts, build_dequantization
from ov_weight_compression.ir_utils.errors import OptionError, WorkError
from ov_weight_compression.passes import apply_weight_compression, report
from tests import models


def by_hand(group: int = 48, columns: int = 192, out: int = 64) -> ov.Model:
    """A MatMul of i4 in groups, as the plan would not make it, and one in groups of 64 behind it."""
    rng = np.random.default_rng(0)

    def layer(x: Any, name: str, size: int) -> Any:
        shape = (out, columns // size, size)
        codes = ov.Tensor(ov.Type.i4, ov.Shape(list(shape)))
        raw = codes.data.reshape(-1).view(np.uint8)
        raw[:] = rng.integers(0, 256, raw.size)
        scale = ov.op.Constant(ov.Tensor(rng.uniform(0.5, 1.5, (*shape[:2], 1)).astype(np.float16)))
        parts = ChainParts(ov.op.Constant(codes), scale)
        chain = op.convert(build_dequantization(parts, f"{name}.weight", (out, columns)), "f32")
        node = op.matmul(x, chain, False, True)
        node.set_friendly_name(name)
        return node

    x = op.parameter([-1, columns], np.float32)
    return ov.Model([op.result(layer(x, "good", 64)), op.result(layer(x, "bad", group))], [x], "by hand")


class Misreading:
    """A device in whose place numpy multiplies what the codes say, but by another scale where they are in groups."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, model: ov.Model, properties: Mapping[str, str], inputs: Sequence[Any]) -> Any:
        found = ov.Core().compile_model(models_in_floats(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        groups = any(len(node.shape) == 3 and node.shape[2] == 48 for node in model.get_ops() if is_codes(node))
        return found(list(inputs))[0] * (self.factor if groups else 1)


def is_codes(node: Any) -> bool:
    return node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i4


def models_in_floats(model: ov.Model) -> ov.Model:
    from ov_weight_compression.passes import apply_weight_decompression

    return apply_weight_decompression(model.clone(), dtype="f32", lazy=False)


def test_the_layer_that_differs_is_named() -> None:
    found = verify(by_hand(), run=Misreading(1.5))
    assert {check.layer: check.wrong for check in found.checks} == {"good": False, "bad": True}
    assert not found.ok
    text = str(found)
    assert "WRONG: bad (MatMul, i4, group 48, 64×192): differs by" in text
    assert "good" not in text
    assert verify(by_hand(), run=Misreading(1.0)).ok


def test_this_cpu_reads_groups_of_64_right() -> None:
    assert [check.layer for check in verify(by_hand()).wrong] in ([], ["bad"])


def test_a_layer_that_cannot_be_run_is_wrong() -> None:
    def run(model: ov.Model, properties: Mapping[str, str], inputs: Sequence[Any]) -> Any:
        raise RuntimeError("Exception from somewhere:\nno primitive")

    (check,) = verify(apply_weight_compression(models.linear(48, 64), lazy=False), run=run).checks
    assert check.wrong
    assert str(check) == "layer (MatMul, u8, 48×64): the device cannot run it in f32: no primitive"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (models.linear(48, 127), {}),
        (models.linear(48, 64, transpose=False), {}),
        (models.linear(48, 64, batch=(3,)), {"mode": "int4_sym", "group_size": 32, "all_layers": True}),
        (models.grouped_matmul(), {"mode": "int4_asym", "group_size": 32, "all_layers": True}),
        (models.embedding(), {}),
        (models.tied_head(), {"mode": "nf4", "group_size": 32, "all_layers": True}),
        (models.linear(48, 128), {"mode": "int2_asym", "all_layers": True}),
        (models.linear(48, 128), {"mode": "nvfp4", "all_layers": True}),
        (models.linear(48, 128), {"mode": "fp8_e4m3", "all_layers": True}),
    ],
)
def test_what_the_pass_makes_is_right(model: ov.Model, options: dict[str, Any]) -> None:
    found = verify(apply_weight_compression(model, lazy=False, verify=True, **options))
    assert found.ok
    assert not found.skipped
    assert all(0 <= check.difference < check.limit for check in found.checks)


def test_one_of_each_kind_or_every_layer() -> None:
    model = apply_weight_compression(models.layers(4, 64), lazy=False)
    assert [(check.layer, check.alike) for check in verify(model).checks] == [("layer_0", 4)]
    assert [check.layer for check in verify(model, every=True).checks] == [f"layer_{number}" for number in range(4)]


def weight(*shape: int) -> Any:
    return op.constant(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def of_one_layer(build: Callable[[Any], Any], *shape: int) -> ov.Model:
    x = op.parameter(list(shape), np.float32)
    return ov.Model([op.result(build(x))], [x], "one layer")


OTHER_FORMS = {
    "same_upper": (lambda x: op.convolution(x, weight(4, 6, 3, 3), [1, 2], [0, 0], [0, 0], [1, 1], "same_upper"), 4),
    "dilated": (lambda x: op.convolution(x, weight(4, 6, 3, 2), [2, 1], [1, 1], [0, 1], [2, 1]), 4),
    "valid": (lambda x: op.convolution(x, weight(4, 6, 3), [2], [1], [0], [1], "valid"), 3),
    "groups": (lambda x: op.group_convolution(x, weight(3, 4, 2, 3, 3), [1, 2], [1, 1], [0, 1], [1, 1]), 4),
    "weight first": (lambda x: op.matmul(weight(6, 32), x, True, False), 2),
    "weight first, activation turned": (lambda x: op.matmul(weight(64, 6), x, False, True), 3),
    "activation turned": (lambda x: op.matmul(x, weight(6, 40), True, False), 2),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_layers_of_other_forms(form: str) -> None:
    """Convolutions of all sorts, weights as first input, activations that are turned: right, and found where not."""
    build, rank = OTHER_FORMS[form]
    sizes = {"weight first": (6, -1), "activation turned": (6, -1)}.get(form, (-1, 6, *[-1] * (rank - 2)))
    if form == "weight first, activation turned":
        sizes = (-1, -1, 6)
    model = apply_weight_compression(of_one_layer(build, *sizes), lazy=False)
    found = verify(model)
    assert found.ok
    assert not found.skipped
    assert len(found.checks) == 1

    def run(model: ov.Model, properties: Mapping[str, str], inputs: Sequence[Any]) -> Any:
        return ov.Core().compile_model(model, "CPU", dict(properties))(list(inputs))[0] * 1.5

    assert [check.wrong for check in verify(model, run=run).checks] == [True]


def test_what_is_not_compared_is_said() -> None:
    turned = of_one_layer(
        lambda x: op.convolution_backprop_data(x, weight(6, 4, 3, 3), [1, 1], pads_begin=[0, 0], pads_end=[0, 0]),
        *(1, 6, 8, 8),
    )
    found = verify(apply_weight_compression(turned, lazy=False))
    assert found.ok
    assert "not compared: " in str(found)
    assert "a ConvolutionBackpropData is not compared" in str(found)
    assert "all compute" not in str(found)


def all_outputs_are(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that runs every layer, of 48 channels, and is always wrong."""

    def compile_model(self: ov.Core, *given: Any, **named: Any) -> Any:
        return lambda inputs: [np.full((inputs[0].shape[0], 48), number)]

    monkeypatch.setattr(ov.Core, "compile_model", compile_model)


def test_the_pass_raises_and_needs_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"^verify: True means nothing without lazy=False$"):
        apply_weight_compression(models.linear(), verify=True)

    all_outputs_are(1.0, monkeypatch)
    with pytest.raises(WorkError, match=r"^verify: CPU does not compute what the weights say: layer \(MatMul, u8"):
        apply_weight_compression(models.linear(48, 64), lazy=False, verify=True)


def test_no_such_device() -> None:
    with pytest.raises(OptionError, match="device='TPU': OpenVINO finds no such device here"):
        verify(models.linear(), "TPU")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ov.save_model(models.linear(48, 64), tmp_path / "float.xml")
    out = tmp_path / "out" / "model.xml"
    assert main([str(tmp_path / "float.xml"), "-o", str(out), "--verify"]) == 0
    assert (
        "1 of 1 layers with compressed weights run\nall compute what the stored weights say" in capsys.readouterr().out
    )
    assert main(["verify", str(out), "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["verify", str(tmp_path / "float.xml")]) == 0
    assert "no layer reads a compressed weight: nothing to verify" in capsys.readouterr().out
    all_outputs_are(0.0, monkeypatch)
    assert main(["verify", str(out)]) == 1
    assert "WRONG: layer (MatMul, u8, 48×64)" in capsys.readouterr().out


def test_inspect_says_that_outputs_are_wrong(tmp_path: Path) -> None:
    ov.save_model(by_hand(), tmp_path / "m.xml")
    told = {weight.layer: weight.executed for weight in inspect(tmp_path / "m.xml", "CPU").weights}
    assert told["good"] == "runs from codes: FullyConnected"
    assert (
        told["bad"]
        == "runs from codes: FullyConnected, WRONG OUTPUTS: CPUs misread i4 in groups of 48 (no power of two)"
    )


def test_another_version_is_said_not_to_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from ov_weight_compression.passes import WeightCompression

    monkeypatch.setattr(report, "RELEASE", "2027.1")
    monkeypatch.setattr(ov, "get_version", lambda: "2027.1.0-1-x")
    own = WeightCompression()
    model = models.linear(48, 64)
    own.run_on_model(model)
    assert own.report.warnings == (
        "what CPUs misread was measured with OpenVINO 2026.4, and nobody has looked at 2027.1: "
        "`ov-compress verify` does",
    )
    assert "measured with OpenVINO 2026.4; of this version only" in str(verify(model))
