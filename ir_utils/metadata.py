"""What a model says about how it was made: sections of its rt_info, which its .xml keeps.

weight_compression   this package's options, with versions
nncf                 NNCF's; its own section `weight_compression` inside
optimum              versions of what exported it
runtime_options      what OpenVINO is to do with it at inference

What this package compresses has a section `nncf` as well, with NNCF's keys and spellings: other tools look there for
the group size, or for whether a model is compressed already. Its `version` says who wrote it.
"""

from __future__ import annotations

from typing import Any

import openvino as ov

OWN_SECTION = "weight_compression"
_NNCF = "nncf"
_VERSION = "version"
_WRITER = "ov-weight-compression"
_SECTIONS = (OWN_SECTION, _NNCF, "optimum", "runtime_options")


def read_metadata(model: Any) -> dict[str, Any]:
    """The sections that are there, as plain JSON types; without that of NNCF where it repeats the package's own."""
    info = model.get_rt_info()
    sections = {section: _plain(info[section]) for section in _SECTIONS if section in info}
    if OWN_SECTION in sections and _is_ours(sections.get(_NNCF)):
        del sections[_NNCF]
    return sections


def write_metadata(model: Any, own: dict[str, str], nncf: dict[str, Any], version: str) -> None:
    """Write into a model how it was made: the package's section, and NNCF's with its words."""
    for key, value in own.items():
        model.set_rt_info(value, [OWN_SECTION, key])
    for key, value in nncf.items():
        model.set_rt_info(value, [_NNCF, OWN_SECTION, key])
    if not model.has_rt_info([_NNCF, _VERSION]):
        model.set_rt_info(f"{_WRITER} {version}", [_NNCF, _VERSION])


def is_compressed(model: Any) -> bool:
    """Whether a compressor says that it has been here: this package, or NNCF."""
    return any(model.has_rt_info(path) for path in ([OWN_SECTION], [_NNCF, OWN_SECTION]))


def drop_metadata(model: Any) -> None:
    """Remove what no longer holds once the weights are floats again: both sections on compression."""
    info = model.get_rt_info()
    if OWN_SECTION in info:
        del info[OWN_SECTION]
    nncf = _plain(info[_NNCF]) if _NNCF in info else None
    if isinstance(nncf, dict) and OWN_SECTION in nncf:
        del info[_NNCF]
        for key, value in nncf.items():
            if key != OWN_SECTION and not (key == _VERSION and _is_ours(nncf)):
                model.set_rt_info(value, [_NNCF, key])


def _is_ours(section: Any) -> bool:
    """Whether a section `nncf` is this package's."""
    return isinstance(section, dict) and str(section.get(_VERSION, "")).startswith(_WRITER)


def _plain(value: Any) -> Any:
    if isinstance(value, ov.OVAny):
        value = value.value
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value if isinstance(value, (str, int, float, bool)) else str(value)
