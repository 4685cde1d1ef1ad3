"""A recipe: all that was asked for of a run, as one readable JSON file that makes the same model again elsewhere.

    {
     "recipe": 1,
     "options": {"mode": "nf4", "group_size": 64, "rules": [["*down_proj*", "int8_asym"]]},
     "data": {"file": "text.txt", "sha256": "…"},              or "self", or "random"
     "layers": {"model.layers.0.mlp.up_proj.weight": "nf4:64", "lm_head.weight": "none"},
     "files": {"openvino_vision_*.xml": {"options": {"mode": "int8_asym"}, "data": "…", "layers": {…}}},
     "made_with": {"ov_weight_compression": "0.1.0", "openvino": "2026.4.0"}
    }

`options` are keyword arguments of `WeightCompression`; `layers` says of single weights what they get, and becomes rules
in front of the others (a plan that was made for a budget is written down so); `files` is the same for some models of a
folder, by a pattern for their names. What says only how to compute (threads, where statistics are kept) is not in it.

Without data the bytes are the same on any machine. With data they follow the last bits of the arithmetic that ran it:
the same processor and the same OpenVINO give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import ov_weight_compression
from ov_weight_compression.ir_utils.errors import OptionError, one_line
from ov_weight_compression.ir_utils.model_folder import names_file
from ov_weight_compression.ir_utils.option_kinds import shown, unknown_option, whole_from_text
from ov_weight_compression.ir_utils.publish import expanded, write_text
from ov_weight_compression.passes.device_rules import RELEASE
from ov_weight_compression.passes.options import OPTIONS
from ov_weight_compression.passes.rules import Rule
from ov_weight_compression.patterns import IgnoredScope

_FORM = 1
_LEFT_OUT = ("threads", "executor", "statistics_path", "quiet", "lazy", "verify", "compression_format", "recipe")
"""They change no byte."""
_NO_JSON = ("dataset", "roles", "algorithm", "sources", "advanced_parameters")
"""Objects of a program's own."""
_CHUNK = 1 << 20

Layers = Mapping[str, tuple[str, int]]
"""What single weights get: mode and group by the weight's name; the mode "none" leaves it alone."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe's file says."""

    options: Mapping[str, Any]
    """Keyword arguments of `WeightCompression`; of `layers` the rules."""
    data: str | None = None
    """What to calibrate with: "self", "random" or a file."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further options for some of a folder's models, "data" among them, by a pattern for their names."""
    pipeline_defaults: bool = True
    """Whether small and delicate parts of a pipeline get 8 bits."""
    task: str | None = None
    """What a checkpoint is exported for."""
    remarks: tuple[str, ...] = ()
    """What may make another model of it here."""


def save_recipe(path: str | os.PathLike[str], recipe: Recipe, layers: Mapping[str, Layers] | None = None) -> None:
    """Write a recipe.

    Args:
        path: the file.
        recipe: what was asked for, as it was given.
        layers: what weights got, by their names, for each file of a folder; of a single model under "". With them
            nothing has to be decided again.

    Raises:
        OptionError: an option that is an object of the program's own, which no file can hold.
        WorkError: the file cannot be written.
    """
    place = Path(path)
    said: dict[str, Any] = {"recipe": _FORM, "options": options_as_json(recipe.options)}
    if recipe.data is not None:
        said["data"] = _named_data(recipe.data, place)
    if recipe.task is not None:
        said["task"] = recipe.task
    if not recipe.pipeline_defaults:
        said["pipeline_defaults"] = False
    parts = {pattern: _file_as_json(own, place) for pattern, own in recipe.files.items()}
    for name, own in (layers or {}).items():
        section = said
        if name:
            options = next((own for pattern, own in recipe.files.items() if names_file(pattern, name)), {})
            section = parts.setdefault(name, _file_as_json(options, place))
        section["layers"] = {
            weight: mode if mode == "none" or (group == -1 and "8" in mode) else f"{mode}:{group}"
            for weight, (mode, group) in own.items()
        }
    if parts:  # names before patterns: the first that matches counts
        said["files"] = dict(sorted(parts.items(), key=lambda part: part[0] not in (layers or {})))
    said["made_with"] = {"ov_weight_compression": ov_weight_compression.__version__, "openvino": RELEASE}
    write_text(place, json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def option_lines(recipe: Recipe) -> list[tuple[str, str]]:
    """What was asked for, as names and values for people."""
    said = options_as_json(recipe.options)
    lines = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in said.items()]
    more = (("data", recipe.data), ("task", recipe.task))
    return [*lines, *((name, value) for name, value in more if value is not None)]


def _file_as_json(own: Mapping[str, Any], place: Path) -> dict[str, Any]:
    data = own.get("data")
    options = options_as_json({name: value for name, value in own.items() if name != "data"})
    return {
        **({"options": options} if options else {}),
        **({} if data is None else {"data": _named_data(data, place)}),
    }


def options_as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a recipe's file has them, in plain JSON types."""
    found = {}
    for name, value in options.items():
        if name in _LEFT_OUT or value is None:
            continue
        if name in _NO_JSON:
            raise OptionError(f"{name}: is an object of the program's own, which no recipe can hold")
        none = name == "mode" and value == "none"  # of checkpoints: floats stay
        found[name] = value if none else _json_value(OPTIONS[name].kind.parse(name, value))
    return found


def _json_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Rule):
        mode = None if value.mode is None else value.mode.value
        return [value.pattern, mode if value.group_size is None else {"mode": mode, "group_size": value.group_size}]
    if isinstance(value, IgnoredScope):
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        return {name: _json_value(own) for name, own in parts.items() if own or name == "validate"}
    if isinstance(value, Mapping):
        return {str(name): _json_value(own) for name, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(own) for own in value]
    return value


def _named_data(data: str, place: Path) -> Any:
    """Data as a recipe names them: a file beside it or below by its path from there, and what is in it."""
    if data in ("self", "random"):
        return data
    source, folder = expanded("data", Path(data)).absolute(), expanded("recipe", place).absolute().parent
    near = source.relative_to(folder) if folder in source.parents else source
    return {"file": near.as_posix(), "sha256": _digest(source)}


def _digest(source: Path) -> str:
    """SHA-256 of a file; of a folder that of its files' names and contents."""
    try:
        found = hashlib.sha256()
        files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        for path in files:
            if source.is_dir():
                found.update(f"{path.relative_to(source).as_posix()}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    found.update(chunk)
        return found.hexdigest()
    except OSError as error:
        raise OptionError(f"data: {source} cannot be read: {error.strerror}") from error


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Raises:
        OptionError: the file is not there or none; an option that is unknown; data that are not those that the recipe
            was made with.
    """
    place = expanded("recipe", Path(path))
    try:
        said = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"recipe: {place} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"recipe: {place} is no JSON: {one_line(str(error), 100)}") from error
    if not isinstance(said, dict) or said.get("recipe") != _FORM:
        raise OptionError(f'recipe: {place} is none: it must be a JSON object with "recipe": {_FORM}')
    reader = _Reader(place)
    reader.check_keys(said, ("recipe", "options", "data", "layers", "files", "task", "pipeline_defaults", "made_with"))
    files = reader.section(said.get("files", {}), "files")
    task, defaults = said.get("task"), said.get("pipeline_defaults", True)
    if not (task is None or isinstance(task, str)) or not isinstance(defaults, bool):
        raise reader.error("task must be a word, and pipeline_defaults true or false")
    return Recipe(
        reader.options(said, ""),
        reader.data(said.get("data")),
        {pattern: reader.file(own, f"files[{shown(pattern)}]") for pattern, own in files.items()},
        defaults,
        task,
        tuple(reader.remarks(said.get("made_with"))),
    )


class _Reader:
    """Reads the parts of a recipe; errors name the file and the part."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def error(self, message: str) -> OptionError:
        return OptionError(f"recipe {self._place}: {message}")

    def section(self, said: Any, name: str) -> dict[str, Any]:
        if not isinstance(said, dict):
            raise self.error(f"{name} must be an object, got {shown(said)}")
        return said

    def check_keys(self, said: Mapping[str, Any], allowed: Sequence[str]) -> None:
        unknown = next((key for key in said if key not in allowed), None)
        if unknown is not None:
            raise self.error(f"unknown key {shown(unknown)}; there are {', '.join(allowed)}")

    def options(self, said: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The options of a section, the layers' rules first."""
        options = dict(self.section(said.get("options", {}), f"{where}options"))
        for name in options:
            if name not in OPTIONS:
                raise self.error(str(unknown_option(name, OPTIONS)))
            if name in (*_NO_JSON, *_LEFT_OUT):
                raise self.error(f"{name} is none of a recipe's options")
        rules = [self._rule(*item) for item in self.section(said.get("layers", {}), f"{where}layers").items()]
        if rules:
            options["rules"] = [*rules, *options.get("rules", ())]
        return options

    def _rule(self, weight: str, said: Any) -> tuple[str, Any]:
        mode, colon, group = said.partition(":") if isinstance(said, str) else ("", "", "")
        size = whole_from_text(group) if colon else None
        if not mode or isinstance(size, str):
            raise self.error(f"layers: {shown(weight)} must get MODE, MODE:GROUP or none, got {shown(said)}")
        if mode == "none":
            return weight, None
        return weight, mode if size is None else {"mode": mode, "group_size": size}

    def data(self, said: Any) -> str | None:
        """What to calibrate with; a file is there, and the one that it was."""
        if said is None or said in ("self", "random"):
            return None if said is None else str(said)
        file = said.get("file") if isinstance(said, dict) else said
        if not isinstance(file, str):
            raise self.error(f'data must be "self", "random" or {{"file": …}}, got {shown(said)}')
        source = self._place.absolute().parent / file
        digest = said.get("sha256") if isinstance(said, dict) else None
        if digest is not None and digest != _digest(source):
            raise self.error(f"the data {source} are not those that it was made with (their SHA-256 differs)")
        return str(source)

    def file(self, said: Any, where: str) -> dict[str, Any]:
        """The options for some of a folder's models, data among them."""
        own = self.section(said, where)
        self.check_keys(own, ("options", "data", "layers"))
        data = self.data(own.get("data"))
        return {**self.options(own, f"{where} "), **({} if data is None else {"data": data})}

    def remarks(self, said: Any) -> Iterator[str]:
        own = {"ov_weight_compression": ov_weight_compression.__version__, "openvino": RELEASE}
        for name, here in own.items():
            there = said.get(name, here) if isinstance(said, dict) else here
            if there != here:
                yield f"the recipe was made with {name} {shown(there)}, this is {here}: bytes may differ"
