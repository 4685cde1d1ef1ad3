"""`--html FILE` of compress and plan: the report as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import openvino as ov

from ov_weight_compression.ir_utils.publish import expanded, write_text
from ov_weight_compression.passes.recipe import option_lines

if TYPE_CHECKING:
    from ov_weight_compression.cli.compress_files import FileResult
    from ov_weight_compression.cli.usage import Usage
    from ov_weight_compression.passes.recipe import Recipe

__all__ = ["names_in", "write_page"]


def names_in(source: Path, results: Sequence[FileResult]) -> list[str]:
    """What each model is called: by its path in the folder, or by its file's name."""
    source = expanded("MODEL", source)
    return [
        one.source.relative_to(source).as_posix() if source in one.source.parents else one.source.name
        for one in results
    ]


def write_page(
    path: Path,
    source: Path,
    asked: Recipe,
    results: Sequence[FileResult],
    told: str,
    usage: Usage,
    planned: bool = False,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        source: what was compressed.
        asked: what was asked for.
        results: of each model.
        told: one line on what was done.
        usage: what it took.
        planned: nothing of it was done.
    """
    from ov_weight_compression.evaluation.report_page import render_report

    made = [("input", str(source.absolute())), *option_lines(asked)]
    made.append(("time", usage.told(sum(one.report.bytes_before for one in results))))
    made.append(("OpenVINO", ov.get_version()))
    reports = {name: one.report for name, one in zip(names_in(source, results), results, strict=True)}
    write_text(path, render_report(reports, source.absolute().stem, told, made, planned=planned))
