"""`ov-compress MODEL -o OUT`, and `ov-compress plan MODEL`, which writes no model: the options, and what is printed and
written, what the run took included: time, and the memory that was its own."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ov_weight_compression.cli.terminal import CommandParser, JsonPlace, add_json, json_place, of_models, say
from ov_weight_compression.ir_utils.printing import human_bytes

if TYPE_CHECKING:
    from ov_weight_compression.cli.compress_files import FileResult, Progress
    from ov_weight_compression.passes.recipe import Recipe
    from ov_weight_compression.passes.report import Report

_COMPRESS_EXAMPLES = """examples:
  ov-compress model -o out                                   8 bits
  ov-compress model -o out --mode int4_sym --group-size 64   4 bits
  ov-compress model -o out --mode nf4 --data text.txt --accuracy best"""

_COMPRESS_FIRST = ("mode", "group_size", "ratio", "target_size", "target_divergence", "device", "accuracy")
"""With those that are declared here, what most need."""

_PLAN = """Say what formats the weights of a model would get for a target, what that is predicted to cost, and
what every other size would: the curve of bytes against divergence. Without a target: for 4.5 bits a weight. No model is
written."""
_PLAN_EXAMPLES = """examples:
  ov-compress plan model --data text.txt                     where is the knee?
  ov-compress plan model --target-size 3.5GB --html plan.html"""
_USUAL_BITS = 4.5
_PLAN_FIRST = ("target_size", "target_bits", "target_divergence", "formats", "max_slowdown", "device", "accuracy")

_TABLES = "codebook"
_MACHINE = ("threads", "calibration_memory", "statistics_path")


def compress_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_compress`."""
    command = CommandParser(
        prog="ov-compress compress",
        usage="ov-compress MODEL -o OUT [options]",
        description="Compress the weights of a model.",
        epilog=_COMPRESS_EXAMPLES,
    )
    command.add_argument("-o", "--output", metavar="OUT", type=Path, help=".xml file or folder to write")
    command.add_argument("--force", action="store_true", help="replace what is at the output")
    groups = _add_options(command)
    groups.results.add_argument("--dry-run", action="store_true", help="report with exact sizes, write no model")
    groups.running.add_argument(
        "--report", metavar="FILE", type=Path, help="write the report as JSON, beside the tables"
    )
    groups.running.add_argument(
        "--verify", action="store_true", help="then see whether the device computes what the model says"
    )
    command.set_defaults(run=run_compress)
    return command


def plan_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_plan`."""
    command = CommandParser(
        prog="ov-compress plan", usage="ov-compress plan MODEL [options]", description=_PLAN, epilog=_PLAN_EXAMPLES
    )
    _add_options(command, _PLAN_FIRST)
    command.set_defaults(run=run_plan, output=None, force=False, dry_run=True, report=None, verify=False)
    return command


def _add_options(command: CommandParser, first: Collection[str] = _COMPRESS_FIRST) -> Groups:
    """Give a command the model that it is called with and all that says what becomes of the weights; `first` are the
    options of the table that its first screen of help has."""
    command.add_argument(
        "model",
        metavar="MODEL",
        type=Path,
        help=".xml, .onnx, a folder with openvino_*.xml files, or a checkpoint's with config.json and *.safetensors",
    )
    groups = Groups(
        formats=command.add_argument_group("formats"),
        data=command.add_argument_group("with data"),
        results=command.add_argument_group("results"),
        more_formats=command.later_group("formats, in full"),
        more_data=command.later_group("with data, in full"),
        tables=command.later_group("the tables of codebook and adaptive_codebook"),
        running=command.later_group("running"),
        first=first,
    )
    groups.data.add_argument(
        "--data",
        metavar="FILE",
        help="text, .npy, .npz or a folder of recorded samples; random or self (written by it) for a language model",
    )
    _add_declared(groups)
    _add_own(groups)
    return groups


@dataclass(frozen=True)
class Groups:
    """The sections of the help, of which the first three are its first screen, and what of the table is there."""

    formats: Any
    data: Any
    results: Any
    more_formats: Any
    more_data: Any
    tables: Any
    running: Any
    first: Collection[str]

    def of(self, name: str, with_data: bool) -> Any:
        """Where an option of the table belongs."""
        if name in self.first:
            return self.data if with_data else self.formats
        if name.startswith(_TABLES):
            return self.tables
        if name in _MACHINE:
            return self.running
        return self.more_data if with_data else self.more_formats


def _add_own(groups: Groups) -> None:
    """The options that the command reads itself."""
    groups.formats.add_argument(
        "--rule",
        action="append",
        metavar="PATTERN=MODE[:GROUP]",
        help="what matching weights get; MODE none skips them; may be repeated, the first wins",
    )
    groups.formats.add_argument(
        "--ignore",
        action="append",
        metavar="NAME",
        help="leave alone: a layer's name, or name:N, re:REGEX, type:OPERATION; may be repeated",
    )
    groups.more_formats.add_argument(
        "--no-validate", action="store_true", help="an --ignore that matches nothing is no error (default: it is)"
    )
    groups.more_formats.add_argument(
        "--runtime-hint",
        action="append",
        metavar="NAME=VALUE",
        help="what a device is to do at inference, such as KV_CACHE_PRECISION=u8; may be repeated",
    )
    groups.more_formats.add_argument(
        "--no-pipeline-defaults",
        action="store_true",
        help="the mode for every part of a pipeline (default: 8 bits for small and delicate ones)",
    )
    groups.results.add_argument("--html", metavar="FILE", type=Path, help="write a page to look at")
    add_json(groups.results, "the report")
    groups.running.add_argument(
        "--recipe", metavar="FILE", type=Path, help="take the options from a file; those on the command line come first"
    )
    groups.running.add_argument(
        "--save-recipe", metavar="FILE", type=Path, help="write them to a file that makes the same model again"
    )
    groups.running.add_argument("--quiet", action="store_true", help="no progress, no report: only warnings and errors")
    groups.running.add_argument(
        "--task", metavar="TASK", help="what a checkpoint is exported for, in optimum-intel's words (default: its own)"
    )


def _add_declared(groups: Groups) -> None:
    """A flag for each option of the table in `passes.options` that has one."""
    from ov_weight_compression.passes.options import OPTIONS

    for name, option in OPTIONS.items():
        if option.flag is None:
            continue
        group, kind = groups.of(name, option.with_data), option.kind
        word = option.flag or f"--{name.replace('_', '-')}"
        if kind.annotation == "bool":
            action = argparse.BooleanOptionalAction if option.default is None else "store_true"
            usual = f" (default: {option.usual or 'off'})"
            group.add_argument(word, action=action, default=None, help=f"{option.help}{usual}")
            continue
        choices = f": {', '.join(kind.choices)}" if kind.choices else ""
        usual = option.usual or getattr(option.default, "value", option.default)
        told = f"{option.help}{choices} (default: {usual})".replace("%", "%%")
        group.add_argument(word, metavar=_METAVARS.get(kind.annotation, name.split("_")[-1].upper()), help=told)


_METAVARS = {"int": "N", "float": "X", "str | PathLike[str]": "PATH"}


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
    from ov_weight_compression.ir_utils.model_folder import split_file

    fields: dict[str, list[str]] = {"names": [], "patterns": [], "types": []}
    prefixes = {"name:": "names", "re:": "patterns", "type:": "types"}
    for entry in entries:
        file, entry = split_file(entry)
        prefix = next((prefix for prefix in prefixes if entry.startswith(prefix)), "")
        fields[prefixes.get(prefix, "names")].append(f"{file}:{entry[len(prefix) :]}" if file else entry[len(prefix) :])
    return {**fields, "validate": validate}


def _asked_of(parsed: argparse.Namespace) -> Recipe:
    """All that is asked for: what the command line says comes before what a recipe says."""
    from ov_weight_compression.passes.recipe import Recipe, read_recipe

    options = _options(parsed)
    read = Recipe({}) if parsed.recipe is None else read_recipe(parsed.recipe)
    if "rules" in options and "rules" in read.options:
        options["rules"] = [*options["rules"], *read.options["rules"]]
    return replace(
        read,
        options={**read.options, **options},
        data=read.data if parsed.data is None else parsed.data,
        task=read.task if parsed.task is None else parsed.task,
        pipeline_defaults=read.pipeline_defaults and not parsed.no_pipeline_defaults,
    )


def run_compress(parsed: argparse.Namespace) -> int:
    """Run the command and return its exit code; what goes wrong is raised as a `CompressionError`."""
    return _run_asked(parsed, _asked_of(parsed), "A dry run")


def run_plan(parsed: argparse.Namespace) -> int:
    """Run the command and return 0; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.passes.targets import BUDGETS

    asked = _asked_of(parsed)
    if not any(name in asked.options for name in BUDGETS):
        asked = replace(asked, options={**asked.options, "target_bits": _USUAL_BITS})
    return _run_asked(parsed, asked, "A plan")


def _run_asked(parsed: argparse.Namespace, asked: Recipe, dry: str) -> int:
    """Do what is asked for; `dry` is what it is called where nothing is written."""
    from ov_weight_compression.cli.compress_files import compress_path
    from ov_weight_compression.entry import done
    from ov_weight_compression.ir_utils.errors import OptionError
    from ov_weight_compression.ir_utils.publish import check_place

    if parsed.output is None and not parsed.dry_run:
        raise OptionError("output: say where to write with -o OUT, or add --dry-run to see the report alone")
    page = None if parsed.html is None else check_place("--html", parsed.html)
    kept = None if parsed.save_recipe is None else check_place("--save-recipe", parsed.save_recipe)
    place = json_place(parsed.json, parsed.report)
    target = None if parsed.dry_run else parsed.output
    with Watch() as watch, _weights_bar(parsed.quiet) as progress:
        results = compress_path(parsed.model, target, asked, parsed.force, progress)
        done()
    if not parsed.quiet:
        for text in dict.fromkeys((*asked.remarks, *(text for one in results for text in one.report.warnings))):
            say(f"warning: {text}")
        if not place.printed:
            _summarise(results, parsed.dry_run)
        say(f"{'planned' if parsed.dry_run else 'done'} in {watch.usage.told(_bytes_of(results)[0])}")
    place.write(lambda: _as_dict(results, watch.usage))
    if page is not None:
        told = f"{dry}: nothing was written, sizes are exact." if parsed.dry_run else f"Written to {parsed.output}."
        _write_page(page, Path(parsed.model), asked, results, told, watch.usage, parsed.dry_run)
    if kept is not None:
        _keep_recipe(kept, asked, Path(parsed.model), results)
    if parsed.verify and not parsed.dry_run:
        from ov_weight_compression.cli.inspect_command import verify_files

        with redirect_stdout(sys.stderr if place.printed else sys.stdout):
            return verify_files([one.target for one in results], _one_device(parsed.device), False, JsonPlace())
    return 0


def _bytes_of(results: Sequence[FileResult]) -> tuple[int, int]:
    """Bytes of the compressed weights of all models, before and after."""
    return sum(one.report.bytes_before for one in results), sum(one.report.bytes_after for one in results)


def _as_dict(results: Sequence[FileResult], usage: Usage) -> dict[str, Any]:
    models = [{"source": str(one.source), "target": str(one.target), **one.report.to_dict()} for one in results]
    return {**of_models(models), "run": usage.to_dict(_bytes_of(results)[0])}


def _names_in(source: Path, results: Sequence[FileResult]) -> list[str]:
    """What each model is called: by its path in the folder, or by its file's name."""
    from ov_weight_compression.ir_utils.publish import expanded

    source = expanded("MODEL", source)
    return [
        one.source.relative_to(source).as_posix() if source in one.source.parents else one.source.name
        for one in results
    ]


def _write_page(
    path: Path,
    source: Path,
    asked: Recipe,
    results: Sequence[FileResult],
    told: str,
    usage: Usage,
    planned: bool,
) -> None:
    """Write the page; `told` is one line on what was done, `planned`: nothing of it was."""
    import openvino as ov

    from ov_weight_compression.evaluation.report_page import render_report
    from ov_weight_compression.ir_utils.publish import write_text
    from ov_weight_compression.passes.recipe import option_lines

    made = [("input", str(source.absolute())), *option_lines(asked)]
    made.append(("time", usage.told(_bytes_of(results)[0])))
    made.append(("OpenVINO", ov.get_version()))
    reports = {name: one.report for name, one in zip(_names_in(source, results), results, strict=True)}
    write_text(path, render_report(reports, source.absolute().stem, told, made, planned=planned))


def _keep_recipe(path: Path, asked: Recipe, source: Path, results: Sequence[FileResult]) -> None:
    """Write what was asked for; what a budget has chosen is written in its place, so that nothing is chosen again."""
    from ov_weight_compression.passes.recipe import save_recipe
    from ov_weight_compression.passes.targets import BUDGETS, OF_BUDGETS

    if not any(name in asked.options for name in BUDGETS):
        save_recipe(path, asked)
        return
    options = {name: value for name, value in asked.options.items() if name not in (*BUDGETS, *OF_BUDGETS)}
    layers = {
        "" if len(results) == 1 else name: {row.name: (row.mode, row.group_size) for row in result.report.rows}
        for name, result in zip(_names_in(source, results), results, strict=True)
    }
    save_recipe(path, replace(asked, options={**options, "mode": "int4_sym"}), layers)


@contextmanager
def _weights_bar(quiet: bool) -> Iterator[Progress | None]:
    """A bar on standard error while the block runs; nothing where that is not a terminal, None if `quiet`."""
    from ov_weight_compression.ir_utils.printing import progress_bar

    if quiet:
        yield None
        return
    with progress_bar(shares=True) as bar:

        def start(name: str, report: Report) -> Callable[[int], None]:
            bar.clear()
            return bar.start(name, sum(row.elements for row in report.rows))

        yield start


def _summarise(results: Sequence[FileResult], dry_run: bool) -> None:
    from ov_weight_compression.ir_utils.printing import result_console
    from ov_weight_compression.passes.report import print_report

    console = result_console()
    for result in results:
        if len(results) > 1:
            console.rule(str(result.source), align="left")
        print_report(result.report, console, notes=False, planned=dry_run)
    before, after = _bytes_of(results)
    where = "nothing written" if dry_run else ", ".join(str(result.target) for result in results)
    console.print(f"{human_bytes(before)} of weights → {human_bytes(after)}: {where}", soft_wrap=True)


def _one_device(given: str | None) -> str:
    """The device that models are run on to verify them: the one that is named, or the CPU."""
    from ov_weight_compression.passes.option_values import DEVICES, Devices

    devices: Devices = () if given is None else DEVICES.parse("device", given)
    return devices[0].value if len(devices) == 1 else "CPU"


_EVERY_SECONDS = 0.02
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Usage:
    """What a run took."""

    seconds: float
    peak_bytes: int | None
    """Memory of its own at its peak, without mapped files, which the system may drop at any time; the largest
    resident set where that is not told, None where nothing is."""

    def to_dict(self, read_bytes: int) -> dict[str, Any]:
        """As JSON; `read_bytes` are those of the weights that were compressed."""
        return {
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak_bytes,
            "bytes_per_second": round(read_bytes / self.seconds) if self.seconds else None,
        }

    def told(self, read_bytes: int) -> str:
        """In one line."""
        speed = f", {human_bytes(read_bytes / self.seconds)}/s of weights" if self.seconds and read_bytes else ""
        memory = "" if self.peak_bytes is None else f", {human_bytes(self.peak_bytes)} of memory at its peak"
        return f"{self.seconds:.1f} s{speed}{memory}"


class Watch:
    """Watches the process while the block runs; `usage` is there after it."""

    def __enter__(self) -> Watch:
        self._start, self._peak, self._over = time.monotonic(), 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.usage = Usage(time.monotonic() - self._start, self._peak or _largest_resident())

    def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        with suppress(OSError, ValueError, IndexError):  # where the system does not tell it
            while True:
                numbers = _STATM.read_text().split()
                self._peak = max(self._peak, (int(numbers[1]) - int(numbers[2])) * page)
                if self._over.wait(_EVERY_SECONDS):
                    return


def _largest_resident() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
