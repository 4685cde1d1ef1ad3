"""Models as Hugging Face folders hold them: a config.json and weights in safetensors files."""

from ov_weight_compression.checkpoints.folder import Checkpoint, is_checkpoint, read_checkpoint
from ov_weight_compression.checkpoints.from_checkpoint import from_checkpoint
from ov_weight_compression.checkpoints.safetensors_file import StoredTensor, mapped_constants
from ov_weight_compression.checkpoints.transplant import (
    Transplanted,
    TransplantReport,
    WeightsFromCheckpoint,
    apply_weights_from_checkpoint,
)

__all__ = [
    "Checkpoint",
    "StoredTensor",
    "TransplantReport",
    "Transplanted",
    "WeightsFromCheckpoint",
    "apply_weights_from_checkpoint",
    "from_checkpoint",
    "is_checkpoint",
    "mapped_constants",
    "read_checkpoint",
]
