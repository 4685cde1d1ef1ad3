"""AWQ through the pass: less error at the same graph, in every format and combination, and a report of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes import WeightCompression
from ov_weight_compression.quantization.formats import FORMATS
from tests import models
from tests.passes.llama_pass import compressed, error, windows
from tests.running import operations, run, stored

FEW_BITS = sorted(n for n, row in FORMATS.items() if row.bits <= 4 and n not in ("codebook", "adaptive_codebook"))
SIZE = 64
OUTLIERS = [5, 23, 41, 60]


def outlying(model: ov.Model, *, small: bool = False) -> ov.Model:
    """The model with a few channels of every norm forty times as large, and what reads them the less."""
    for node in model.get_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or not name.endswith("weight"):
            continue
        data = node.get_tensor_view().data if hasattr(node, "get_tensor_view") else node.data
        values = np.array(data, dtype=np.float32)
        if "norm" in name:
            values[..., OUTLIERS] *= 40
        elif values.ndim == 2 and any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate", "up_proj")):
            values[:, OUTLIERS] *= 1 / 40 if small else 1 / 4
        else:
            continue
        replace_values(node, values)
    return model


def replace_values(node: ov.Node, values: np.ndarray) -> None:
    new = op.constant(values.astype(node.get_output_element_type(0).to_dtype()))
    new.set_friendly_name(node.get_friendly_name())
    for target in node.output(0).get_target_inputs():
        target.replace_source_output(new.output(0))


def llama(**options: Any) -> ov.Model:
    return outlying(models.llama(layers=2, **options))


def group_of(mode: str) -> dict[str, int]:
    row = FORMATS[mode]
    return {"group_size": row.default_group if row.fixed_group else 32}


@pytest.mark.parametrize("mode", FEW_BITS)
def test_less_error_with_data_in_every_format(mode: str) -> None:
    options = {"mode": mode, "dataset": windows(), **group_of(mode)}
    assert error(llama(), awq=True, **options) < 0.9 * error(llama(), **options)


@pytest.mark.parametrize("mode", ["int4_sym", "int4_asym", "nf4", "mxfp4"])
def test_less_error_without_data(mode: str) -> None:
    def model() -> ov.Model:
        return outlying(models.llama(layers=2), small=True)

    options = {"mode": mode, **group_of(mode)}
    assert error(model(), awq=True, **options) < 0.8 * error(model(), **options)


@pytest.mark.parametrize("more", [{"scale_estimation": True}, {"gptq": True}, {"accuracy": "best"}])
def test_together_with_the_other_methods(more: dict[str, Any]) -> None:
    options = {"dataset": windows(32), **more}
    assert error(llama(), awq=True, **options) < error(llama(), dataset=windows(32), awq=True) * 1.05
    assert error(llama(), awq=True, **options) < 0.6 * error(llama())


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_nothing_is_left_at_run_time(dtype: str) -> None:
    plain, _ = compressed(llama(dtype=dtype))
    scaled, report = compressed(llama(dtype=dtype), awq=True, dataset=windows())
    assert sorted(operations(scaled)) == sorted(operations(plain))
    assert {scaling.into for scaling in report.scalings} == {"norm", "weight"}
    assert len(report.scalings) == 8
    assert report.bytes_after == compressed(llama(dtype=dtype))[1].bytes_after


def test_the_report_says_who_took_the_factors() -> None:
    _, report = compressed(llama(), awq=True, dataset=windows())
    by_first = {scaling.weights[0]: scaling for scaling in report.scalings}
    down = by_first["model.layers.0.mlp.down_proj.weight"]
    assert (down.into, down.name) == ("weight", "model.layers.0.mlp.up_proj.weight")
    assert down.cost is not None
    assert down.cost < 1
    gate = next(scaling for name, scaling in by_first.items() if "layers.1.mlp" in name and "down" not in name)
    assert (gate.into, gate.name) == ("norm", "model.layers.1.post_attention_layernorm.weight")
    assert "AWQ scaled 8 of 8 layer inputs: 4 folded into norms, 4 into weights" in str(report)
    assert report.recipe["awq"] == "True"
    assert report.to_dict()["scalings"][0]["into"] in ("norm", "weight")


def test_fast_folds_where_it_has_data_and_inserts_nothing() -> None:
    options = {"accuracy": "fast", "dataset": windows()}
    assert {scaling.into for scaling in compressed(llama(), **options)[1].scalings} == {"norm", "weight"}
    without = compressed(llama(), awq=False, **options)[1]
    assert not without.scalings
    assert without.recipe["awq"] == "False"
    assert not compressed(llama(), dataset=windows())[1].scalings
    rows = np.random.default_rng(1).standard_normal((64, SIZE)).astype(np.float32)
    _, inserting = compressed(mlp(), awq=True, dataset=[rows])
    _, fast = compressed(mlp(), accuracy="fast", dataset=[rows])
    assert "multiply" in {scaling.into for scaling in inserting.scalings}
    assert "multiply" not in {scaling.into for scaling in fast.scalings}


def mlp(activation: Callable[[ov.Node], ov.Node] = lambda x: op.gelu(x, "ERF"), scale: float = 1.0) -> ov.Model:
    """Two layers with an activation function between; some rows of the first are sixty times as large as others."""
    x = op.parameter([-1, SIZE], np.float32, name="x")
    weight = np.array(models.constant((96, SIZE), "weight_0").data) * np.float32(scale)
    weight[OUTLIERS] *= 60
    first = op.constant(weight)
    first.set_friendly_name("weight_0")
    hidden = activation(op.matmul(x, first, False, True))
    layer = op.matmul(hidden, models.constant((SIZE, 96), "weight_1"), False, True)
    layer.set_friendly_name("layer")
    last = op.matmul(op.relu(layer), models.constant((8, SIZE), "head"), False, True)
    return ov.Model([op.result(last)], [x], "mlp")


def test_a_multiply_is_inserted_behind_an_activation_and_named() -> None:
    rows = np.random.default_rng(1).standard_normal((64, SIZE)).astype(np.float32)
    model, report = compressed(mlp(), awq=True, dataset=[rows])
    names = [scaling.name for scaling in report.scalings if scaling.into == "multiply"]
    assert names == ["layer/smoothing"]
    assert "inserted layer/smoothing" in str(report)
    inserted = next(node for node in model.get_ops() if node.get_friendly_name() == names[0])
    assert inserted.get_type_name() == "Multiply"
    before = sum(row.bytes_after for row in report.rows)
    assert report.bytes_after == before + 96 * 4
    expected = run(mlp(), {0: rows})[0]
    scaled, plain = (
        np.square(run(compressed(mlp(), dataset=[rows], **more)[0], {0: rows})[0] - expected).mean()
        for more in ({"awq": True}, {})
    )
    assert scaled < plain


def test_no_multiply_is_inserted_without_data_where_the_columns_are_alike() -> None:
    _, report = compressed(mlp(), awq=True)
    assert "columns too much alike for a Multiply to pay" in {scaling.reason for scaling in report.scalings}
    assert "multiply" not in {scaling.into for scaling in report.scalings}


@pytest.mark.parametrize(
    ("activation", "into"),
    [(op.relu, "weight"), (op.hswish, "multiply"), (lambda x: op.clamp(x, 0, 6), "multiply")],
    ids=["relu", "hswish", "clamp"],
)
def test_without_data_columns_behind_an_activation_get_one_size(activation: Any, into: str) -> None:
    def model() -> ov.Model:
        uneven = mlp(activation)
        node = next(node for node in uneven.get_ops() if node.get_friendly_name() == "weight_1")
        sizes = np.exp(np.random.default_rng(5).normal(size=96) * 0.7)
        replace_values(node, np.array(node.data) * sizes.astype(np.float32))
        return uneven

    def loss(**options: Any) -> float:
        rows = {0: np.random.default_rng(1).standard_normal((64, SIZE)).astype(np.float32)}
        found = run(compressed(model(), all_layers=True, **options)[0], rows)[0]
        return float(np.square(found - run(model(), rows)[0]).mean())

    _, report = compressed(model(), all_layers=True, awq=True)
    (line,) = (scaling for scaling in report.scalings if scaling.weights == ("weight_1",))
    assert (line.into, line.cost) == (into, None)
    assert loss(awq=True) < 0.8 * loss()


def experts(transposed: bool = False) -> ov.Model:
    """Three experts side by side, gate and down, each with columns of its own sizes."""
    random = np.random.default_rng(7)
    x = op.parameter([3, -1, SIZE], np.float32, name="x")
    sizes = np.exp(random.normal(size=(3, 96)) * 0.7).astype(np.float32)
    first = op.constant(np.array(models.constant((3, 96, SIZE)).data) * sizes[:, :, None])
    first.set_friendly_name("first")
    second = np.array(models.constant((3, SIZE, 96)).data) / sizes[:, None, :]
    last = op.constant(np.ascontiguousarray(second.swapaxes(1, 2)) if transposed else second)
    last.set_friendly_name("second")
    hidden = op.hswish(op.matmul(x, first, False, True))
    return ov.Model([op.result(op.matmul(hidden, last, False, not transposed))], [x], "experts")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"data": True}, {"data": True, "gptq": True}, {"data": True, "accuracy": "best"}], ids=str
)
def test_experts_side_by_side_have_factors_of_their_own(transposed: bool, more: dict[str, Any]) -> None:
    rows = [np.random.default_rng(number).standard_normal((3, 64, SIZE)).astype(np.float32) for number in range(2)]
    more = dict(more)
    given = {"all_layers": True, **({"dataset": rows[:1]} if more.pop("data", False) else {}), **more}

    def loss(awq: bool) -> float:
        found = run(compressed(experts(transposed), awq=awq, **given)[0], {0: rows[1]})[0]
        return float(np.square(found - run(experts(transposed), {0: rows[1]})[0]).mean())

    model, report = compressed(experts(transposed), awq=True, **given)
    (line,) = (scaling for scaling in report.scalings if scaling.weights == ("second",))
    assert (line.into, line.bytes) == ("multiply", 3 * 96 * 4)
    (inserted,) = (node for node in model.get_ops() if node.get_friendly_name() == line.name)
    assert list(inserted.input_value(1).get_shape()) == [3, 1, 96]
    (other,) = (scaling for scaling in report.scalings if scaling.weights == ("first",))
    assert other.reason == "experts side by side, and nothing before them can absorb a factor"
    assert loss(awq=True) < 0.9 * loss(awq=False)


def test_weights_of_eight_bits_follow_their_group() -> None:
    """q and k keep 8 bits: their columns are scaled with those of v, so the model stays what it was."""
    rules = [(f"*{which}_proj*", "int8_sym") for which in "qk"]
    options = {"dataset": windows(), "rules": rules}
    assert error(llama(), awq=True, **options) < error(llama(), **options)


def test_a_gain_that_another_norm_shares_stays_for_it() -> None:
    def model() -> ov.Model:
        x = op.parameter([-1, SIZE], np.float32, name="x")
        gain = models.constant((1, SIZE), "gain", scale=1.0)
        ends = []
        for number in range(2):
            root = op.sqrt(op.reduce_mean(op.power(x, op.constant(np.float32(2))), op.constant(np.array([-1])), True))
            normed = op.multiply(op.divide(x, root), gain)
            ends.append(op.matmul(normed, models.constant((48, SIZE), f"weight_{number}"), False, True))
            x_next = ends[-1]
        last = op.matmul(op.relu(op.add(*ends)), models.constant((8, 48), "head"), False, True)
        assert x_next is not None
        return ov.Model([op.result(last)], [x], "shared gain")

    rows = np.random.default_rng(1).standard_normal((64, SIZE)).astype(np.float32)
    rows[:, OUTLIERS] *= 30
    expected = run(model(), {0: rows})[0]
    found = run(compressed(model(), awq=True, dataset=[rows])[0], {0: rows})[0]
    assert np.square(found - expected).mean() < 0.05 * np.square(expected).mean()


def test_no_gain_leaves_f16() -> None:
    model = llama(dtype="f16")
    for node in model.get_ops():
        if node.get_friendly_name() == "model.layers.0.input_layernorm.weight":
            values = np.array(node.data, dtype=np.float32)
            values.reshape(-1)[7] = 6e4
            values.reshape(-1)[9] = 1e-7
            replace_values(node, values)
    scaled, _ = compressed(model, awq=True, dataset=windows())
    gains = [n.data for n in scaled.get_ops() if n.get_type_name() == "Constant" and "norm" in n.get_friendly_name()]
    assert gains
    assert all(np.isfinite(gain).all() for gain in gains)
    assert all(np.isfinite(values).all() for values in run(scaled))


def test_a_weight_whose_scales_f16_could_not_hold_is_not_scaled() -> None:
    """The rows of the first weight would become too small."""
    rows = np.random.default_rng(1).standard_normal((64, SIZE)).astype(np.float32)
    _, usual = compressed(mlp(op.relu), awq=True, dataset=[rows])
    assert "weight" in [scaling.into for scaling in usual.scalings]
    smallest = 2.0**-21 * 8 / np.abs(models.constant((96, SIZE), "weight_0").data[OUTLIERS]).max() / 60
    _, report = compressed(mlp(op.relu, 1.01 * smallest), awq=True, dataset=[rows])
    assert {row.scale_type for row in report.rows if row.name == "weight_0"} == {"f16"}
    assert "f16 could not hold the scales of weight_0" in [scaling.reason for scaling in report.scalings]


def test_the_same_bytes_lazily_or_not_and_in_any_number_of_threads(tmp_path: Path) -> None:
    files = [
        stored(compressed(llama(), awq=True, dataset=windows(), **more)[0], tmp_path / str(number))
        for number, more in enumerate([{}, {"lazy": False}, {"threads": 1}, {"threads": 3}])
    ]
    assert all(one[1] == files[0][1] for one in files)


def test_a_preview_changes_nothing() -> None:
    model = llama()
    before = run(model)[0]
    WeightCompression(mode="int4_sym", group_size=32, awq=True, dataset=windows()).preview(model)
    np.testing.assert_array_equal(run(model)[0], before)


def test_it_means_nothing_with_eight_bits() -> None:
    with pytest.raises(OptionError, match="awq: means nothing with int8_asym"):
        WeightCompression(awq=True)
