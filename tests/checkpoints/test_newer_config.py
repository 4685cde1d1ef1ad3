"""What transformers 5 writes of rotary embeddings, in the names of transformers 4."""

from __future__ import annotations

from typing import Any

import pytest

from ov_weight_compression.checkpoints.export_worker import older_config
from ov_weight_compression.ir_utils.errors import ModelError


class Llama:
    def __init__(self, hidden_size: int = 1, rope_theta: float = 1e4, rope_scaling: Any = None) -> None: ...


class NeoX:
    def __init__(self, rotary_emb_base: float = 1e4) -> None: ...


CLASSES = {"llama": Llama, "gpt_neox": NeoX}
SCALED = {"rope_type": "llama3", "factor": 8.0}


@pytest.mark.parametrize(
    ("rotary", "expected"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
        ({"rope_theta": 5e5, **SCALED}, {"rope_theta": 5e5, "rope_scaling": SCALED}),
        ({"rope_type": "default", "partial_rotary_factor": None}, {}),
    ],
)
def test_what_it_says_is_under_the_names_of_before(rotary: dict[str, Any], expected: dict[str, Any]) -> None:
    config = {"model_type": "llama", "hidden_size": 8, "rope_parameters": rotary}
    assert older_config(config, CLASSES) == {"model_type": "llama", "hidden_size": 8, **expected}
    outer = {"model_type": "llava", "text_config": config}
    assert older_config(outer, CLASSES)["text_config"] == older_config(config, CLASSES)


def test_a_config_of_before_is_as_it_was() -> None:
    config = {"model_type": "own", "rope_theta": 7.0, "quantization_config": {"rope_parameters": {}}}
    assert older_config(config, CLASSES) == config


@pytest.mark.parametrize(
    ("kind", "rotary", "what"),
    [
        ("gpt_neox", {"rope_theta": 5e5}, "rope_theta of 'gpt_neox'"),
        ("llama", {"rope_theta": 5e5, "partial_rotary_factor": 0.5}, "partial_rotary_factor of 'llama'"),
        ("llama", {"full_attention": {"rope_theta": 5e5}}, "those of each kind of layer of 'llama'"),
    ],
)
def test_what_has_no_such_name_is_refused(kind: str, rotary: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelError, match=f"has no other name for {what}: save the checkpoint with it"):
        older_config({"model_type": kind, "rope_parameters": rotary}, CLASSES)
