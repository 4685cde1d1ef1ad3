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

if not TYPE_CHECKING:  # a checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        """What is asked for, imported now: from the first of the files that has it."""
        if name in __all__:
            from importlib import import_module

            for file in ("safetensors_file", "folder", "opening", "transplant"):
                module = import_module(f"{__name__}.{file}")
                if hasattr(module, name):
                    return getattr(module, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
