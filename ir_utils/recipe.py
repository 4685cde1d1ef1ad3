"""What a model says about how it was made: sections of its rt_info, which its .xml keeps.

weight_compression   this package's options, with versions
nncf                 NNCF's; its own section `weight_compression` inside
optimum              versions of what exported it
"""

from __future__ import annotations

from typing import Any

import openvino as ov

__all__ = ["OWN_SECTION", "drop_recipe", "is_compressed", "read_recipe"]

OWN_SECTION = "weight_compression"
_NNCF = "nncf"
_SECTIONS = (OWN_SECTION, _NNCF, "optimum")


def read_recipe(model: Any) -> dict[str, Any]:
    """The sections that are there, as plain JSON types."""
    info = model.get_rt_info()
    return {section: _plain(info[section]) for section in _SECTIONS if section in info}


def is_compressed(model: Any) -> bool:
    """Whether a compressor says that it has been here: this package, or NNCF."""
    recipe = read_recipe(model)
    nncf = recipe.get(_NNCF)
    return OWN_SECTION in recipe or (isinstance(nncf, dict) and OWN_SECTION in nncf)


def drop_recipe(model: Any) -> None:
    """Remove what no longer holds once the weights are floats again: both sections on compression."""
    info = model.get_rt_info()
    if OWN_SECTION in info:
        del info[OWN_SECTION]
    nncf = _plain(info[_NNCF]) if _NNCF in info else None
    if isinstance(nncf, dict) and OWN_SECTION in nncf:
        del info[_NNCF]
        for key, value in nncf.items():
            if key != OWN_SECTION:
                _set(model, [_NNCF, key], value)


def _set(model: Any, path: list[str], value: Any) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            _set(model, [*path, key], entry)
    else:
        model.set_rt_info(value, path)


def _plain(value: Any) -> Any:
    if isinstance(value, ov.OVAny):
        value = value.value
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value if isinstance(value, (str, int, float, bool)) else str(value)
