"""Models as Hugging Face folders hold them: a config.json and weights in safetensors files."""

from ov_weight_compression.checkpoints.folder import Checkpoint, is_checkpoint, read_checkpoint
from ov_weight_compression.checkpoints.from_checkpoint import from_checkpoint
from ov_weight_compression.checkpoints.safetensors_file import StoredTensor, stored_constants

__all__ = ["Checkpoint", "StoredTensor", "from_checkpoint", "is_checkpoint", "read_checkpoint", "stored_constants"]
