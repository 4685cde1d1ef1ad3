"""Compress model files: one IR or ONNX model, a folder as exporters write them (see `ir_utils.model_folder`), or a
checkpoint (see `cli.checkpoint_files`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ov_weight_compression.checkpoints.folder import foreign_weights, is_checkpoint
from ov_weight_compression.cli.file_options import FileOptions, given_to_passes, options_by_file
from ov_weight_compression.cli.model_card import write_card
from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.ir_file import changed_since, read_model
from ov_weight_compression.ir_utils.model_folder import convert_path, edit_config, models_in
from ov_weight_compression.ir_utils.publish import expanded
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes.method import BY_LAYERS
from ov_weight_compression.passes.recipe import Recipe
from ov_weight_compression.passes.report import Report, with_origins
from ov_weight_compression.passes.weight_compression import WeightCompression

_MODEL_FILES = (".xml", ".onnx")
_OPTIMUM_DTYPES = ("int4", "int8", "mxfp4", "nf4", "cb4")


@dataclass(frozen=True)
class FileResult:
    """One model of the input and what was done to it."""

    source: Path
    target: Path
    report: Report


Progress = Callable[[str, Report], Callable[[int], None]]
"""Told that a model's weights (its file, its report) are about to be computed and written; what it returns is told of
each weight that is done how many elements that has, from any thread."""


def compress_path(
    source: Path, target: Path | None, asked: Recipe, force: bool = False, progress: Progress | None = None
) -> list[FileResult]:
    """Compress a model file, a folder of models or a checkpoint into `target` as is asked; with `target` None only
    decide and report (a dry run).

    Raises:
        ModelError: the source is no model, or not readable.
        OptionError: an option, or a destination that exists or is the source and `force` is not given.
        WorkError: computing or writing failed; what was at the destination is still there.
    """
    source = expanded("MODEL", source)
    if is_checkpoint(source):
        from ov_weight_compression.cli.checkpoint_files import compress_checkpoint

        return compress_checkpoint(source, target, asked, force, progress)
    if asked.options.get("mode") == "none":
        raise OptionError("mode: 'none' leaves everything in floats; it is for quantised checkpoints alone")
    if asked.task is not None:
        raise OptionError(f"task: {source} is no checkpoint; a model is exported already")
    if source.suffix not in _MODEL_FILES and not any(one.suffix in _MODEL_FILES for one in source.rglob("*")):
        reason = foreign_weights(source)
        if reason:
            raise ModelError(f"{source}: {reason}")

    folder = source if source.is_dir() else source.parent

    @functools.cache
    def shared() -> dict[str, FileOptions]:
        models = models_in(source) if source.is_dir() else [source]
        names = [model.relative_to(folder).as_posix() for model in models]
        return options_by_file(names, asked, lambda name: read_model(folder / name))

    given = given_to_passes(folder)

    def convert(model: Path, written: Path | None) -> Report:
        name = model.relative_to(folder).as_posix()
        own = shared()[name]
        return replace(_compress_file(model, written, given(own, name), progress), note=own.note)

    def finish(made: Path, reports: list[Report]) -> None:
        update_config(made, reports)
        write_card(made, source, dict(zip(shared(), reports, strict=True)), asked)

    return [FileResult(*result) for result in convert_path(source, target, convert, finish, force)]


def _compress_file(source: Path, target: Path | None, options: dict[str, Any], progress: Progress | None) -> Report:
    check_unchanged = changed_since(source)
    return compress_model(read_model(source), source.name, target, options, progress, check_unchanged)


def compress_model(
    model: Any,
    name: str,
    target: Path | None,
    options: dict[str, Any],
    progress: Progress | None,
    check_unchanged: Callable[[], None],
    origins: Mapping[str, str] | None = None,
    unused: Mapping[str, str] | None = None,
    before_save: Callable[[Any, int], None] | None = None,
) -> Report:
    """Compress a model that has been read and write it to `target`, or with `target` None only decide.

    Args:
        name: the model's, for the progress bar.
        check_unchanged: called before the files take their names; raises if what was read has been changed.
        origins: where constants come from, by their names.
        unused: what the source has and the model has not, and why.
        before_save: given the compressed model, which it may change, and the number of threads.
    """
    pass_ = WeightCompression(**options)
    if target is None:
        return with_origins(pass_.preview(model), origins or {}, unused or {})
    pass_.run_on_model(model)
    if progress is not None:
        advance, elements = progress(name, pass_.report), {row.name: row.elements for row in pass_.report.rows}
        pass_.on_weight_finished(lambda job: advance(elements[job.name]))
    if before_save is not None:
        before_save(model, pass_.options.threads)
    save_model(model, target, after_write=check_unchanged)
    return with_origins(pass_.report, origins or {}, unused or {})


def update_config(folder: Path, reports: list[Report]) -> None:
    """Say in the exporter's own file what the weights are."""
    compressed = [report for report in reports if report.rows]
    recipe = next((one.recipe for one in sorted(compressed, key=lambda one: bool(one.note))), None)
    if recipe is None:
        return
    mode = recipe["mode"]
    dtype = mode.partition("_")[0] if mode.startswith("int") else mode
    quantization = _as_optimum_says_it(dtype, recipe)
    said = {"dtype": dtype, "quantization_config": quantization, "weight_compression": recipe}
    edit_config(folder, lambda config: config.update(said))


def _as_optimum_says_it(dtype: str, recipe: dict[str, str]) -> dict[str, Any] | None:
    """The recipe as an `OVWeightQuantizationConfig` of optimum-intel; None where that has no such dtype."""
    if dtype not in _OPTIMUM_DTYPES:
        return None
    words: dict[str, Any] = {
        "quant_method": "default",
        "dtype": dtype,
        "bits": 8 if dtype == "int8" else 4,
        "sym": not recipe["mode"].endswith("_asym"),
        "group_size": int(recipe["group_size"]),
        "ratio": float(recipe["ratio"]),
    }
    if dtype == "int8":
        return words
    words["all_layers"] = recipe["all_layers"] == "True"
    if recipe["backup_mode"] in ("none", "int8_sym", "int8_asym"):
        words["backup_precision"] = recipe["backup_mode"]
    if dtype != "mxfp4":  # with which optimum-intel refuses to load any of them
        words |= _algorithms(recipe)
    return words


def _algorithms(recipe: dict[str, str]) -> dict[str, Any]:
    """What ran beside the rounding, as far as optimum-intel has a word for it: it refuses GPTQ and LoRA together."""
    asked = {name for name in ("awq", "scale_estimation", "gptq", "lora_correction") if recipe.get(name) == "True"}
    if recipe.get("accuracy") in BY_LAYERS:
        asked.add("gptq")
    if "gptq" in asked:
        asked.discard("lora_correction")
    words: dict[str, Any] = {"quant_method": "awq"} if "awq" in asked else {}
    return words | dict.fromkeys(sorted(asked - {"awq"}), True)
