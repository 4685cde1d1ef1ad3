"""From what a caller names as a model (an `ov.Model`, a file, a folder of an exporter) to the model itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import openvino as ov

from ov_weight_compression.calibration.language import read_language_model
from ov_weight_compression.evaluation.arithmetic import core
from ov_weight_compression.evaluation.windows import DEFAULT_WINDOW
from ov_weight_compression.ir_utils import kinds
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.ir_file import read_model, reader_reason

__all__ = ["Loaded", "load"]

_NOT_MODELS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model and where it came from."""

    model: ov.Model
    name: str
    """What it is called in reports: after its folder or file, or "base" and "compressed"."""
    path: Path | None = None
    """The .xml file; None for a model that was given as an object."""

    @property
    def folder(self) -> Path | None:
        """Where its tokenizer and config.json would lie."""
        return self.path.parent if self.path else None

    def config(self) -> dict[str, Any]:
        """The exporter's config.json, or nothing."""
        file = self.path.parent / "config.json" if self.path else None
        if file is None or not file.is_file():
            return {}
        try:
            read = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return read if isinstance(read, dict) else {}

    def usual_window(self) -> int:
        """Windows where none were asked for: 256 tokens, or fewer where the model takes no more; the length that its
        input has, where that is fixed."""
        language = read_language_model(self.model)
        fixed = language.length if language else None
        return fixed or min(DEFAULT_WINDOW, self.longest_window() or DEFAULT_WINDOW)

    def longest_window(self) -> int | None:
        """The number of positions that the model was made for, as far as its config.json or a table of positions says
        it: behind the end of such a table OpenVINO reads zeros and says nothing."""
        config = self.config()
        found = [config[key] for key in _LIMITS if isinstance(config.get(key), int) and config[key] > 1]
        language = read_language_model(self.model)
        if language is not None:
            found += [limit for limit in (language.positions, language.length) if limit]
        return min(found, default=None)


def load(source: ov.Model | str | PathLike[str], role: str) -> Loaded:
    """Read a model.

    Args:
        source: an `ov.Model`; a file that OpenVINO reads; or a folder with `openvino_model.xml`, or with one .xml
            beside those of the tokenizer.
        role: "base" or "compressed", for messages.

    Raises:
        ModelError: there is no such file, or OpenVINO cannot read it.
    """
    if isinstance(source, ov.Model):
        return Loaded(source, role)
    path = kinds.path().parse(f"the {role} model", source)
    if path.is_dir():
        path = _model_in(path, role)
    if not path.is_file():
        raise ModelError(f"the {role} model {path} does not exist")
    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
        raise ModelError(
            f"the {role} model {path} has no weights beside it: {path.with_suffix('.bin').name} is missing"
        )
    try:
        model = read_model(path) if path.suffix in (".xml", ".onnx") else core().read_model(path)
    except ModelError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ModelError(f"the {role} model {path} cannot be read: {reason}") from error
    except Exception as error:
        reason = reader_reason(error)
        raise ModelError(f"the {role} model {path} cannot be read: {reason}") from error
    return Loaded(model, _name_of(path), path)


def _model_in(folder: Path, role: str) -> Path:
    usual = folder / "openvino_model.xml"
    if usual.is_file():
        return usual
    found = sorted(file for file in folder.glob("*.xml") if file.name not in _NOT_MODELS)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(f"the {role} folder {folder} holds no OpenVINO model (.xml)")
    names = ", ".join(file.name for file in found)
    raise ModelError(f"the {role} folder {folder} holds several models ({names}): name the file")


def _name_of(path: Path) -> str:
    """What a person would call it: the folder's name, and the file's where it is not the same for every model."""
    folder = path.parent.resolve().name
    return folder if path.name == "openvino_model.xml" else f"{folder}/{path.name}"
