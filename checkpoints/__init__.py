"""Models as Hugging Face folders hold them: a config.json and weights in safetensors files.

What is here is imported when it is asked for: the command looks at every folder with it, and most are no checkpoints.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ov_weight_compression.checkpoints.folder import Checkpoint, is_checkpoint, read_checkpoint
    from ov_weight_compression.checkpoints.opening import from_checkpoint
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

_FILES = {
    "folder": ("Checkpoint", "is_checkpoint", "read_checkpoint"),
    "opening": ("from_checkpoint",),
    "safetensors_file": ("StoredTensor", "mapped_constants"),
    "transplant": ("TransplantReport", "Transplanted", "WeightsFromCheckpoint", "apply_weights_from_checkpoint"),
}

if not TYPE_CHECKING:  # a checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        """What is asked for, imported now."""
        file = next((file for file, names in _FILES.items() if name in names), None)
        if file is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{file}"), name)
