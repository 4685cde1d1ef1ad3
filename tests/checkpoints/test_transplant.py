"""A checkpoint's weights in an IR of the same architecture: found by name, layer, value and order, or refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.passes import Manager

from ov_weight_compression.checkpoints.transplant import WeightsFromCheckpoint, apply_weights_from_checkpoint
from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import apply_weight_compression
from ov_weight_compression.passes.option_values import Device
from ov_weight_compression.patterns import find_compressed
from tests import models
from tests.checkpoints.quantised_writers import MemoryTensor, bf16, gptq, tensor, write_checkpoint
from tests.running import constants, run

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
Tensors = dict[str, MemoryTensor]


def weights_of(model: ov.Model, seed: int = 1) -> dict[str, np.ndarray]:
    """Other values for every weight of a model, such as bf16 and f16 both hold."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(-63, 64, tuple(node.shape)) / (512 if len(node.shape) > 1 else 64)).astype(np.float32)
        for name, node in constants(model).items()
        if name.endswith("weight")
    }


def with_values(model: ov.Model, values: dict[str, np.ndarray]) -> ov.Model:
    """The model with these constants."""
    changed = model.clone()
    for name, node in constants(changed).items():
        if name in values:
            new = ov.op.Constant(values[name].astype(np.float32).reshape(tuple(node.shape)))
            new.set_friendly_name(name)
            node.output(0).replace(new.output(0))
    return changed


def as_tensors(values: dict[str, np.ndarray], dtype: str = "BF16") -> Tensors:
    return {name: tensor(dtype, bf16(one) if dtype == "BF16" else one) for name, one in values.items()}


def renamed(model: ov.Model, name: Callable[[int, str], str]) -> ov.Model:
    """The model with other names for its weights, by their number in the graph."""
    weights = [node for node in model.get_ordered_ops() if node.get_friendly_name().endswith("weight")]
    for number, node in enumerate(weights):
        node.set_friendly_name(name(number, node.get_friendly_name()))
    return model


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_float_weights_by_their_own_names(dtype: str, tmp_path: Path) -> None:
    model = models.llama()
    values = weights_of(model)
    folder = write_checkpoint(tmp_path / "hf", as_tensors(values, dtype), CONFIG, shards=3)
    expected = run(with_values(model, values))[0]
    renamed(model, lambda _, name: f"self.{name}_compressed")
    pass_ = WeightsFromCheckpoint(folder)
    manager = Manager()
    manager.register_pass(pass_)
    manager.run_passes(model)
    np.testing.assert_allclose(run(model)[0], expected, rtol=1e-5, atol=1e-6)
    save_model(model, tmp_path / "m.xml")
    np.testing.assert_allclose(run(tmp_path / "m.xml")[0], expected, rtol=1e-5, atol=1e-6)
    assert pass_.report is not None
    assert {row.rule for row in pass_.report.rows} == {"own name"}
    assert len(pass_.report.rows) == len(values)
    assert pass_.report.unused == {}
    assert str(pass_.report).splitlines()[0] == (
        "self.model.embed_tokens.weight_compressed ← model-00001-of-00003.safetensors: model.embed_tokens.weight "
        f"({dtype.lower()}; by own name)"
    )


def test_constants_without_a_name_are_found_by_their_layers(tmp_path: Path) -> None:
    model = models.llama()
    values = weights_of(model)
    folder = write_checkpoint(tmp_path / "hf", as_tensors(values), CONFIG)
    expected = run(with_values(model, values))[0]
    changed = renamed(model.clone(), lambda number, name: f"Constant_{number}" if "proj" in name else name)
    pass_ = WeightsFromCheckpoint(folder)
    pass_.run_on_model(changed)
    np.testing.assert_allclose(run(changed)[0], expected, rtol=1e-5, atol=1e-6)
    assert pass_.report is not None
    assert {row.rule for row in pass_.report.rows} == {"own name", "layer's name"}


def test_float_constants_that_are_there_are_found_by_value(tmp_path: Path) -> None:
    """Nothing has a name: what the checkpoint has too is known by it, down_proj by the order of its blocks."""
    model = models.llama()
    names = {name: np.asarray(node.data).copy() for name, node in constants(model).items() if name.endswith("weight")}
    values = {name: one * (1.5 if "down_proj" in name else 1) for name, one in names.items()}
    folder = write_checkpoint(tmp_path / "hf", as_tensors(values, "F32"), CONFIG)
    expected = run(with_values(model, values))[0]
    for node in model.get_ordered_ops():
        node.set_friendly_name(f"node_{node.get_name()}")
    pass_ = WeightsFromCheckpoint(folder)
    pass_.run_on_model(model)
    np.testing.assert_allclose(run(model)[0], expected, rtol=1e-5, atol=1e-6)
    assert pass_.report is not None
    rules = {row.tensor.partition(": ")[2]: row.rule for row in pass_.report.rows}
    assert {rule for name, rule in rules.items() if "down_proj" in name} == {"order"}
    assert {rule for name, rule in rules.items() if "down_proj" not in name} == {"value"}


def quantised_llama(model: ov.Model, order: bool = False) -> tuple[Tensors, dict[str, np.ndarray]]:
    """Projections in GPTQ, all else in f16; and what they stand for."""
    rng = np.random.default_rng(4)
    values, tensors = weights_of(model), {}
    for name, one in values.items():
        if "proj" not in name:
            tensors[name] = tensor("F16", one)
            continue
        rows, columns = one.shape
        index = np.arange(columns) // 32
        if order:
            index = np.random.default_rng(columns).permutation(index)
        codes, zeros = rng.integers(0, 16, (rows, columns)), rng.integers(0, 16, (rows, columns // 32))
        scales = (rng.random((rows, columns // 32)) / 128).astype(np.float16)
        tensors.update(gptq(name.removesuffix(".weight"), codes, scales, zeros, 4, index))
        values[name] = scales.astype(np.float32)[:, index] * (codes - zeros[:, index]).astype(np.float32)
    return tensors, values


GPTQ = {**CONFIG, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}


@pytest.mark.parametrize("order", [False, True])
def test_quantised_weights(order: bool, tmp_path: Path) -> None:
    ov.save_model(models.llama(), tmp_path / "ir.xml")
    model = ov.Core().read_model(tmp_path / "ir.xml")
    for node in model.get_ops():
        node.set_friendly_name(node.get_friendly_name().removesuffix("_compressed"))
    tensors, values = quantised_llama(model, order)
    tensors["model.layers.0.mlp.up_proj.input_scale"] = tensor("F32", np.ones(1))
    folder = write_checkpoint(tmp_path / "hf", tensors, GPTQ, shards=2)
    expected = run(with_values(models.llama(), values))[0]
    pass_ = WeightsFromCheckpoint(folder)
    pass_.run_on_model(model)
    np.testing.assert_allclose(run(model)[0], expected, rtol=1e-4, atol=1e-5)
    apply_weight_compression(model, mode="int8_sym")
    assert sorted(found.storage for found in find_compressed(model)) == ["i8"] * 2 + ["u4"] * 14
    assert pass_.report is not None
    assert pass_.report.unused == {"model.layers.0.mlp.up_proj.input_scale": "of activations, which stay floats"}
    stored = {row.tensor.partition(": ")[2]: row.stored for row in pass_.report.rows}
    said = "; act-order, its input brought into order by a Gather"
    assert stored["model.layers.1.mlp.up_proj.weight"].startswith("GPTQ 4 bit g32, codes kept" + said * order)
    folded = (
        "; act-order, folded into the rows of model.layers.1.mlp.gate_proj.weight and model.layers.1.mlp.up_proj.weight"
    )
    assert stored["model.layers.1.mlp.down_proj.weight"] == "GPTQ 4 bit g32, codes kept" + folded * order
    assert stored["model.norm.weight"] == "f16"


def test_weights_that_an_exporter_has_transposed(tmp_path: Path) -> None:
    """Square ones too: their shapes do not tell, but their neighbours' do."""
    model = models.llama()
    values = weights_of(model)
    turned = {name: one.T.copy() if "proj" in name else one for name, one in values.items()}
    folder = write_checkpoint(tmp_path / "hf", as_tensors(turned), CONFIG)
    expected = run(with_values(model, values))[0]
    changed = renamed(model.clone(), lambda number, name: f"Constant_{number}" if "proj" in name else name)
    apply_weights_from_checkpoint(changed, folder)
    np.testing.assert_allclose(run(changed)[0], expected, rtol=1e-5, atol=1e-6)
    assert not [node for node in changed.get_ops() if node.get_friendly_name().endswith("/transpose")]


def test_experts_side_by_side_that_are_transposed(tmp_path: Path) -> None:
    """Two blocks of experts without names: each block has one tensor of each shape. Of the square ones their names say
    that the exporter has transposed them."""
    x = op.parameter([3, -1, 32], np.float32, name="x")
    value: ov.Node = x
    for number in range(2):
        value = op.relu(op.matmul(value, models.constant((3, 32, 32), f"Transpose_{number}"), False, True))
        value = op.matmul(value, models.constant((3, 32, 16), f"Constant_{number}"), False, False)
        value = op.concat([value, value], 2)
    model = ov.Model([op.result(value)], [x], "experts")
    rng = np.random.default_rng(1)
    tensors = {f"model.layers.{n}.experts.up": tensor("F32", rng.standard_normal((3, 32, 32))) for n in range(2)}
    tensors |= {f"model.layers.{n}.experts.down": tensor("F32", rng.standard_normal((3, 16, 32))) for n in range(2)}
    pass_ = WeightsFromCheckpoint(write_checkpoint(tmp_path / "hf", tensors, CONFIG))
    pass_.run_on_model(model)
    feed = rng.standard_normal((3, 5, 32)).astype(np.float32)
    expected = feed
    for number in range(2):
        up, down = (tensors[f"model.layers.{number}.experts.{name}"].data for name in ("up", "down"))
        expected = np.maximum(expected @ up, 0) @ down.swapaxes(1, 2)
        expected = np.concatenate([expected, expected], 2)
    np.testing.assert_allclose(run(model, {0: feed})[0], expected, rtol=1e-3, atol=1e-2)
    assert pass_.report is not None
    assert {row.rule for row in pass_.report.rows} == {"order"}


def test_a_head_that_is_tied_to_the_embeddings(tmp_path: Path) -> None:
    model = models.llama()
    values = weights_of(model)
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    without = {name: one for name, one in values.items() if name != "lm_head.weight"}
    expected = run(with_values(model, values))[0]
    folder = write_checkpoint(tmp_path / "hf", as_tensors(without), CONFIG)
    np.testing.assert_allclose(run(apply_weights_from_checkpoint(model, folder))[0], expected, rtol=1e-5, atol=1e-6)
    tied = models.llama(tied=True)
    folder = write_checkpoint(tmp_path / "both", as_tensors(values), CONFIG)
    pass_ = WeightsFromCheckpoint(folder)
    pass_.run_on_model(tied)
    assert pass_.report is not None
    assert pass_.report.unused == {"lm_head.weight": "the same values as model.embed_tokens.weight"}


def test_norms_of_one_plus_their_weight(tmp_path: Path) -> None:
    """Gemma's: the exporter has added the one, into a constant without a name."""
    model = models.llama()
    values = weights_of(model)
    stored = {name: one - 1 if "norm" in name else one for name, one in values.items()}
    expected = run(with_values(model, values))[0]
    folder = write_checkpoint(tmp_path / "hf", as_tensors(stored, "F32"), {**CONFIG, "model_type": "gemma"})
    changed = renamed(model.clone(), lambda number, name: f"Constant_{number}" if "norm" in name else name)
    for node in changed.get_ops():
        for source in node.input_values():
            if source.get_node().get_friendly_name().startswith("Constant_") and node.get_type_name() == "Multiply":
                number = source.get_node().get_friendly_name()
                original = [n for n in model.get_ordered_ops() if n.get_friendly_name().endswith("weight")]
                name = original[int(number.removeprefix("Constant_"))].get_friendly_name()
                node.set_friendly_name(f"__module.{name.removesuffix('.weight')}/aten::mul/Multiply")
    pass_ = WeightsFromCheckpoint(folder)
    pass_.run_on_model(changed)
    np.testing.assert_allclose(run(changed)[0], expected, rtol=1e-5, atol=1e-6)
    assert pass_.report is not None
    assert {row.stored for row in pass_.report.rows if "norm" in row.tensor} == {"f32, plus 1"}


def changed_checkpoint(what: str) -> tuple[Tensors, dict[str, Any]]:
    values = weights_of(models.llama())
    tensors = as_tensors(values)
    if what == "missing":
        del tensors["model.layers.1.mlp.up_proj.weight"]
    elif what == "shape":
        tensors["model.layers.1.mlp.up_proj.weight"] = tensor("BF16", np.zeros((95, 64)))
    elif what == "more":
        tensors["model.layers.2.mlp.up_proj.weight"] = tensor("BF16", np.zeros((96, 64)))
    return tensors, CONFIG


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"has nothing for 'model.layers.1.mlp.up_proj.weight' \[96, 64\], a layer's weight"),
        ("shape", r"up_proj.weight has shape \[95, 64\], which does not fit the model's '.*' \[96, 64\]"),
        ("more", r"model.layers.2.mlp.up_proj.weight \[96, 64\] has no place in the model"),
    ],
)
def test_what_is_left_is_refused_unless_told_otherwise(what: str, message: str, tmp_path: Path) -> None:
    model = models.llama()
    before = {name: np.asarray(node.data).copy() for name, node in constants(model).items()}
    tensors, config = changed_checkpoint(what)
    folder = write_checkpoint(tmp_path / "hf", tensors, config)
    with pytest.raises(ModelError, match=message):
        apply_weights_from_checkpoint(model, folder)
    for name, node in constants(model).items():
        np.testing.assert_array_equal(np.asarray(node.data), before[name])
    pass_ = WeightsFromCheckpoint(folder, allow_unmatched=True)
    assert pass_.run_on_model(model)
    assert pass_.report is not None
    assert len(pass_.report.rows) == 21 - (what != "more")


def test_a_vector_without_a_name_is_not_placed_by_order(tmp_path: Path) -> None:
    """It may be the tensor times something."""
    x = op.parameter([-1, 64], np.float32, name="x")
    layer = op.add(op.matmul(x, models.constant((96, 64), "up.weight"), False, True), models.constant((1, 96), "C"))
    model = ov.Model([op.result(layer)], [x], "biased")
    tensors = {"up.weight": tensor("F32", np.ones((96, 64))), "up.bias": tensor("F32", np.ones(96))}
    with pytest.raises(ModelError, match=r"up.bias \[96\] has no place in the model"):
        apply_weights_from_checkpoint(model, write_checkpoint(tmp_path / "hf", tensors, CONFIG))


def test_buffers_and_neutral_tensors_need_no_place(tmp_path: Path) -> None:
    model = models.llama()
    tensors = as_tensors(weights_of(model))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensor("F32", np.arange(8))
    tensors["model.layers.0.self_attn.q_norm.weight"] = tensor("F16", np.ones(16))
    tensors["model.layers.0.self_attn.q_proj.bias"] = tensor("F16", np.zeros(64))
    tensors["pooler.dense.weight"] = tensor("F16", np.full((64, 64), 2))
    pass_ = WeightsFromCheckpoint(write_checkpoint(tmp_path / "hf", tensors, CONFIG))
    pass_.run_on_model(model)
    assert pass_.report is not None
    assert pass_.report.unused == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "a buffer that the graph computes",
        "model.layers.0.self_attn.q_norm.weight": "all ones, which exporters leave out",
        "model.layers.0.self_attn.q_proj.bias": "all zeros, which exporters leave out",
        "pooler.dense.weight": "the model has no such part",
    }


def test_a_table_that_the_graph_has_computed_stays(tmp_path: Path) -> None:
    """Angles: a table without a name, where everything of the checkpoint has a place; else it is refused."""
    ids = op.parameter([-1, -1], np.int64, name="ids")
    tables = [models.constant((80, 64), "self.embed.weight"), models.constant((32, 64), "Constant_7")]
    picked = [op.gather(table, ids, op.constant(np.int64(0))) for table in tables]
    model = ov.Model([op.result(op.add(*picked))], [ids], "positions")
    tensors = {"embed.weight": tensor("F32", np.ones((80, 64)))}
    pass_ = WeightsFromCheckpoint(write_checkpoint(tmp_path / "hf", tensors, CONFIG))
    pass_.run_on_model(model)
    assert pass_.report is not None
    assert pass_.report.kept == ("Constant_7",)
    tensors["positions.weight"] = tensor("F32", np.ones((31, 64)))
    with pytest.raises(ModelError, match=r"has nothing for 'Constant_7' \[32, 64\]"):
        apply_weights_from_checkpoint(model, write_checkpoint(tmp_path / "more", tensors, CONFIG))


def test_a_model_that_is_compressed_already_is_refused(tmp_path: Path) -> None:
    model = models.llama()
    folder = write_checkpoint(tmp_path / "hf", as_tensors(weights_of(model)), CONFIG)
    apply_weight_compression(model)
    with pytest.raises(ModelError, match="is compressed already: put a checkpoint's weights into the float"):
        apply_weights_from_checkpoint(model, folder)


def test_a_checkpoint_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    tensors, _ = quantised_llama(models.llama())
    del tensors["model.layers.0.mlp.up_proj.scales"]
    folder = write_checkpoint(tmp_path / "hf", tensors, GPTQ)
    with pytest.raises(ModelError, match=rf"^{re.escape(str(folder))}: model\.layers\.0\.mlp\.up_proj\.scales: "):
        apply_weights_from_checkpoint(models.llama(), folder)


def test_where_the_checkpoint_is_and_the_device_are_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WeightsFromCheckpoint("~/hf").folder == tmp_path / "hf"
    assert WeightsFromCheckpoint("hf", device="cpu").devices == (Device.CPU,)
    with pytest.raises(OptionError, match=r"device: 'XPU' is not one of CPU, GPU, NPU"):
        WeightsFromCheckpoint("hf", device="XPU")
