"""Compress a Hugging Face checkpoint: export it without its weights, and read them while the result is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ov_weight_compression.checkpoints.opening import (
    OpenedModel,
    export_opened,
    open_checkpoint,
    open_exported,
)
from ov_weight_compression.cli.compress_files import FileResult, Progress, compress_model, update_config
from ov_weight_compression.cli.file_options import given_to_passes, options_by_file
from ov_weight_compression.cli.model_card import write_card
from ov_weight_compression.ir_utils.errors import OptionError, warn_caller
from ov_weight_compression.ir_utils.ir_file import changed_since
from ov_weight_compression.ir_utils.model_folder import build_folder
from ov_weight_compression.ir_utils.publish import TemporaryFolder, expanded
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.widened_constants import float_constants
from ov_weight_compression.ir_utils.worker_pool import default_threads
from ov_weight_compression.passes.option_values import DEVICES
from ov_weight_compression.passes.recipe import Recipe
from ov_weight_compression.passes.report import Report, joined, with_origins
from ov_weight_compression.passes.weight_compression import WeightCompression
from ov_weight_compression.patterns.graphs import graphs_of

_WITHOUT_COMPRESSION = ("mode", "device", "threads", "quiet")
"""Options that mean something where floats stay as they are."""


def compress_checkpoint(
    source: Path, target: Path | None, asked: Recipe, force: bool = False, progress: Progress | None = None
) -> list[FileResult]:
    """Compress the checkpoint in a folder into the folder `target`; with `target` None only decide and report.

    The codes of a quantised checkpoint are kept; what it
    has in floats is compressed, or left as it is where the mode is "none".

    Raises:
        ModelError: the checkpoint is damaged or incomplete, has tensors that nothing uses, or cannot be exported.
        MissingExtraError: torch, transformers or optimum-intel are not installed.
        OptionError, WorkError: as `compress_path`.
    """
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
                report = _save(model, written, check_unchanged, exported.unused)
            else:
                own = shared[name]
                report = compress_model(
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
            update_config(folder, list(reports.values()))
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


def _save(
    model: OpenedModel, target: Path | None, check_unchanged: Callable[[], None], unused: Mapping[str, str]
) -> Report:
    """Write a model as it is."""
    assert model.kept is not None
    if target is not None:
        _settle(model.model, default_threads())
        save_model(model.model, target, after_write=check_unchanged)
    return with_origins(model.kept, model.origins, unused)
