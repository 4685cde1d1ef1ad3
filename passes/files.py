"""Compress model files: one IR or ONNX model, or a folder as exporters write them.

A folder's models are its `openvino_*.xml` files, those in subfolders (the parts of a diffusion pipeline) included and
tokenizers excepted. Everything else is copied, so that the result loads wherever the original did. A folder is built
beside its destination and renamed into place when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.ir_file import read_model
from ov_weight_compression.ir_utils.pipeline import Job
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes.report import Report
from ov_weight_compression.passes.weight_compression import WeightCompression

__all__ = ["FileResult", "Progress", "compress_path"]

CONFIG_FILE = "openvino_config.json"
_TOKENIZERS = ("openvino_tokenizer", "openvino_detokenizer")


@dataclass(frozen=True)
class FileResult:
    """One model of the input and what was done to it."""

    source: Path
    target: Path
    report: Report


class Progress:
    """What is told while files are written; this one tells nobody."""

    def start(self, name: str, report: Report) -> None:
        """A model's weights are about to be computed and written."""

    def advance(self, elements: int) -> None:
        """A weight with so many elements is done. Called from any thread."""


def compress_path(
    source: Path,
    target: Path | None,
    options: dict[str, Any],
    force: bool = False,
    progress: Progress | None = None,
    data: str | None = None,
) -> list[FileResult]:
    """Compress a model file or a folder into `target`; with `target` None only decide and report (a dry run).

    `data` names a calibration dataset as the command line does: a file, "random" or "self".

    Raises:
        ModelError: the source is no model, or not readable.
        OptionError: an option, or a destination that exists or is the source and `force` is not given.
        WorkError: computing or writing failed; what was at the destination is still there.
    """
    source = source.expanduser()
    if target is not None:
        target = _settle_target(source, target.expanduser(), force)
    if data is not None:
        from ov_weight_compression.calibration import read_data

        options = {**options, "dataset": read_data(data, source if source.is_dir() else source.parent)}
    if source.is_dir():
        return _compress_folder(source, target, options, progress or Progress())
    return [_compress_file(source, target, options, progress or Progress())]


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
    if target.exists():
        raise OptionError(f"output: {target} exists; write somewhere else, or add --force to replace it")
    return target


def _compress_file(source: Path, target: Path | None, options: dict[str, Any], progress: Progress) -> FileResult:
    pass_ = WeightCompression(**options)
    model = read_model(source)
    if target is None:
        return FileResult(source, source, pass_.preview(model))
    pass_.run_on_model(model)
    elements = {row.name: row.elements for row in pass_.report.rows}

    def finished(job: Job) -> None:
        progress.advance(elements[job.name])

    pass_.on_weight_finished(finished)
    progress.start(source.name, pass_.report)
    save_model(model, target)
    return FileResult(source, target, pass_.report)


def _models_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("openvino_*.xml") if not path.name.startswith(_TOKENIZERS))
    found = [path for path in found if path.with_suffix(".bin").exists()]
    if not found:
        raise ModelError(
            f"{folder}: no openvino_*.xml with weights in this folder; give the model's .xml or .onnx itself"
        )
    return found


def _compress_folder(
    source: Path, target: Path | None, options: dict[str, Any], progress: Progress
) -> list[FileResult]:
    models = _models_in(source)
    if target is None:
        return [_compress_file(model, None, options, progress) for model in models]
    if source.resolve() in target.resolve().parents:
        raise OptionError(f"output: {target} lies inside the input folder {source}; write somewhere else")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        results = []
        for model in models:
            done = _compress_file(model, partial / model.relative_to(source), options, progress)
            results.append(FileResult(model, target / model.relative_to(source), done.report))
        _copy_rest(source, partial, models)
        _update_config(partial, results)
        _swap_in(partial, target)
    except OSError as error:
        raise WorkError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return results


def _copy_rest(source: Path, target: Path, models: list[Path]) -> None:
    own = {path for model in models for path in (model, model.with_suffix(".bin"))}
    for path in sorted(source.rglob("*")):
        if path in own or path.is_dir():
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def _update_config(folder: Path, results: list[FileResult]) -> None:
    """Say in the exporter's own file what the weights are, keeping what it says otherwise."""
    path = folder / CONFIG_FILE
    config: dict[str, Any] = {}
    if path.exists():
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path.name}: not valid JSON: {error}") from error
        config = read if isinstance(read, dict) else {}
    recipe = next((result.report.recipe for result in results if result.report.rows), None)
    if recipe is None:
        return
    config["dtype"] = recipe["mode"].partition("_")[0] if recipe["mode"].startswith("int") else recipe["mode"]
    config["weight_compression"] = recipe
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _swap_in(partial: Path, target: Path) -> None:
    """Rename the finished folder into place; what was there is removed only after that."""
    old: Path | None = None
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
