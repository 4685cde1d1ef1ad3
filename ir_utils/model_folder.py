"""Model files in, model files out: a file to a file, or a folder as exporters write it to a folder.

A folder's models are its `openvino_*.xml` files, those in subfolders (the parts of a diffusion pipeline) included and
tokenizers excepted. Everything else is copied, so that the result loads wherever the original did. A folder is built
beside its destination and takes its place when it is complete (see `ir_utils.publish`).

Its models are parts of one pipeline: what exporters call them, and which of them make up what, is known here too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.ir_file import stored_constants
from ov_weight_compression.ir_utils.publish import Publication, cannot_write, expanded, mend, under_way, write_text

_CONFIG_FILE = "openvino_config.json"
_TOKENIZERS = ("openvino_tokenizer", "openvino_detokenizer")

T = TypeVar("T")


def models_in(folder: Path) -> list[Path]:
    """The models of a folder, in order of their names; what is no folder is taken for a model itself.

    Raises:
        ModelError: there are none, or the folder cannot be looked through.
    """
    if not folder.is_dir():
        return [folder]
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
    """The destination with its name completed, once it is certain that it can be written and that nothing is
    overwritten unasked."""
    try:
        target = expanded("output", target)
        if source.is_file() and target.suffix != ".xml":
            if target.suffix or target.is_file():
                raise OptionError(f"output: {target} must end in .xml, or be a folder")
            target = target / (source.stem + ".xml")
        if not force:
            if target.exists() and source.exists() and target.resolve() == source.resolve():
                raise OptionError(f"output: {target} is the input; write somewhere else, or add --force to replace it")
            empty = target.is_dir() and not any(target.iterdir())
            for path in (target, target.with_suffix(".bin")) if source.is_file() else (target,):
                if path.exists() and not empty:
                    raise OptionError(f"output: {path} exists; write somewhere else, or add --force to replace it")
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
    read = read_json(path) if path.exists() else None
    config = read if isinstance(read, dict) else {}
    edit(config)
    if config:
        write_text(path, json.dumps(config, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ModelError: it is not valid JSON; names the file.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ModelError(f"{path}: not valid JSON: it is nested too deeply") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error


def known_config(folder: Path) -> dict[str, Any]:
    """What config.json says of the model that was exported into a folder; nothing where it cannot be read."""
    try:
        read = read_json(folder / "config.json")
    except (OSError, ModelError):
        return {}
    return read if isinstance(read, dict) else {}


_PREFIX = "openvino_"
_SUFFIXES = (".xml", ".onnx")


@dataclass(frozen=True)
class PipelineKind:
    """A kind of pipeline, as optimum-intel exports it."""

    kind: str
    known_by: tuple[str, ...]
    """Parts that only such a folder has; any of them is enough."""
    main: tuple[str, ...]
    """The parts that hold most of the weights and bear few bits best. The others are small, or what they lose reaches
    all the rest."""

    def is_main(self, name: str) -> bool:
        """Whether the model with this path in the folder is one of those."""
        return any(fnmatchcase(part_of(name), part) for part in self.main)


_PIPELINES = (
    PipelineKind("vision-language", ("language_model",), ("language_model", "talker_model", "mtp_model")),
    PipelineKind("diffusion", ("unet", "transformer", "prior"), ("unet", "transformer*", "prior")),
    PipelineKind("text-to-speech", ("postnet", "vocoder"), ("encoder_model", "decoder_model")),
    PipelineKind("encoder-decoder", ("decoder_model",), ("encoder_model", "decoder_model", "decoder_with_past_model")),
    PipelineKind("segmentation", ("prompt_encoder_mask_decoder",), ("vision_encoder",)),
)


def part_of(name: str) -> str:
    """What a model is called in its pipeline, by its path in the folder: `language_model` for
    `openvino_language_model.xml`, `vae_decoder` for `vae_decoder/openvino_model.xml`."""
    path = PurePosixPath(name)
    own = path.stem.removeprefix(_PREFIX)
    return path.parent.name if own == "model" and path.parent.name else own


def pipeline_of(names: Collection[str]) -> PipelineKind | None:
    """The kind of pipeline that models with these paths in a folder make up; None for a model by itself, and for kinds
    that are not known."""
    parts = {part_of(name) for name in names}
    if len(parts) < 2:
        return None
    return next((one for one in _PIPELINES if parts & set(one.known_by)), None)


def names_file(pattern: str, name: str) -> bool:
    """Whether a pattern names the model with this path in its folder: by the path, by the file's name alone, or by what
    it is called in its pipeline; `*` and `?` stand for any characters."""
    return any(fnmatchcase(own, pattern) for own in (name, PurePosixPath(name).name, part_of(name)))


def split_file(pattern: str) -> tuple[str, str]:
    """The file that a pattern is for, and the rest: `openvino_language_model.xml:*q_proj*` is for one file's weights;
    the first is empty where it names none."""
    for suffix in _SUFFIXES:
        file, sign, rest = pattern.partition(f"{suffix}:")
        if sign and rest and not file.startswith("re:"):
            return file + suffix, rest
    return "", pattern
