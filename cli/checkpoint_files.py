"""Compress a Hugging Face checkpoint: export it without its weights, and read them while the result is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ov_weight_compression.calibration import read_data
from ov_weight_compression.checkpoints.export import export
from ov_weight_compression.checkpoints.from_checkpoint import open_checkpoint, open_exported
from ov_weight_compression.cli.compress_files import FileResult, Progress, compress_model, update_config
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.ir_file import changed_since
from ov_weight_compression.ir_utils.model_folder import build_folder
from ov_weight_compression.ir_utils.publish import TemporaryFolder
from ov_weight_compression.passes.weight_compression import WeightCompression

__all__ = ["compress_checkpoint"]


def compress_checkpoint(
    source: Path,
    target: Path | None,
    options: dict[str, Any],
    force: bool = False,
    progress: Progress | None = None,
    data: str | None = None,
    task: str | None = None,
) -> list[FileResult]:
    """Compress the checkpoint in a folder into the folder `target`; with `target` None only decide and report.

    Takes what `compress_path` takes, and the task to export for.

    Raises:
        ModelError: the checkpoint is damaged or incomplete, has tensors that nothing uses, or cannot be exported.
        MissingExtraError: torch, transformers or optimum-intel are not installed.
        OptionError, WorkError: as `compress_path`.
    """
    if target is not None and target.exists() and target.resolve() == source.resolve():
        raise OptionError(f"output: {target} is the checkpoint itself; write somewhere else")
    if data is None:
        WeightCompression(**options)  # whether the options can be, before an export of minutes
    checkpoint = open_checkpoint(source)
    unchanged = [changed_since(file) for file in checkpoint.files]

    def check_unchanged() -> None:
        for check in unchanged:
            check()

    def build(folder: Path) -> list[FileResult]:
        exported = export(source, folder, task)
        given = options if data is None else {**options, "dataset": read_data(data, folder)}
        results = []
        for name in sorted(exported.models):
            model, origins = open_exported(exported, name, checkpoint)
            written = None if target is None else folder / name
            report = compress_model(model, name, written, given, progress, check_unchanged, origins, exported.unused)
            results.append(FileResult(source / name, source / name if target is None else target / name, report))
        update_config(folder, [result.report for result in results])
        return results

    if target is None:
        with TemporaryFolder() as scratch:
            return build(scratch)
    return build_folder(source, target, build, force)[1]
