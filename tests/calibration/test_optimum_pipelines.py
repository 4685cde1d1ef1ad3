"""Recording optimum-intel's own pipelines, where it is installed: a small Whisper and a small LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ov_weight_compression import record_inputs
from tests.calibration.test_record import error

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
optimum = pytest.importorskip("optimum.intel")


def exported(model: Any, folder: Path, task: str) -> Path:
    from optimum.exporters.openvino import export_from_model

    with torch.no_grad():
        for values in model.parameters():
            if values.ndim == 2:
                values.normal_(0, values.shape[-1] ** -0.5)
    export_from_model(model.eval(), output=folder, task=task, stateful=True)
    return folder


def test_whisper(tmp_path: Path) -> None:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
    sizes = {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 300}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    nothing = dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "forced_decoder_ids"))
    named = {"architectures": ["WhisperForConditionalGeneration"], "max_target_positions": 64}
    config = transformers.WhisperConfig(**heads, **sizes, **ends, **nothing, **named)
    torch.manual_seed(0)  # before it is made: kernels and biases keep the numbers that they are made with
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.update(**nothing)
    folder = exported(model, tmp_path / "whisper", "automatic-speech-recognition-with-past")
    pipeline = optimum.OVModelForSpeechSeq2Seq.from_pretrained(folder)
    random = np.random.default_rng(0)
    found = []
    for count in (5, 2):
        with record_inputs(folder) as samples:
            for beams in range(1, count + 1):
                sound = np.cumsum(random.standard_normal((1, 80, 3000)), axis=2).astype(np.float32) * 0.05
                pipeline.generate(torch.tensor(sound), max_new_tokens=24, num_beams=1 + beams % 2)
        found.append(samples)
    samples, held = found
    assert samples["openvino_decoder_model.xml"][0]["input_ids"].shape == (2, 24)  # of two beams
    for name in held:
        assert error(folder, name, held[name], dataset=samples[name], gptq=True) < error(folder, name, held[name])


def test_llava(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
    text = transformers.LlamaConfig(**layers, vocab_size=320, num_key_value_heads=2, max_position_embeddings=256)
    vision = transformers.CLIPVisionConfig(**layers, image_size=56, patch_size=14, projection_dim=32)
    picture = {"image_token_index": 319, "image_token_id": 319, "image_seq_length": 16, "pad_token_id": 0}
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, **picture)
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(config)
    folder = exported(model, tmp_path / "llava", "image-text-to-text")
    pipeline = optimum.OVModelForVisualCausalLM.from_pretrained(folder)
    random = np.random.default_rng(0)
    found = []
    for count in (12, 6):
        with record_inputs(folder) as samples:
            for length in range(count):
                said = (random.integers(3, 300, 5), np.full(16, 319), random.integers(3, 300, 4 + length))
                ids = torch.tensor(np.concatenate(said)[None])
                pixels = torch.tensor(random.standard_normal((1, 3, 56, 56)).astype(np.float32))
                mask = torch.ones_like(ids)
                pipeline.generate(input_ids=ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=12)
        found.append(samples)
    samples, held = found
    for name in ("openvino_language_model.xml", "openvino_vision_embeddings_model.xml"):
        assert error(folder, name, held[name], dataset=samples[name], gptq=True) < error(folder, name, held[name])
