"""Model files in, model files out: a file to a file, or a folder as exporters write it to a folder.

A folder's models are its `openvino_*.xml` files, those in subfolders (the parts of a diffusion pipeline) included and
tokenizers excepted. Everything else is copied, so that the result loads wherever the original did. A folder is built
beside its destination and takes its place when it is complete (see `ir_utils.publish`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.ir_file import stored_constants
from ov_weight_compression.ir_utils.publish import Publication, cannot_write, expanded, mend, under_way, write_text

__all__ = ["build_folder", "convert_path", "edit_config", "models_in", "the_model_of"]

_CONFIG_FILE = "openvino_config.json"
_TOKENIZERS = ("openvino_tokenizer", "openvino_detokenizer")

T = TypeVar("T")


def models_in(folder: Path) -> list[Path]:
    """The models of a folder, in order of their names.

    Raises:
        ModelError: there are none, or the folder cannot be looked through.
    """
    try:
        found = sorted(
            path
            for path in folder.rglob("openvino_*.xml")
            if path.is_file() and not path.name.startswith(_TOKENIZERS) and not under_way(path.relative_to(folder))
        )
    except OSError as error:  # some folder in it has gone meanwhile, or may not be read
        raise ModelError(f"{folder}: cannot be looked through: {error.strerror}: {error.filename}") from error
    found = [path for path in found if path.with_suffix(".bin").exists() or stored_constants(path)]
    if not found:
        raise ModelError(
            f"{folder}: no openvino_*.xml with weights in this folder; give the model's .xml or .onnx itself (to "
            "compress also a checkpoint's folder, with config.json and *.safetensors)"
        )
    return found


def the_model_of(folder: Path) -> Path:
    """The only model of a folder.

    Raises:
        ModelError: there are none, or several.
    """
    found = models_in(folder)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise ModelError(f"{folder}: several models ({names}); name one of the files")
    return found[0]


def convert_path(
    source: Path,
    target: Path | None,
    convert: Callable[[Path, Path | None], T],
    finish: Callable[[Path, list[T]], None] | None = None,
    force: bool = False,
) -> list[tuple[Path, Path, T]]:
    """Convert a model file or each model of a folder.

    Args:
        source: a file or a folder.
        target: where to write; None only passes None on to `convert` (a dry run).
        convert: reads a model and writes it to the given path, which may lie in a folder that is renamed later.
        finish: called with a new folder and the results before it takes its name.
        force: replace what is at `target`.

    Returns:
        Of each model the source, the final target (the source where there is none) and what `convert` returned.

    Raises:
        ModelError: a folder holds no model.
        OptionError: the destination exists or is the source and `force` is not given, or cannot be.
        WorkError: writing failed; what was at the destination is still there.
    """
    source = expanded("MODEL", source)
    if target is not None:
        target = _checked_target(source, target, force)
    if not source.exists():
        mend(source)
    if not source.is_dir():
        return [(source, target or source, convert(source, target))]
    models = models_in(source)
    if target is None:
        return [(model, model, convert(model, None)) for model in models]

    def build(partial: Path) -> list[T]:
        results = [convert(model, partial / model.relative_to(source)) for model in models]
        _copy_rest(source, partial, models)
        if finish is not None:
            finish(partial, results)
        return results

    target, results = _build(source, target, build)
    return [(model, target / model.relative_to(source), one) for model, one in zip(models, results, strict=True)]


def _settle_target(source: Path, target: Path, force: bool) -> Path:
    """The destination with its name completed, once it is certain that nothing is overwritten unasked."""
    if source.is_file() and target.suffix != ".xml":
        if target.suffix or target.is_file():
            raise OptionError(f"output: {target} must end in .xml, or be a folder")
        target = target / (source.stem + ".xml")
    if force:
        return target
    if target.exists() and source.exists() and target.resolve() == source.resolve():
        raise OptionError(f"output: {target} is the input; write somewhere else, or add --force to replace it")
    if target.is_dir() and not any(target.iterdir()):
        return target
    for path in (target, target.with_suffix(".bin")) if source.is_file() else (target,):
        if path.exists():
            raise OptionError(f"output: {path} exists; write somewhere else, or add --force to replace it")
    return target


def build_folder(source: Path, target: Path, build: Callable[[Path], T], force: bool = False) -> tuple[Path, T]:
    """Make a folder from `source`: `build` fills the one that it is given, which then takes its name.

    Returns:
        The final target, and what `build` returned.

    Raises:
        OptionError: the destination exists or is the source and `force` is not given, or cannot be.
        WorkError: writing failed; what was at the destination is still there.
    """
    return _build(source, _checked_target(source, target, force), build)


def _checked_target(source: Path, target: Path, force: bool) -> Path:
    """The destination, once it is certain that it can be written."""
    try:
        target = _settle_target(source, expanded("output", target), force)
        Publication(target).discard()  # a place where nothing can be written is found out before any work
    except OSError as error:
        raise cannot_write(target, error) from error
    if source.is_dir() and source.resolve() in target.resolve().parents:
        raise OptionError(f"output: {target} lies inside the input folder {source}; write somewhere else")
    if target.resolve() in source.resolve().parents:  # replacing it would take the input along
        raise OptionError(f"output: {target} holds the input {source}; write somewhere else")
    return target


def _build(source: Path, target: Path, build: Callable[[Path], T]) -> tuple[Path, T]:
    target = target.resolve() if target.is_symlink() else target
    partial = target
    try:
        with Publication(target) as partial:
            partial.mkdir()
            built = build(partial)
    except OSError as error:
        raise cannot_write(target, error) from error
    except WorkError as error:  # names a file where it lay for the time being, which means nothing to the caller
        raise WorkError(str(error).replace(str(partial), str(target))) from error
    return target, built


def _copy_rest(source: Path, target: Path, models: list[Path]) -> None:
    own = {path for model in models for path in (model, model.with_suffix(".bin"))}
    for path in sorted(source.rglob("*")):
        if path in own or path.is_dir() or under_way(path.relative_to(source)):
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change what the exporter's own file says about a folder, keeping what it says otherwise.

    `edit` gets what the file holds, or an empty dict where there is none; nothing is written if that stays empty.

    Raises:
        ModelError: the file is not valid JSON.
    """
    path = folder / _CONFIG_FILE
    config: dict[str, Any] = {}
    if path.exists():
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except RecursionError as error:
            raise ModelError(f"{path}: not valid JSON: it is nested too deeply") from error
        except ValueError as error:
            raise ModelError(f"{path}: not valid JSON: {error}") from error
        config = read if isinstance(read, dict) else {}
    edit(config)
    if config:
        write_text(path, json.dumps(config, indent=2) + "\n")
