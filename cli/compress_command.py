"""`ov-compress MODEL -o OUT`: the options, and what is printed and written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ov_weight_compression.cli.compress_files import FileResult, Progress
    from ov_weight_compression.passes.report import Report

__all__ = ["add_compress_parser", "run_compress"]

_MODEL = ".xml, .onnx, a folder with openvino_*.xml files, or a checkpoint's with config.json and *.safetensors"


def add_compress_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the `add_subparsers()` of a parser; `args.run` is set to `run_compress`."""
    command: argparse.ArgumentParser = subparsers.add_parser(
        "compress", help="compress a model's weights (the default command)"
    )
    command.add_argument("model", metavar="MODEL", type=Path, help=_MODEL)
    command.add_argument("-o", "--output", metavar="OUT", type=Path, help=".xml file or folder to write")
    command.add_argument(
        "--rule",
        action="append",
        metavar="PATTERN=MODE[:GROUP]",
        help="what matching weights get; MODE none skips them; may be repeated, the first match wins",
    )
    command.add_argument(
        "--ignore",
        action="append",
        metavar="NAME",
        help="leave alone: a layer's name, or name:N, re:REGEX, type:OPERATION; may be repeated",
    )
    command.add_argument("--no-validate", action="store_true", help="an --ignore that matches nothing is no error")
    command.add_argument(
        "--runtime-hint",
        action="append",
        metavar="NAME=VALUE",
        help="what a device is to do at inference, such as KV_CACHE_PRECISION=u8; may be repeated",
    )
    command.add_argument("--task", metavar="TASK", help="what a checkpoint is exported for, in optimum-intel's words")
    data = command.add_argument_group("with data")
    data.add_argument("--data", metavar="FILE", help="text, .npy or .npz; random or self for a language model")
    _add_declared(command, data)
    command.add_argument("--report", metavar="FILE", type=Path, help="write the report as JSON")
    command.add_argument("--dry-run", action="store_true", help="report with exact sizes, write no model")
    command.add_argument("--verify", action="store_true", help="then see whether the device computes what it says")
    command.add_argument("--force", action="store_true", help="replace what is at the output")
    command.add_argument("--quiet", action="store_true", help="no progress, no report: only warnings and errors")
    command.set_defaults(run=run_compress)
    return command


def _add_declared(command: Any, data: Any) -> None:
    """A flag for each option of the table in `passes.options` that has one."""
    from ov_weight_compression.passes.options import OPTIONS

    for name, option in OPTIONS.items():
        if option.flag is None:
            continue
        group, kind = data if option.with_data else command, option.kind
        word = option.flag or f"--{name.replace('_', '-')}"
        if kind.annotation == "bool":
            action = argparse.BooleanOptionalAction if option.default is None else "store_true"
            group.add_argument(word, action=action, default=None, help=option.help)
            continue
        choices = f": {', '.join(kind.choices)}" if kind.choices else ""
        usual = "" if option.default is None else f" (default {getattr(option.default, 'value', option.default)})"
        group.add_argument(word, metavar=name.upper(), help=f"{option.help}{choices}{usual}".replace("%", "%%"))


def _options(parsed: argparse.Namespace) -> dict[str, Any]:
    """The pass's options from the command line's; only those that were given."""
    from ov_weight_compression.passes.options import OPTIONS
    from ov_weight_compression.passes.rules import parse_rule_text
    from ov_weight_compression.passes.runtime_hints import parse_hint_text

    options: dict[str, Any] = {"quiet": parsed.quiet}
    for name, option in OPTIONS.items():
        word = getattr(parsed, name, None) if option.flag is not None else None
        if name == "mode" and word == "none":  # what a quantised checkpoint has in floats stays so
            options[name] = word
        elif word is not None:
            options[name] = option.kind.from_text(word) if isinstance(word, str) else word
    if parsed.rule:
        options["rules"] = [parse_rule_text(rule) for rule in parsed.rule]
    if parsed.runtime_hint:
        options["runtime_hints"] = dict(map(parse_hint_text, parsed.runtime_hint))
    if parsed.ignore:
        options["ignored_scope"] = _ignored(parsed.ignore, not parsed.no_validate)
    return options


def _ignored(entries: Sequence[str], validate: bool) -> dict[str, object]:
    fields: dict[str, list[str]] = {"names": [], "patterns": [], "types": []}
    prefixes = {"name:": "names", "re:": "patterns", "type:": "types"}
    for entry in entries:
        prefix = next((prefix for prefix in prefixes if entry.startswith(prefix)), "")
        fields[prefixes.get(prefix, "names")].append(entry[len(prefix) :])
    return {**fields, "validate": validate}


def run_compress(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.cli.compress_files import compress_path
    from ov_weight_compression.entry import done
    from ov_weight_compression.ir_utils.errors import OptionError
    from ov_weight_compression.ir_utils.publish import check_place, write_text

    if parsed.output is None and not parsed.dry_run:
        raise OptionError("output: say where to write with -o OUT, or add --dry-run to see the report alone")
    report = None if parsed.report is None else check_place("--report", parsed.report)
    options = _options(parsed)
    target = None if parsed.dry_run else parsed.output
    if parsed.quiet:
        results = compress_path(parsed.model, target, options, parsed.force, data=parsed.data, task=parsed.task)
        done()
    else:
        with _weights_bar() as progress:
            results = compress_path(parsed.model, target, options, parsed.force, progress, parsed.data, parsed.task)
            done()
        _summarise(results, parsed.dry_run)
    if report is not None:
        models = [{"source": str(r.source), "target": str(r.target), **r.report.to_dict()} for r in results]
        write_text(report, json.dumps(models[0] if len(models) == 1 else {"models": models}, indent=1) + "\n")
    if parsed.verify and not parsed.dry_run:
        from ov_weight_compression.cli.verify_command import verify_files

        return verify_files([result.target for result in results], parsed.device or "CPU")
    return 0


@contextmanager
def _weights_bar() -> Iterator[Progress]:
    """A bar on standard error while the block runs; nothing where that is not a terminal."""
    from ov_weight_compression.ir_utils.progress import progress_bar

    with progress_bar(shares=True) as bar:

        def start(name: str, report: Report) -> Callable[[int], None]:
            bar.clear()
            return bar.start(name, sum(row.elements for row in report.rows))

        yield start


def _summarise(results: Sequence[FileResult], dry_run: bool) -> None:
    from rich.console import Console

    from ov_weight_compression.ir_utils.wording import human_bytes
    from ov_weight_compression.passes.report_table import print_report

    console = Console()
    for result in results:
        if len(results) > 1:
            console.rule(str(result.source), align="left")
        print_report(result.report, console)
    before = sum(result.report.bytes_before for result in results)
    after = sum(result.report.bytes_after for result in results)
    where = "nothing written (dry run)" if dry_run else ", ".join(str(result.target) for result in results)
    console.print(f"{human_bytes(before)} of weights → {human_bytes(after)}: {where}", soft_wrap=True)
