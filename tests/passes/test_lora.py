"""LoRA correction through the pass: less error, the graph that it makes, and what is said about it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.cli import main
from ov_weight_compression.evaluation import inspect
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import OptionError, WeightCompression, apply_weight_decompression
from ov_weight_compression.passes.options import read_options
from ov_weight_compression.patterns import find_compressed
from tests import models
from tests.passes.llama_pass import compressed, error, windows
from tests.running import layer_types, operations, run, stored

SIZE = 64
REPORTED = "LoRA correction: adapters of rank {} beside {} of {} layers"


def llama(**options: Any) -> ov.Model:
    return models.llama(layers=2, **options)


def rows(count: int = 256) -> np.ndarray:
    """Inputs in which a few directions are much larger than the others, as in real models."""
    random = np.random.default_rng(4)
    strength = np.exp(-np.arange(SIZE) / 8)
    return (random.standard_normal((count, SIZE)) * strength @ random.standard_normal((SIZE, SIZE))).astype(np.float32)


def one_layer(
    shape: tuple[int, ...] = (96, SIZE),
    *,
    transpose_a: bool = False,
    transpose_b: bool = True,
    first: bool = False,
    readers: int = 1,
    rank: int = 2,
) -> ov.Model:
    """Layers that share one weight, and a head behind them. `first`: the weight is the MatMul's first input."""
    x = op.parameter([-1, SIZE] if rank == 2 else [-1, 8, SIZE], np.float32, name="x")
    swap = op.constant(np.array([1, 0] if rank == 2 else [0, 2, 1]))
    weight = models.constant(shape, "weight", scale=0.3)
    outputs = []
    for number in range(readers):
        source = op.add(x, op.constant(np.float32(number)))
        if first:
            product = op.matmul(weight, op.transpose(source, swap), transpose_a, False)
            layer = op.transpose(product, swap)
        else:
            layer = product = op.matmul(
                op.transpose(source, swap) if transpose_a else source, weight, transpose_a, transpose_b
            )
        product.set_friendly_name("layer" if not number else f"layer_{number}")
        outputs.append(layer)
    total = outputs[0] if readers == 1 else op.add(outputs[0], outputs[1])
    last = op.matmul(op.relu(total), models.constant((8, 96), "head"), False, True)
    return ov.Model([op.result(last)], [x], "one")


def named(model: ov.Model, name: str) -> ov.Node:
    return next(node for node in model.get_ordered_ops() if node.get_friendly_name() == name)


@pytest.mark.parametrize("mode", ["int4_sym", "int4_asym", "int3_sym", "int2_asym", "nf4", "fp4", "mxfp4", "cb4"])
def test_less_error_in_every_format(mode: str) -> None:
    group = {} if mode == "mxfp4" else {"group_size": 32}
    options = {"mode": mode, "dataset": windows(8), **group}
    assert error(llama(), lora_correction=True, **options) < 0.75 * error(llama(), **options)


@pytest.mark.parametrize("more", [{"gptq": True}, {"accuracy": "best"}, {"awq": True}, {"scale_estimation": True}])
def test_on_top_of_the_other_methods(more: dict[str, Any]) -> None:
    options = {"dataset": windows(8), **more}
    assert error(llama(), lora_correction=True, **options) < 0.9 * error(llama(), **options)


def test_more_rank_less_error() -> None:
    errors = [error(llama(), dataset=windows(8), lora_correction=True, lora_rank=rank) for rank in (2, 8, 32)]
    assert errors[2] < 0.7 * errors[1] < 0.7 * 0.9 * errors[0]


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"rank": 3},
        {"transpose_b": False, "shape": (SIZE, 96)},
        {"transpose_a": True},
        {"transpose_a": True, "rank": 3, "transpose_b": False, "shape": (SIZE, 96)},
        {"shape": (1, 96, SIZE)},
        {"first": True},
        {"first": True, "rank": 3},
        {"first": True, "transpose_a": True, "shape": (SIZE, 96)},
    ],
    ids=str,
)
def test_every_form_of_a_layer(form: dict[str, Any]) -> None:
    data = rows().reshape(-1, 8, SIZE) if form.get("rank") == 3 else rows()
    model = one_layer(**form)
    before = named(model, "layer").output(0).get_partial_shape()
    expected = run(model, {0: data})[0]
    options = {"rules": [("head", None)], "dataset": [data]}
    corrected, report = compressed(model, lora_correction=True, **options)
    assert [line.rank for line in report.corrections] == [8]
    assert named(corrected, "layer/lora_add").output(0).get_partial_shape() == before
    found = np.square(run(corrected, {0: data})[0] - expected).mean()
    plain = np.square(run(compressed(one_layer(**form), **options)[0], {0: data})[0] - expected).mean()
    assert found < 0.3 * plain


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_the_graph(dtype: str) -> None:
    model, _ = compressed(llama(dtype=dtype), dataset=windows(8), lora_correction=True)
    weights = {one.name: one for one in find_compressed(model)}
    adapters = [name for name in weights if "/lora_" in name]
    corrected = [name.removesuffix("/lora_A") for name in adapters if name.endswith("A")]
    assert len(corrected) == 14
    assert sorted(adapters) == sorted(f"{name}/lora_{letter}" for name in corrected for letter in "AB")
    for name in corrected:
        layer, total = named(model, name), named(model, f"{name}/lora_add")
        assert layer.get_type_name() == "MatMul"
        assert [target.get_node() for target in layer.output(0).get_target_inputs()] == [total]
        down, up = weights[f"{name}/lora_A"], weights[f"{name}/lora_B"]
        assert down.consumers[0].node.input_value(0) == layer.input_value(0)
        assert (down.storage, up.storage) == ("u8", "u8")
        assert down.shape[0] == up.shape[1] == 8
        assert total.input_value(1).get_node() == up.consumers[0].node


def test_the_cpu_runs_the_adapters_on_their_codes() -> None:
    types = layer_types(compressed(llama(), dataset=windows(8), lora_correction=True)[0])
    plain = layer_types(compressed(llama(), dataset=windows(8))[0])
    assert types.count("FullyConnected u8") == plain.count("FullyConnected u8") + 28
    assert types.count("FullyConnected i4") == plain.count("FullyConnected i4") == 14


def test_names_of_outputs_stay() -> None:
    def model() -> ov.Model:
        x = op.parameter([-1, SIZE], np.float32, name="x")
        layer = op.matmul(x, models.constant((96, SIZE), "weight"), False, True)
        layer.set_friendly_name("layer")
        layer.output(0).set_names({"logits", "scores"})
        return ov.Model([op.result(layer), op.result(op.relu(layer))], [x], "named")

    corrected, _ = compressed(model(), dataset=[rows()], lora_correction=True, all_layers=True)
    assert corrected.output("logits").get_names() == {"logits", "scores"}
    result = ov.Core().compile_model(corrected, "CPU")({0: rows()})
    expected = run(model(), {0: rows()})[0]
    plain = run(compressed(model(), dataset=[rows()], all_layers=True)[0], {0: rows()})[0]
    assert np.square(result["scores"] - expected).mean() < 0.5 * np.square(plain - expected).mean()
    np.testing.assert_array_equal(np.maximum(result[0], 0), result[1])


def test_saved_and_read_again(tmp_path: Path) -> None:
    model, report = compressed(llama(), dataset=windows(8), lora_correction=True)
    expected = run(model)
    for number, save in enumerate((ov.save_model, save_model)):
        save(model, tmp_path / f"{number}.xml")
        read = ov.Core().read_model(tmp_path / f"{number}.xml")
        for own, other in zip(run(read), expected, strict=True):
            np.testing.assert_allclose(own, other, atol=1e-5)
        assert sum(one.bytes for one in find_compressed(read)) == report.bytes_after
        recipe = read.get_rt_info()["weight_compression"]
        assert (recipe["lora_correction"].astype(str), recipe["lora_rank"].astype(str)) == ("True", "8")


def test_the_same_bytes_lazily_or_not_and_in_any_number_of_threads(tmp_path: Path) -> None:
    files = [
        stored(compressed(llama(), lora_correction=True, dataset=windows(8), **more)[0], tmp_path / str(number))
        for number, more in enumerate([{}, {"lazy": False}, {"threads": 1}])
    ]
    assert all(one[1] == files[0][1] for one in files)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    model, _ = compressed(llama(), dataset=windows(8), lora_correction=True)
    before = operations(model)
    again = WeightCompression(mode="int4_sym", group_size=32, lora_correction=True, dataset=windows(8))
    assert not again.run_on_model(model)
    assert operations(model) == before
    assert again.report.corrections == ()
    ov.save_model(model, tmp_path / "m.xml")
    read = ov.Core().read_model(tmp_path / "m.xml")
    assert not WeightCompression(mode="int8_sym").run_on_model(read)


def test_a_preview_knows_every_byte_and_changes_nothing() -> None:
    model = llama()
    own = WeightCompression(mode="int4_sym", group_size=32, lora_correction=True, dataset=windows(8), lora_rank=48)
    before = operations(model)
    planned = own.preview(model)
    assert operations(model) == before
    own.run_on_model(model)
    assert planned.bytes_after == own.report.bytes_after == sum(one.bytes for one in find_compressed(model))
    assert [line.bytes for line in planned.corrections] == [line.bytes for line in own.report.corrections]
    assert {line.rank for line in planned.corrections} == {32, 48}  # k and v have 32 rows


def test_what_is_said() -> None:
    model, report = compressed(llama(), dataset=windows(8), lora_correction=True)
    assert REPORTED.format(8, 14, 14) in str(report)
    first = report.to_dict()["corrections"][0]
    assert (first["name"], first["rank"]) == ("model.layers.0.self_attn.q_proj.weight", 8)
    assert 0 < first["left"] < 1
    assert first["bytes"] == 8 * (SIZE + SIZE) + 3 * (8 + SIZE)
    shown = [one for one in inspect(model).weights if "/lora_" in one.name]
    assert {one.mode for one in shown} == {"int8_asym"}
    assert sum(one.bytes for one in shown) == sum(line.bytes for line in report.corrections)
    assert "corrections" not in compressed(llama(), dataset=windows(8))[1].to_dict()


def test_what_has_none_is_named_with_the_reason() -> None:
    _, report = compressed(one_layer(readers=2), dataset=[rows()], lora_correction=True, rules=[("head", None)])
    assert [line.reason for line in report.corrections] == ["several layers read the weight"]
    assert "1 without: several layers read the weight" in str(report)

    x = op.parameter([3, -1, SIZE], np.float32, name="x")
    layer = op.matmul(x, models.constant((3, 96, SIZE), "weight"), False, True)
    model = ov.Model([op.result(layer)], [x], "experts")
    _, report = compressed(model, dataset=[rows().reshape(1, -1, SIZE).repeat(3, 0)], lora_correction=True)
    assert [line.reason for line in report.corrections] == ["experts side by side"] * len(report.corrections)

    table = models.constant((160, SIZE), "table")
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    hidden = op.relu(op.gather(table, ids, op.constant(np.int64(0))))
    tied = ov.Model([op.result(op.matmul(hidden, table, False, True))], [ids], "tied")
    _, report = compressed(tied, dataset=windows(8), lora_correction=True, all_layers=True)
    assert [line.reason for line in report.corrections] == ["several layers read the weight"]


def test_a_layer_that_sees_nothing_has_none() -> None:
    model = one_layer()
    before = operations(compressed(one_layer(), dataset=[rows()], rules=[("head", None)])[0])
    corrected, report = compressed(model, dataset=[0 * rows()], lora_correction=True, rules=[("head", None)])
    assert [line.reason for line in report.corrections] == ["nothing to correct"]
    assert operations(corrected) == before


def test_an_inserted_multiply_is_in_front_of_the_adapters_too() -> None:
    def model() -> ov.Model:
        x = op.parameter([-1, SIZE], np.float32, name="x")
        weight = np.array(models.constant((96, SIZE), "weight_0").data)
        weight[::16] *= 60
        hidden = op.gelu(op.matmul(x, op.constant(weight), False, True), "ERF")
        layer = op.matmul(hidden, models.constant((SIZE, 96), "weight_1"), False, True)
        layer.set_friendly_name("layer")
        return ov.Model([op.result(op.matmul(op.relu(layer), models.constant((8, SIZE), "head"), False, True))], [x])

    options = {"awq": True, "dataset": [rows()], "rules": [("head", None)]}
    corrected, report = compressed(model(), lora_correction=True, **options)
    assert "multiply" in {scaling.into for scaling in report.scalings}
    source = named(corrected, "layer").input_value(0)
    assert source.get_node().get_friendly_name() == "layer/smoothing"
    assert named(corrected, "layer/lora_down").input_value(0) == source
    expected = run(model(), {0: rows()})[0]
    found = np.square(run(corrected, {0: rows()})[0] - expected).mean()
    assert found < 0.5 * np.square(run(compressed(model(), **options)[0], {0: rows()})[0] - expected).mean()


def test_decompressed_it_computes_the_same() -> None:
    """But for the rounding to f16."""
    original = run(llama())[0]
    model, _ = compressed(llama(), dataset=windows(8), lora_correction=True)
    expected = run(model)[0]
    changed = np.square(run(apply_weight_decompression(model))[0] - expected).mean()
    assert changed < 1e-3 * np.square(expected - original).mean()


def test_on_the_command_line(tmp_path: Path) -> None:
    source, tokens, planned, written = (tmp_path / name for name in ("m.xml", "t.npy", "planned.json", "written.json"))
    ov.save_model(llama(), source)
    np.save(tokens, np.concatenate(windows(8), axis=1)[0])
    words = [str(source), "--mode", "int4_sym", "--group-size", "32", "--data", str(tokens), "--context-length", "24"]
    words += ["--lora-correction", "--lora-rank", "4", "--quiet"]
    assert main([*words, "--dry-run", "--report", str(planned)]) == 0
    assert main([*words, "-o", str(tmp_path / "out.xml"), "--report", str(written)]) == 0
    totals = [json.loads(path.read_text())["totals"] for path in (planned, written)]
    assert totals[0] == totals[1]
    found = find_compressed(ov.Core().read_model(tmp_path / "out.xml"))
    assert sum(one.bytes for one in found) == totals[0]["bytes_after"]
    assert {one.shape[0] for one in found if one.name.endswith("lora_A")} == {4}


@dataclass
class LoraParameters:
    """What NNCF's AdvancedLoraCorrectionParameters looks like."""

    adapter_rank: int = 8
    num_iterations: int = 3
    use_int8_adapters: bool = True


@dataclass
class Parameters:
    """What NNCF's AdvancedCompressionParameters looks like."""

    lora_correction_params: LoraParameters = field(default_factory=LoraParameters)


def test_the_rank_as_nncf_has_it() -> None:
    theirs = Parameters(LoraParameters(adapter_rank=16))
    options = read_options(mode="int4_sym", lora_correction=True, dataset="self", advanced_parameters=theirs)
    assert options.lora_rank == 16
    assert read_options(mode="int4_sym", advanced_parameters=Parameters()).lora_rank == 8
    with pytest.raises(OptionError, match=r"lora_correction_params.use_int8_adapters=False has no counterpart"):
        read_options(mode="int4_sym", advanced_parameters=Parameters(LoraParameters(use_int8_adapters=False)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_correction": True}, "lora_correction: means nothing with int8_asym"),
        ({"mode": "int4_sym", "lora_rank": 4}, "lora_rank: 4 means nothing without lora_correction=True"),
        ({"mode": "int4_sym", "lora_correction": True, "lora_rank": 0}, "lora_rank: must be a whole number of at"),
        ({"mode": "int4_sym", "lora_correction": 1}, "lora_correction: must be True or False, got 1"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        read_options(**options)


def test_it_needs_data() -> None:
    model = llama()
    before = operations(model)
    for more in ({}, {"accuracy": "fast"}, {"accuracy": "best"}):
        with pytest.raises(OptionError, match="lora_correction need one"):
            compressed(model, lora_correction=True, **more)
    assert operations(model) == before


def test_ov_save_model_sees_by_the_adapters_that_the_model_is_compressed(tmp_path: Path) -> None:
    """It knows no codes of two bits, and would round the biases and norms of a model that it takes for a float one."""
    kinds = {}
    for lazy in (True, False):
        model, _ = compressed(
            llama(), mode="int2_asym", all_layers=True, lora_correction=True, dataset=windows(2), lazy=lazy
        )
        ov.save_model(model, tmp_path / f"{lazy}.xml")
        found = ov.Core().read_model(tmp_path / f"{lazy}.xml").get_ops()
        constants = [node for node in found if node.get_type_name() == "Constant"]
        kinds[lazy] = Counter(node.get_output_element_type(0).to_string() for node in constants)
    assert kinds[True] == kinds[False]
    assert kinds[True]["f32"] > 4
