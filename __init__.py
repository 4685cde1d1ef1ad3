"""OpenVINO graph passes that compress the weights of a model to 8, 4 and fewer bits."""

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "apply_weight_compression": "passes",
    "save_model": "passes",
}
"""What is imported when it is asked for: the command must be able to import the package in no time."""

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
