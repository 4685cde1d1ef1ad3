"""The Llama-shaped models: real graphs, exported names, the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from benchmarks import chains, llama_ir
from benchmarks.llama_graph import Shape

TINY = Shape(hidden=64, layers=2, intermediate=128, heads=4, kv_heads=2, vocabulary=96, head=16)
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def build(folder: Path, seed: int = 0) -> Path:
    """The tiny model, from a block of noise that takes no time."""
    return llama_ir.build(TINY, folder, seed, noise=1 << 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's .xml."""
    return build(tmp_path_factory.mktemp("tiny"))


def run(request: ov.InferRequest, ids: np.ndarray, seen: int) -> np.ndarray:
    """Logits of further tokens after ``seen`` ones."""
    count = ids.shape[1]
    request.infer(
        {
            "input_ids": ids,
            "attention_mask": np.ones((1, seen + count), np.int64),
            "position_ids": np.arange(seen, seen + count)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
    )
    return request.get_tensor("logits").data.copy()


def test_tokens_one_by_one_give_what_all_at_once_give(tiny: Path) -> None:
    request = ov.Core().compile_model(tiny, "CPU", EXACT).create_infer_request()
    ids = np.arange(3, 10)[None]
    together = run(request, ids, 0)
    request.reset_state()
    single = [run(request, ids[:, each : each + 1], each) for each in range(ids.shape[1])]
    assert together.shape == (1, 7, TINY.vocabulary)
    assert together.std() > 0.01
    np.testing.assert_allclose(np.concatenate(single, 1), together, atol=1e-4)


def test_weights_have_exported_names_and_shapes(tiny: Path) -> None:
    found = chains.weights_of(tiny)
    linear = [name for name in found if name.endswith("aten::linear/MatMul:1")]
    assert len(linear) == 7 * TINY.layers
    assert "__module.model.layers.1.mlp.down_proj/aten::linear/MatMul:1" in found
    constant = found["__module.model.embed_tokens/aten::embedding/Gather:0"].constants[0]
    assert constant.get_friendly_name() == "self.model.embed_tokens.weight_compressed"
    assert constant.get_element_type() == ov.Type.f16
    assert "__module.lm_head/aten::linear/MatMul:1" not in found  # shares the embedding's constant
    assert tiny.read_text().count('name="decompression"') == len(TINY.weights()) + 2 * TINY.layers + 1


def test_size_is_two_bytes_a_parameter(tiny: Path) -> None:
    assert tiny.with_suffix(".bin").stat().st_size == pytest.approx(2 * TINY.parameters, rel=0.05)
    assert 2 * llama_ir.SHAPES["1.2"].parameters == pytest.approx(2.47e9, rel=0.002)
    assert 2 * llama_ir.SHAPES["3.2"].parameters == pytest.approx(6.43e9, rel=0.002)


def test_same_seed_same_bytes_other_seed_others(tiny: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    other = build(tmp_path / "other", seed=1)
    assert again.with_suffix(".bin").read_bytes() == tiny.with_suffix(".bin").read_bytes()
    assert other.with_suffix(".bin").read_bytes() != tiny.with_suffix(".bin").read_bytes()


def test_an_existing_model_is_left_and_another_shape_replaces_it(tmp_path: Path) -> None:
    xml = build(tmp_path)
    before = xml.stat().st_mtime_ns
    assert build(tmp_path).stat().st_mtime_ns == before
    build(tmp_path, seed=2)
    assert xml.stat().st_mtime_ns != before


def test_weights_are_heavy_tailed() -> None:
    target = np.empty((64, 512), np.float16)
    llama_ir.Noise(0, 1 << 17).matrix("self.model.layers.0.mlp.up_proj.weight", 64, 512, target)
    columns = np.square(target, dtype=np.float64).mean(0)
    assert (columns > 16 * np.median(columns)).sum() == 512 // llama_ir.OUTLIERS
    ordinary = target[:, columns < 4 * np.median(columns)].astype(np.float64)
    assert (ordinary**4).mean() > 4 * (ordinary**2).mean() ** 2  # a normal distribution has 3


@pytest.mark.parametrize("text", ["7", "1x2x3", "64x2x128x4x2x96x-16"])
def test_a_shape_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hiddenxlayersx"):
        llama_ir.shape_of(text)


def test_a_shape_in_numbers() -> None:
    assert llama_ir.shape_of("64x2x128x4x2x96x16") == TINY
