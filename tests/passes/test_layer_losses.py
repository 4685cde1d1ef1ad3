"""What each weight would lose in each format: measured where there are data, and a prior where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.calibration.divergence import kl_divergence
from ov_weight_compression.passes import WeightCompression, apply_weight_compression
from ov_weight_compression.passes.layer_losses import layer_losses, measured_divergence
from ov_weight_compression.passes.measurements import DataPart, Measurements
from ov_weight_compression.passes.options import read_options
from ov_weight_compression.passes.plan import method_of
from ov_weight_compression.passes.probing import Quantiser, WeightRounder, probe_spec
from ov_weight_compression.passes.weight_compression import prepare_plan
from ov_weight_compression.patterns import find_weights, sources_of
from ov_weight_compression.quantization.formats import FORMATS, Spec
from tests.calibration import small

TOKENS = np.random.default_rng(3).integers(0, small.VOCABULARY, 48 * 40)
INT8, INT4_FINE, INT4, INT2 = (
    Spec(FORMATS[name], group, search=FORMATS[name].default_search)
    for name, group in (("int8_sym", -1), ("int4_sym", 16), ("int4_sym", 32), ("int2_sym", 32))
)


def measurements(model: ov.Model, **given: Any) -> Measurements:
    options = read_options(**{"mode": "int4_sym", **given})
    weights = find_weights(model)[0]
    return Measurements(model, weights, sources_of(weights), method_of(options, model), options)


@pytest.mark.parametrize("given", [{}, {"dataset": TOKENS}, {"dataset": TOKENS, "gptq": True}])
def test_losses_rise_as_bits_fall(given: dict[str, Any]) -> None:
    data = measurements(small.language_model(), **given)
    found = layer_losses({weight.name: [INT8, INT4_FINE, INT4, INT2] for weight in data.weights}, data)
    assert found.unit == "nats"
    assert found.divergence(0.25) == 0.25
    assert found.losses.keys() == {weight.name for weight in data.weights}
    for name, (whole, fine, usual, few) in found.losses.items():
        assert 0 <= 20 * whole < usual, name
        assert fine < 1.1 * usual, name
        assert 4 * usual < few, name


def test_their_sum_is_what_the_model_loses() -> None:
    model = small.language_model()
    compression = WeightCompression(mode="int4_sym", group_size=32, all_layers=True, dataset=TOKENS)
    plan, data = compression._planned(model)
    losses = layer_losses({one.weight.name: [one.spec] for one in plan.weights}, data)
    predicted = losses.divergence(sum(loss for (loss,) in losses.losses.values()))
    assert measured_divergence(plan, data).value == pytest.approx(predicted, rel=0.4)


@pytest.mark.parametrize("given", [{}, {"gptq": True}, {"accuracy": "fast"}])
def test_the_divergence_is_that_of_the_written_model(given: dict[str, Any]) -> None:
    model = small.language_model()
    compression = WeightCompression(mode="int4_asym", group_size=16, dataset=TOKENS, **given)
    plan, data = compression._planned(model)
    plan = prepare_plan(plan, data, compression.options)
    found = measured_divergence(plan, data).value
    written = apply_weight_compression(
        model.clone(), mode="int4_asym", group_size=16, dataset=TOKENS, lazy=False, **given
    )
    before, after = (
        ov.Core().compile_model(one, "CPU", small.EXACT).create_infer_request() for one in (model, written)
    )
    total = []
    for window in data.part(DataPart.CHECK):
        logits = []
        for request in (before, after):
            request.reset_state()
            request.infer([window[name] for name in ("input_ids", "attention_mask", "position_ids", "beam_idx")])
            logits.append(np.array(request.get_output_tensor(0).data).reshape(-1, small.VOCABULARY))
        total.append(kl_divergence(*logits))
    assert found == pytest.approx(float(np.concatenate(total).mean()), rel=0.02)


def test_the_parts_of_the_data_do_not_meet() -> None:
    data = measurements(small.language_model(), dataset=TOKENS, gptq=True)
    parts = [np.concatenate([window["input_ids"] for window in data.part(part)]) for part in DataPart]
    assert [len(part) for part in parts] == [4, 12, 32]
    rows = {tuple(row) for part in parts for row in part}
    assert len(rows) == 48


def test_of_short_windows_there_are_more_in_every_part() -> None:
    """The model reads 40 tokens at most, a third of what windows are parted in."""
    tokens = np.random.default_rng(5).integers(0, small.VOCABULARY, 96 * 40)
    data = measurements(small.language_model(), dataset=tokens)
    parts = [np.concatenate([window["input_ids"] for window in data.part(part)]) for part in DataPart]
    assert [part.shape for part in parts[:2]] == [(8, 40), (48, 40)]


def test_what_is_measured_on_is_neither_probed_nor_coded_with() -> None:
    data = measurements(small.language_model(batch=4), dataset=TOKENS, gptq=True)
    shown = data.for_checks()
    coded, every = (np.concatenate([one["input_ids"] for one in each.samples()]) for each in (shown, data))
    held = {tuple(row) for window in shown.part(DataPart.CHECK) for row in window["input_ids"]}
    assert [len(every), len(coded), len(held)] == [48, 36, 12]
    assert {*map(tuple, coded)} | held == {*map(tuple, every)}
    assert not held & {tuple(row) for window in data.part(DataPart.PROBE) for row in window["input_ids"]}


def test_few_samples_are_held_back_though_probes_ran_on_them() -> None:
    data = measurements(small.language_model(), dataset=TOKENS, context_length=30, gptq=True)
    shown = data.for_checks()
    assert [sum(len(one["input_ids"]) for one in each.samples()) for each in (shown, data)] == [30, 64]


def test_what_codes_are_not_fitted_to_is_not_held_back() -> None:
    model = small.language_model()
    for given in ({"dataset": TOKENS}, {"accuracy": "best"}, {"dataset": TOKENS[:30], "gptq": True}):
        data = measurements(model, **given)
        assert data.for_checks() is data
    check = np.concatenate([window["input_ids"] for window in measurements(model, dataset=TOKENS).part(DataPart.CHECK)])
    assert len(check) == 24


def test_what_cannot_be_parted_serves_every_part() -> None:
    data = measurements(small.language_model(), dataset=TOKENS[:100][None, :30], gptq=True)
    assert [len(list(data.part(part))) for part in DataPart] == [1, 1, 1]


def test_a_second_target_reads_what_the_first_has_measured(tmp_path: Path) -> None:
    model = small.language_model()
    first = measurements(model, dataset=TOKENS, statistics_path=tmp_path)
    wanted = {weight.name: [INT4] for weight in first.weights}
    once = layer_losses(wanted, first).losses
    assert (tmp_path / "statistics.probes-weighted.safetensors").is_file()

    def no_more() -> Any:
        raise AssertionError("the data were read again")
        yield

    again = measurements(model, dataset=no_more(), statistics_path=tmp_path)
    found = layer_losses(wanted, again).losses
    assert {name: loss for name, (loss,) in found.items()} == pytest.approx(
        {name: loss for name, (loss,) in once.items()}
    )


def test_what_may_be_made_up_for_behind_a_layer_is_told_in_two_ways() -> None:
    """By `best`: as the probes say, and shared by elements, going with less than the error from format to format. Where
    nothing can be made up for, behind the last layer and before the first, both are as `balanced` has them."""
    model = small.language_model()
    found = {}
    for accuracy in ("balanced", "best"):
        data = measurements(model, dataset=TOKENS, accuracy=accuracy)
        found[accuracy] = layer_losses({weight.name: [probe_spec(weight), INT8] for weight in data.weights}, data)
    probed, evened = found["best"].losses, found["best"].evened
    assert found["balanced"].evened is None
    assert evened is not None
    assert probed == found["balanced"].losses
    inner = [weight for weight in data.weights if not weight.backup_reason]
    assert {weight.name for weight in data.weights} - {weight.name for weight in inner} == {
        "embedding",
        "positions",
        "head",
    }
    assert {name: probed[name] for name in ("embedding", "positions", "head")} == {
        name: evened[name] for name in ("embedding", "positions", "head")
    }
    shares = [evened[weight.name][0] / weight.elements for weight in inner]
    assert np.ptp(shares) < 1e-6 * shares[0]
    assert np.ptp([probed[weight.name][0] / weight.elements for weight in inner]) > shares[0]
    assert sum(evened[weight.name][0] for weight in inner) == pytest.approx(
        sum(probed[weight.name][0] for weight in inner)
    )
    for weight in inner:
        (four, eight), (even_four, even_eight) = probed[weight.name], evened[weight.name]
        assert eight < 0.05 * four
        assert even_eight / even_four == pytest.approx((eight / four) ** 0.42, rel=1e-4)


def test_a_table_that_a_head_shares_is_probed_as_it_will_be_rounded() -> None:
    """By GPTQ for the head; who picks its rows finds it as far off as the search leaves it, and there is no Gram."""
    random = np.random.default_rng(0)
    gram = np.cov(random.standard_normal((32, 4)) @ random.standard_normal((4, 64)), rowvar=False).astype(np.float32)
    rows = random.standard_normal((16, 32)).astype(np.float32)
    ids = op.parameter([-1], np.int64, name="ids")
    table = small.constant((16, 32), "table")
    hidden = op.matmul(op.gather(table, ids, op.constant(0)), small.constant((32, 32), "plain"), False, True)
    model = ov.Model([op.result(op.matmul(hidden, table, False, True))], [ids], "m")
    weights = find_weights(model)[0]
    sources = sources_of(weights)
    by_gptq, by_search = (WeightRounder(weights, sources, Quantiser(False, gptq)) for gptq in (True, False))
    gram = gram[:32, :32] + 0.1 * np.eye(32, dtype=np.float32)
    for name in ("table", "plain"):
        first, second = by_gptq(name, gram), by_search(name, np.diagonal(gram))
        assert not np.array_equal(first.values(rows, 0), second.values(rows, 0))
        assert not np.array_equal(first.energy, second.energy)
    picked, searched = by_gptq("table", None), by_search("table", None)
    assert picked.energy is None
    assert np.array_equal(picked.values(rows, 0), searched.values(rows, 0))


def test_without_data_weights_count_by_size_and_error() -> None:
    x = op.parameter([-1, 64], np.float32, name="x")
    hidden = op.relu(op.matmul(x, small.constant((64, 64), "small"), False, True))
    model = ov.Model([op.result(op.matmul(hidden, small.constant((256, 64), "large"), False, True))], [x], "m")
    data = measurements(model)
    found = layer_losses({"small": [INT8, INT4], "large": [INT8, INT4]}, data)
    assert found.unit == "none"
    assert found.losses["large"][1] == pytest.approx(4 * found.losses["small"][1], rel=0.2)
    assert found.losses["large"][0] < found.losses["large"][1] / 20


def test_other_models_tell_the_root_of_the_sum() -> None:
    x = op.parameter([-1, 64], np.float32, name="x")
    model = ov.Model([op.result(op.matmul(x, small.constant((64, 64), "layer"), False, True))], [x], "m")
    samples = [np.random.default_rng(number).standard_normal((20, 64)).astype(np.float32) for number in range(6)]
    data = measurements(model, dataset=samples)
    found = layer_losses({"layer": [INT4]}, data)
    assert found.unit == "relative L2"
    assert found.divergence(found.losses["layer"][0]) == pytest.approx(found.losses["layer"][0] ** 0.5)
    assert 0.03 < found.divergence(found.losses["layer"][0]) < 0.2
