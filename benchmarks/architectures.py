"""Tiny checkpoints of many architectures, with random weights, as `save_pretrained` writes them.

Only for an interpreter that has torch and transformers. Weights have heavy tails, norms and biases are not ones and
zeros: what an exporter folds away for such values stays.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LAYERS = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_LAYERS, "vocab_size": 320, "max_position_embeddings": 128}
_GROUPED = {**_TEXT, "num_key_value_heads": 2}
_N = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320, "n_positions": 128}
_SPLIT = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 160,
    "decoder_ffn_dim": 160,
    "vocab_size": 320,
}
_IMAGE = {**_LAYERS, "image_size": 32, "patch_size": 8}
_WORDS = {**_TEXT, "max_position_embeddings": 32}
_SHARD = "100KB"  # so that every checkpoint has several files
_GENERATION, _FEATURES = "text-generation-with-past", "feature-extraction"


@dataclass(frozen=True)
class Architecture:
    """One of transformers' classes, small."""

    model_class: str
    task: str
    options: dict[str, Any]
    """Of its config."""
    text: bool = True
    """Whether a tokenizer lies beside it."""
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of the configs inside its config."""


def _llm(name: str, options: dict[str, Any], **more: Any) -> Architecture:
    return Architecture(f"{name}ForCausalLM", _GENERATION, {**options, **more})


ARCHITECTURES = {
    "llama": _llm("Llama", _GROUPED),
    "llama_tied": _llm("Llama", _GROUPED, tie_word_embeddings=True),
    "mistral": _llm("Mistral", _GROUPED),
    "qwen2": _llm("Qwen2", _GROUPED),
    "qwen3": _llm("Qwen3", _GROUPED, head_dim=16),
    "qwen2_moe": _llm(
        "Qwen2Moe", _GROUPED, num_experts=4, moe_intermediate_size=64, shared_expert_intermediate_size=64
    ),
    "qwen3_moe": _llm(
        "Qwen3Moe", _GROUPED, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=16
    ),
    "mixtral": _llm("Mixtral", _GROUPED, num_local_experts=4),
    "gpt_oss": _llm("GptOss", _GROUPED, num_local_experts=4, head_dim=16),
    "phi": _llm("Phi", _TEXT),
    "phi3": _llm("Phi3", _GROUPED, pad_token_id=0),
    "gemma": _llm("Gemma", _GROUPED, head_dim=16),
    "gemma2": _llm("Gemma2", _GROUPED, head_dim=16, query_pre_attn_scalar=16),
    "gemma3_text": Architecture(
        "Gemma3ForCausalLM", _GENERATION, {**_GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16}
    ),
    "gpt2": Architecture("GPT2LMHeadModel", _GENERATION, _N),
    "gptj": Architecture("GPTJForCausalLM", _GENERATION, {**_N, "rotary_dim": 8}),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", _GENERATION, _TEXT),
    "gpt_neo": Architecture(
        "GPTNeoForCausalLM",
        _GENERATION,
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 320,
            "max_position_embeddings": 128,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "gpt_bigcode": Architecture("GPTBigCodeForCausalLM", _GENERATION, _N),
    "codegen": Architecture("CodeGenForCausalLM", _GENERATION, {**_N, "rotary_dim": 8}),
    "opt": Architecture(
        "OPTForCausalLM",
        _GENERATION,
        {
            "hidden_size": 64,
            "ffn_dim": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 320,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 64,
        },
    ),
    "bloom": Architecture(
        "BloomForCausalLM", _GENERATION, {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 320}
    ),
    "falcon": Architecture(
        "FalconForCausalLM",
        _GENERATION,
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 320,
            "alibi": False,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
    ),
    "mpt": Architecture(
        "MptForCausalLM",
        _GENERATION,
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 320, "max_seq_len": 128},
    ),
    "olmo2": _llm("Olmo2", _GROUPED),
    "cohere": _llm("Cohere", _GROUPED),
    "stablelm": _llm("StableLm", _GROUPED),
    "starcoder2": _llm("Starcoder2", _GROUPED),
    "granite": _llm("Granite", _GROUPED),
    "granitemoe": _llm("GraniteMoe", _GROUPED, num_local_experts=4),
    "glm4": _llm("Glm4", _GROUPED, head_dim=16, pad_token_id=0),
    "persimmon": _llm("Persimmon", _TEXT),
    "mamba": _llm("Mamba", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 320, "state_size": 8}),
    "lfm2": _llm("Lfm2", _GROUPED, layer_types=["conv", "full_attention"]),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        "text2text-generation-with-past",
        {"d_model": 64, "d_ff": 160, "num_layers": 2, "num_heads": 4, "d_kv": 16, "vocab_size": 320},
    ),
    "bart": Architecture(
        "BartForConditionalGeneration", "text2text-generation-with-past", {**_SPLIT, "max_position_embeddings": 64}
    ),
    "marian": Architecture(
        "MarianMTModel",
        "text2text-generation-with-past",
        {**_SPLIT, "max_position_embeddings": 64, "pad_token_id": 0, "decoder_start_token_id": 0},
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration",
        "automatic-speech-recognition-with-past",
        {
            **_SPLIT,
            "num_mel_bins": 20,
            "max_source_positions": 1500,
            "max_target_positions": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
        text=False,
    ),
    "wav2vec2": Architecture(
        "Wav2Vec2ForCTC",
        "automatic-speech-recognition",
        {
            **_LAYERS,
            "vocab_size": 32,
            "conv_dim": [32, 32],
            "conv_stride": [5, 2],
            "conv_kernel": [10, 3],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
        text=False,
    ),
    "bert": Architecture("BertModel", _FEATURES, _TEXT),
    "bert_masked": Architecture("BertForMaskedLM", "fill-mask", _TEXT),
    "roberta": Architecture("RobertaModel", _FEATURES, _TEXT),
    "xlm_roberta": Architecture("XLMRobertaForSequenceClassification", "text-classification", _TEXT),
    "mpnet": Architecture("MPNetModel", _FEATURES, _TEXT),
    "distilbert": Architecture(
        "DistilBertModel", _FEATURES, {"dim": 64, "hidden_dim": 160, "n_layers": 2, "n_heads": 4, "vocab_size": 320}
    ),
    "albert": Architecture("AlbertModel", _FEATURES, {**_TEXT, "embedding_size": 32}),
    "electra": Architecture("ElectraModel", _FEATURES, {**_TEXT, "embedding_size": 32}),
    "modernbert": Architecture("ModernBertModel", _FEATURES, {**_TEXT, "pad_token_id": 0}),
    "deberta_v2": Architecture("DebertaV2ForSequenceClassification", "text-classification", _TEXT),
    "vit": Architecture("ViTForImageClassification", "image-classification", _IMAGE, text=False),
    "resnet": Architecture(
        "ResNetForImageClassification",
        "image-classification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]},
        text=False,
    ),
    "clip": Architecture(
        "CLIPModel",
        "zero-shot-image-classification",
        {"projection_dim": 64},
        text=False,
        parts={"text_config": _WORDS, "vision_config": _IMAGE},
    ),
    "siglip": Architecture(
        "SiglipModel",
        "zero-shot-image-classification",
        {},
        text=False,
        parts={"text_config": {**_WORDS, "projection_size": 64}, "vision_config": _IMAGE},
    ),
    "llava": Architecture(
        "LlavaForConditionalGeneration",
        "image-text-to-text",
        {"image_token_index": 319, "image_seq_length": 16},
        text=False,
        parts={
            "text_config": {**_GROUPED, "model_type": "llama"},
            "vision_config": {**_IMAGE, "model_type": "clip_vision_model"},
        },
    ),
}


def build(name: str, dtype: str, folder: Path, variant: str = "") -> Path:
    """Write the checkpoint of an architecture in `dtype`; the same bytes every time, others for each `variant`. Returns
    the folder."""
    import torch
    import transformers

    architecture = ARCHITECTURES[name]
    model_class = getattr(transformers, architecture.model_class)
    config = model_class.config_class(**architecture.options, **architecture.parts)
    torch.manual_seed(zlib.crc32(f"{name}{variant}".encode()))
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
            if parameter.ndim > 1:
                parameter.mul_(torch.exp(0.3 * torch.randn(parameter.shape[-1])))
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=_SHARD)
    if architecture.text:
        write_tokenizer(folder)
    return folder


def export_checkpoint(folder: Path, output: Path, task: str, tokenizer: bool = True) -> None:
    """What optimum-intel writes for a checkpoint, in floats."""
    import transformers
    from optimum.exporters.openvino import main_export

    transformers.logging.set_verbosity_error()
    main_export(str(folder), output, task=task, convert_tokenizer=tokenizer)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "a checkpoint is a folder of files"] * 4, trainer)
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
