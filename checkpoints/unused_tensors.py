"""Tensors of a checkpoint that a model may do without: known by their names."""

from __future__ import annotations

import re
from collections.abc import Set

__all__ = ["is_buffer", "is_training_only", "unused_head"]

_BUFFERS = re.compile(
    r"(^|\.)(inv_freq|masked_bias|(attn|attention)\.bias|position_ids|num_batches_tracked|relative_position_index)$"
)
_TRAINING = re.compile(r"(^|\.)masked_spec_embed$")
_HEADS = frozenset(
    {"pooler", "cls", "lm_head", "mlm", "nsp", "qa_outputs", "classifier", "vocab_projector", "vocab_transform"}
    | {"vocab_layer_norm", "discriminator_predictions", "post_layernorm"}
)


def is_buffer(name: str) -> bool:
    """Whether a tensor is no parameter: the graph computes it from the config, or has it as a mask."""
    return _BUFFERS.search(name) is not None


def is_training_only(name: str) -> bool:
    """Whether a tensor is used in training alone."""
    return _TRAINING.search(name) is not None


def unused_head(name: str, there: Set[str] = frozenset()) -> bool:
    """Whether a tensor belongs to a part that follows the last layers and that not every model of the architecture has;
    not where a part of that name is among those that are `there`."""
    parts = _HEADS.intersection(name.split("."))
    return bool(parts) and not parts & there
