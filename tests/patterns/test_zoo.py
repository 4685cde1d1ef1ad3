"""Models as exporters write them: as many weights as NNCF 3.4 compresses, or more, and a reason for the rest."""

from __future__ import annotations

import csv
from math import prod
from pathlib import Path

import openvino as ov
import pytest

from ov_weight_compression.patterns import find_compressed, find_weights

MODELS = [
    "bert/openvino_model.xml",
    "bloom/openvino_model.xml",
    "clip/openvino_model.xml",
    "falcon/openvino_model.xml",
    "gemma2/openvino_model.xml",
    "gpt2/openvino_model.xml",
    "gpt_neox/openvino_model.xml",
    "gpt_oss/openvino_model.xml",
    "llama/openvino_model.xml",
    "mamba/openvino_model.xml",
    "opt/openvino_model.xml",
    "phi3/openvino_model.xml",
    "qwen2/openvino_model.xml",
    "qwen2_moe/openvino_model.xml",
    "resnet/openvino_model.xml",
    "whisper/openvino_decoder_model.xml",
    "whisper/openvino_encoder_model.xml",
]

# What NNCF 3.4 keeps in the backup mode when asked for int4 without all_layers, embeddings and convolutions aside.
LAST_LAYERS = {
    "bert": "self.encoder.layer.1.output.dense.weight_compressed",
    "clip": "self.text_projection.weight",
    "gpt_neox": "self.model.embed_out.weight_compressed",
    "gpt_oss": "self.lm_head.weight_compressed",
    "llama": "self.lm_head.weight_compressed",
    "phi3": "self.lm_head.weight_compressed",
    "qwen2": "self.lm_head.weight",
    "qwen2_moe": "self.lm_head.weight",
    "resnet": "self.classifier.1.weight",
    "whisper_encoder": "self.layers.1.fc2.weight_compressed",
}


def by_nncf(shared: Path) -> dict[str, int]:
    with (shared / "zoo" / "coverage.tsv").open(newline="") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return {row["model"]: int(row["compressed_by_nncf_3.4_int8_asym"]) for row in rows}


def test_the_list_of_models_is_complete(shared: Path) -> None:
    assert sorted(by_nncf(shared)) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_coverage(shared: Path, name: str) -> None:
    model = ov.Core().read_model(shared / "zoo" / name)
    weights, skips = find_weights(model)
    large = [weight for weight in weights if weight.elements >= 1024]
    assert len(large) >= by_nncf(shared)[name]
    named = {weight.name for weight in weights} | {skip.name for skip in skips}
    for node in model.get_ordered_ops():
        is_float = node.get_type_name() == "Constant" and node.get_element_type().to_string() in ("f32", "f16")
        if is_float and prod(node.shape) >= 1024:
            assert node.get_friendly_name() in named
    assert all(skip.reason for skip in skips)
    assert find_compressed(model) == []


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layer_is_the_one_that_nncf_keeps_back(shared: Path, name: str) -> None:
    weights, _ = find_weights(ov.Core().read_model(shared / "zoo" / name))
    folder, file = name.split("/")
    expected = LAST_LAYERS.get("whisper_encoder" if "encoder" in file else folder if "decoder" not in file else "")
    assert [weight.name for weight in weights if weight.is_last_layer] == ([expected] if expected else [])
