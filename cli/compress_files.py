"""Compress model files: one IR or ONNX model, a folder as exporters write them (see `ir_utils.model_folder`), or a
Hugging Face checkpoint, which is exported without its weights, and its weights read while the result is saved."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ov_weight_compression.checkpoints.folder import foreign_weights, is_checkpoint
from ov_weight_compression.cli.file_options import FileOptions, given_to_passes, options_by_file
from ov_weight_compression.cli.model_card import write_card
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, warn_caller
from ov_weight_compression.ir_utils.ir_file import changed_since, read_model
from ov_weight_compression.ir_utils.model_folder import build_folder, convert_path, edit_config, models_in
from ov_weight_compression.ir_utils.publish import TemporaryFolder, expanded
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.weight_source import float_constants
from ov_weight_compression.ir_utils.worker_pool import default_threads
from ov_weight_compression.passes.option_values import DEVICES
from ov_weight_compression.passes.plan import BY_LAYERS
from ov_weight_compression.passes.recipe import Recipe
from ov_weight_compression.passes.report import Report, joined, with_origins
from ov_weight_compression.passes.weight_compression import WeightCompression
from ov_weight_compression.patterns.graphs import graphs_of

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
        ModelError: the source is no model, or not readable; a checkpoint that is damaged or incomplete, has tensors
            that nothing uses, or cannot be exported.
        MissingExtraError: what exports a checkpoint is not installed: torch, transformers or optimum-intel.
        OptionError: an option, or a destination that exists or is the source and `force` is not given.
        WorkError: computing or writing failed; what was at the destination is still there.
    """
    source = expanded("MODEL", source)
    if is_checkpoint(source):
        return _compress_checkpoint(source, target, asked, force, progress)
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
        names = [model.relative_to(folder).as_posix() for model in models_in(source)]
        return options_by_file(names, asked, lambda name: read_model(folder / name))

    given = given_to_passes(folder)

    def convert(model: Path, written: Path | None) -> Report:
        name = model.relative_to(folder).as_posix()
        own = shared()[name]
        check_unchanged = changed_since(model)
        report = _compress_model(read_model(model), model.name, written, given(own, name), progress, check_unchanged)
        return replace(report, note=own.note)

    def finish(made: Path, reports: list[Report]) -> None:
        _update_config(made, reports)
        write_card(made, source, dict(zip(shared(), reports, strict=True)), asked)

    return [FileResult(*result) for result in convert_path(source, target, convert, finish, force)]


def _compress_model(
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


def _update_config(folder: Path, reports: list[Report]) -> None:
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


_WITHOUT_COMPRESSION = ("mode", "device", "threads", "quiet")
"""Options that mean something where floats stay as they are."""


def _compress_checkpoint(
    source: Path, target: Path | None, asked: Recipe, force: bool, progress: Progress | None
) -> list[FileResult]:
    """As `compress_path`, of a checkpoint. The codes of a quantised one are kept; what it has in floats is compressed,
    or left as it is where the mode is "none"."""
    from ov_weight_compression.checkpoints.opening import export_opened, open_checkpoint, open_exported

    if target is not None:
        target = expanded("output", target)
        if target.exists() and target.resolve() == source.resolve():
            raise OptionError(f"output: {target} is the checkpoint itself; write somewhere else")
    opened = open_checkpoint(source)
    leaves_floats = asked.options.get("mode") == "none"
    if leaves_floats and not opened.quantised:
        raise OptionError("mode: 'none' leaves everything in floats; it is for quantised checkpoints alone")
    _check_options(asked)
    device = asked.options.get("device")
    devices = () if device is None else DEVICES.parse("device", device)
    unchanged = [changed_since(file) for file in opened.checkpoint.files]

    def check_unchanged() -> None:
        for check in unchanged:
            check()

    def build(folder: Path) -> list[FileResult]:
        exported = export_opened(opened, folder, asked.task)
        names = sorted(exported.models)
        shared = {}
        if not leaves_floats:
            shared = options_by_file(names, asked, lambda name: open_exported(exported, name, opened, devices).model)
        given = given_to_passes(folder)
        results = []
        for name in names:
            model = open_exported(exported, name, opened, devices)
            written = None if target is None else folder / name
            if leaves_floats:
                assert model.kept is not None
                if written is not None:
                    _settle(model.model, default_threads())
                    save_model(model.model, written, after_write=check_unchanged)
                report = with_origins(model.kept, model.origins, exported.unused)
            else:
                own = shared[name]
                report = _compress_model(
                    model.model,
                    name,
                    written,
                    given(own, name),
                    progress,
                    check_unchanged,
                    model.origins,
                    exported.unused,
                    _settle,
                )
                if model.kept is not None:
                    report = joined(with_origins(model.kept, model.origins, {}), report)
                report = replace(report, note=own.note)
            results.append(FileResult(source / name, source / name if target is None else target / name, report))
        if not leaves_floats and target is not None:
            reports = {name: result.report for name, result in zip(names, results, strict=True)}
            _update_config(folder, list(reports.values()))
            write_card(folder, source, reports, asked)
        return _with_tokenizer_checked(results, source, folder)

    if target is None:
        with TemporaryFolder() as scratch:
            return build(scratch / "export")
    return build_folder(source, target, build, force)[1]


def _check_options(asked: Recipe) -> None:
    """Whether the options can be, before an export of minutes; data can be read only after it, by its tokenizer, but
    must be there."""
    options, data = dict(asked.options), asked.data
    if options.get("mode") == "none":
        useless = [name for name in (*options, *([] if data is None else ["data"])) if name not in _WITHOUT_COMPRESSION]
        if useless:
            raise OptionError(f"{useless[0]}: means nothing with mode 'none', which compresses nothing; leave it out")
        del options["mode"]
    WeightCompression(**(options if data is None else {**options, "dataset": data}))
    if data not in (None, "self", "random") and not expanded("data", Path(str(data))).exists():
        raise OptionError(f"data={data!r}: there is no such file")


def _settle(model: Any, threads: int) -> None:
    """What stays float is written as the export has it."""
    for graph in graphs_of(model):
        float_constants(graph.operations, threads)


def _with_tokenizer_checked(results: list[FileResult], source: Path, folder: Path) -> list[FileResult]:
    """Where optimum-intel cannot make the tokenizer's models it goes on without them, and only its log says so."""
    if not (folder / "tokenizer_config.json").exists() or (folder / "openvino_tokenizer.xml").exists():
        return results
    told = (
        f"{source}: its tokenizer could not be made into openvino_tokenizer.xml, without which openvino-genai does not "
        "run the model: install openvino-tokenizers, or another version of it or of transformers"
    )
    warn_caller([told])
    first = results[0].report
    return [replace(results[0], report=replace(first, warnings=(*first.warnings, told))), *results[1:]]
