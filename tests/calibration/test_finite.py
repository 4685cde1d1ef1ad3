"""Data that are no data, and data that overflow inside the model: said, and never a weight that is not finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest

from ov_weight_compression.calibration import make_samples
from ov_weight_compression.calibration.grams import unfit
from ov_weight_compression.calibration.statistics import Accumulator
from ov_weight_compression.passes import CompressionWarning, OptionError, WeightCompression, apply_weight_compression
from tests.models import layers

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

ALGORITHMS: list[dict[str, Any]] = [
    {},
    {"scale_estimation": True},
    {"awq": True},
    {"awq": True, "scale_estimation": True},
    {"gptq": True},
    {"lora_correction": True},
    {"accuracy": "best", "awq": True, "lora_correction": True},
    {"ratio": 0.5, "sensitivity_metric": "hessian_input_activation"},
]
MODES = ["int4_sym", "int4_asym", "int2_sym", "nf4", "mxfp4", "nvfp4", "cb4", "adaptive_codebook"]


def gated() -> ov.Model:
    """Two layers multiplied with each other, which overflows for inputs from 1e18 on, and two behind them."""
    random = np.random.default_rng(0)
    first = op.parameter([-1, 64], np.float32, name="x")
    first.output(0).set_names({"x"})

    def layer(value: Any, name: str) -> Any:
        weight = op.constant((random.normal(size=(64, 64)) / 8).astype(np.float32), name=name)
        return op.matmul(value, weight, False, True)

    product = op.multiply(op.relu(layer(first, "w0")), op.relu(layer(first, "w1")))
    return ov.Model([layer(layer(product, "w2"), "w3")], [first])


def samples(count: int = 3) -> list[Any]:
    return [np.random.default_rng(seed).normal(size=(8, 64)).astype(np.float32) for seed in range(count)]


def stored(model: ov.Model) -> Iterator[tuple[str, Any]]:
    """Every constant's values."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant":
            yield node.get_friendly_name(), np.array(node.get_tensor_view().data)


def check_finite(model: ov.Model, x: Any) -> None:
    for name, values in stored(model):
        if values.dtype.kind == "f":
            assert np.isfinite(values).all(), name
    assert np.isfinite(ov.Core().compile_model(model, "CPU")(x)[0]).all()


@pytest.mark.parametrize("options", ALGORITHMS, ids=str)
@pytest.mark.parametrize(
    ("value", "told"), [(np.inf, "infinity"), (-np.inf, "-infinity"), (np.nan, "NaN"), (1e25, "1e\\+25")]
)
@pytest.mark.parametrize("once", [False, True])
def test_a_bad_sample_is_named_before_anything_is_changed(
    options: dict[str, Any], value: float, told: str, once: bool
) -> None:
    data = samples(4)
    data[2][1, 3] = value
    model = gated()
    before = [node.get_friendly_name() for node in model.get_ordered_ops()]
    dataset = (one for one in data) if once else data
    with pytest.raises(OptionError, match=f"dataset: sample 3, input 'x': it holds {told}") as caught:
        apply_weight_compression(model, mode="int4_sym", group_size=32, all_layers=True, dataset=dataset, **options)
    assert len(str(caught.value)) < 200
    assert [node.get_friendly_name() for node in model.get_ordered_ops()] == before


def test_masks_may_hold_infinity_and_nothing_may_hold_nan() -> None:
    x = op.parameter([-1, 8], np.float32, name="x")
    mask = op.parameter([-1, 8], np.float32, name="attention_mask")
    model = ov.Model([op.add(x, mask)], [x, mask])
    good, masked = np.ones((1, 8), np.float32), np.full((1, 8), -np.inf, np.float32)
    assert len(list(make_samples(model, [(good, masked)]))) == 1
    assert len(list(make_samples(model, [(good, np.full((1, 8), np.finfo(np.float32).min))]))) == 1
    with pytest.raises(OptionError, match=r"sample 1, input 'x.*': it holds -infinity \(8 of 8 values"):
        make_samples(model, [(masked, good)])
    with pytest.raises(OptionError, match=r"input 'attention_mask.*': it holds NaN"):
        make_samples(model, [(good, good * np.nan)])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", ALGORITHMS, ids=str)
def test_what_overflows_inside_is_left_out_and_said(options: dict[str, Any], mode: str) -> None:
    if mode != "int4_sym" and options not in (ALGORITHMS[3], ALGORITHMS[6]):
        pytest.skip("one format is enough")
    good, huge = samples(2), samples(1)[0]
    huge[0] *= np.float32(1e18)
    given = {"mode": mode, "all_layers": True, "lazy": False, **options}
    if mode not in ("mxfp4", "nvfp4"):
        given["group_size"] = 32
    compression, model = WeightCompression(dataset=[*good, huge], **given), gated()
    with pytest.warns(CompressionWarning, match=r"dataset: .* not finite, .* 'w\d' .*left out for it") as said:
        compression.run_on_model(model)
    told = [one for one in said if not issubclass(one.category, ResourceWarning) and "expands" not in str(one.message)]
    assert [one.category for one in told] == [CompressionWarning], [str(one.message) for one in told]
    assert str(told[0].message) in compression.report.warnings
    check_finite(model, good[0])


def test_layers_that_no_sample_reaches_are_as_without_data() -> None:
    huge = [one * np.float32(1e18) for one in samples(2)]
    given = {"mode": "int4_sym", "group_size": 32, "all_layers": True, "lazy": False}
    with pytest.warns(CompressionWarning):
        model = apply_weight_compression(gated(), dataset=huge, **given)
    without = dict(stored(apply_weight_compression(gated(), **given)))
    for name, values in stored(model):
        if name.startswith(("w2", "w3")):
            assert np.array_equal(values, without[name]), name
    check_finite(model, samples(1)[0])


def test_sums_are_those_of_the_sequences_that_count() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 3, 5, 4)).astype(np.float32)
    bad = x.copy()
    bad[0, 1, 2, 3] = np.nan
    sums, others = Accumulator(4), Accumulator(4)
    sums.add(bad)
    others.add(x[:, [0, 2]])
    assert sums.left_out == 1
    found, wanted = sums.result(), others.result()
    assert found.numbers() == wanted.numbers()
    assert np.array_equal(found.sum_square, wanted.sum_square)


def test_rows_that_do_not_count() -> None:
    assert unfit(np.ones((2, 3))) is None
    rows = np.array([[1, 2], [np.nan, 1], [1, -np.inf], [1e16, 0], [-1e14, 0]], np.float32)
    assert unfit(rows).tolist() == [False, True, True, True, False]


def test_values_near_the_limit_stay_finite() -> None:
    data = [one * np.float32(1e8) for one in samples(2)]
    for options in ALGORITHMS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CompressionWarning)
            given = {"mode": "int4_sym", "group_size": 32, "all_layers": True, "lazy": False, **options}
            check_finite(apply_weight_compression(gated(), dataset=data, **given), samples(1)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_warns_once(value: float) -> None:
    def spoiled() -> ov.Model:
        model = layers(3)
        for node in model.get_ordered_ops():
            if node.get_friendly_name() in ("weight_0", "weight_2"):
                values = np.array(node.data)
                values[0, 0] = value
                new = op.constant(values, name=node.get_friendly_name())
                for port in node.output(0).get_target_inputs():
                    port.replace_source_output(new.output(0))
        return model

    message = r"'weight_0' was left as it is: it holds 1 NaN or infinite value, and 1 more weight likewise"
    with pytest.warns(CompressionWarning, match=message) as said:
        apply_weight_compression(spoiled())
    assert len([one for one in said if not issubclass(one.category, ResourceWarning)]) == 1
    with pytest.warns(CompressionWarning, match=message):
        WeightCompression().preview(spoiled())


def test_what_is_sound_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompressionWarning)
        apply_weight_compression(gated(), mode="int4_sym", group_size=32, dataset=samples(), awq=True)


def test_what_is_too_large_to_be_measured_keeps_its_bits() -> None:
    huge = [one * np.float32(1e10) for one in samples(2)]
    compression = WeightCompression(mode="int4_sym", group_size=32, all_layers=True, ratio=0.5, dataset=huge)
    with pytest.warns(CompressionWarning):
        compression.run_on_model(gated())
    modes = {row.name: row.mode for row in compression.report.rows}
    assert {name for name, mode in modes.items() if mode == "int4_sym"} <= {"w0", "w1"}
    assert "int4_sym" in modes.values()
