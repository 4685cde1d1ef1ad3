"""The README.md of a compressed folder: how the model was made, in a section of its own that keeps all other text.

A section is everything between two marks. It is replaced where the model is compressed again, and taken out where it is
decompressed; what else the file says is never touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import ov_weight_compression
from ov_weight_compression.ir_utils.errors import one_line
from ov_weight_compression.ir_utils.model_folder import known_config
from ov_weight_compression.ir_utils.printing import human_bytes, plain, with_error
from ov_weight_compression.passes.device_rules import RELEASE, release_of
from ov_weight_compression.passes.recipe import options_as_json
from ov_weight_compression.passes.report import Report, explained, share_cells

if TYPE_CHECKING:
    from ov_weight_compression.evaluation.comparison import Comparison
    from ov_weight_compression.passes.recipe import Recipe

_FILE = "README.md"
_MARKS = {name: (f"<!-- ov-compress: {name} -->", f"<!-- ov-compress: end of {name} -->") for name in ("made", "cost")}
"""Of the section that says how the model was made, and of the one that says what it cost."""
_FRONT = "---\nlibrary_name: openvino\ntags:\n- openvino\n"


def write_card(folder: Path, source: Path, reports: Mapping[str, Report], asked: Recipe) -> None:
    """Say in the folder's README.md how its models were made.

    Args:
        folder: the compressed one, with whatever README.md the source had.
        source: the folder that was compressed.
        reports: of each model, by its path in the folder.
        asked: what was asked for.
    """
    if not any(report.rows for report in reports.values()):
        return
    text = _without(_read(folder), "cost")
    if not text.strip():
        text = _front_matter(folder) + f"# {source.resolve().name}, compressed\n"
    _write(folder, _with(text, "made", "\n".join(_made(folder, source, reports, asked))))


def write_divergence(folder: Path, found: Comparison) -> None:
    """Say in the folder's README.md what compression cost, as a comparison measured it."""
    _write(folder, _with(_read(folder), "cost", "\n".join(_cost(found))))


def forget_card(folder: Path) -> None:
    """Take out what was said of compression; a file that says nothing else goes."""
    before = _read(folder)
    text = _without(_without(before, "made"), "cost")
    if text == before:
        return
    if re.fullmatch(rf"{re.escape(_FRONT)}(base_model: .*\n.*\n)?---\n\n# .*, compressed\s*", text):
        (folder / _FILE).unlink()
    else:
        _write(folder, text)


def _read(folder: Path) -> str:
    path = folder / _FILE
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() else ""


def _write(folder: Path, text: str) -> None:
    if not (folder / _FILE).is_dir():
        (folder / _FILE).write_bytes(text.encode("utf-8", "surrogateescape"))


def _without(text: str, name: str) -> str:
    begin, end = (re.escape(mark) for mark in _MARKS[name])
    return re.sub(rf"\n*{begin}.*?{end}\n?", "\n", text, flags=re.DOTALL)


def _with(text: str, name: str, section: str) -> str:
    begin, end = _MARKS[name]
    rest = _without(text, name).rstrip("\n")
    return f"{rest}\n\n{begin}\n{section}\n{end}\n".lstrip("\n")


def _front_matter(folder: Path) -> str:
    """What model hubs read, where the base model's name is known."""
    name = _base_model(folder)
    base = f"base_model: {name}\nbase_model_relation: quantized\n" if "/" in name else ""
    return f"{_FRONT}{base}---\n\n"


def _base_model(folder: Path) -> str:
    """What the exporter's config.json calls the model: `owner/name`, or nothing."""
    name = known_config(folder).get("_name_or_path")
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""


def _made(folder: Path, source: Path, reports: Mapping[str, Report], asked: Recipe) -> Iterator[str]:
    versions = f"ov-weight-compression {ov_weight_compression.__version__}, OpenVINO {RELEASE}"
    base = _base_model(folder) or source.resolve().name
    yield "## How it was compressed"
    yield ""
    yield f"The weights of `{base}` were compressed with {versions}."
    for name, report in reports.items():
        if report.rows:
            yield ""
            yield from _formats(name if len(reports) > 1 else "", report)
    options = options_as_json(asked.options)
    data = {} if asked.data is None else {"data": asked.data if asked.data in ("self", "random") else "a file"}
    recipe = json.dumps({"recipe": 1, "options": options, **data}, indent=1, ensure_ascii=False)
    yield from ("", "What was asked for, as `ov-compress --recipe` reads it:", "", "```json", recipe, "```")


def _formats(name: str, report: Report) -> Iterator[str]:
    if name:
        yield from (f"`{name}`", "")
    yield "| format | was | weights | before | after | bits a weight |"
    yield "|---|---|---:|---:|---:|---:|"
    for share in report.shares:
        yield f"| {' | '.join(share_cells(report, share))} |"
    sizes = f"{human_bytes(report.bytes_before)} | {human_bytes(report.bytes_after)}"
    yield f"| all | | {len(report.rows)} | {sizes} | {report.bits_per_weight:.2f} |"
    reasons = dict.fromkeys(explained(row.reason) for row in report.rows if row.reason)
    if reasons:
        yield ""
        yield from (f"- not simply as asked for: {one_line(reason, 300)}" for reason in reasons)
    left = dict.fromkeys(skip.reason for skip in report.skips)
    yield from (f"- left in floats: {one_line(reason, 300)}" for reason in left)
    if "data" in report.recipe:
        yield f"- calibrated with {report.recipe['data']}"
    budget = report.budget
    if budget is not None and budget.measured is not None:
        yield f"- measured divergence from the original: {plain(budget.measured)} {budget.unit}"


def _cost(found: Comparison) -> Iterator[str]:
    yield from ("## What compression cost", "", f"Measured by `ov-compress compare` on {found.data.told};")
    yield f"{found.arithmetic.describe()}, OpenVINO {release_of(found.arithmetic.openvino)}."
    rows = list(_figures(found))
    yield from ("", "| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows))


def _figures(found: Comparison) -> Sequence[tuple[str, str]]:
    language = found.language
    if language is None:
        return [(f"SNR of the output `{one.name}`", f"{plain(one.snr_db, 3)} dB") for one in found.outputs]
    kl, same, ratio = language.kl.mean, language.same_top, language.perplexity_ratio
    return [
        ("mean KL divergence", f"{with_error(kl.value, kl.error)} nats"),
        ("same likeliest token", with_error(100 * same.value, 100 * same.error, " %")),
        ("perplexity, compressed over base", with_error(ratio.value, ratio.error)),
    ]
