"""The command `ov-compress`.

    ov-compress MODEL -o OUT [--mode …]           compress (the word `compress` may be left out)
    ov-compress inspect MODEL [--device CPU]      what its weights are stored as, and what the device executes
    ov-compress verify MODEL [--device CPU]       whether the device computes what it says
    ov-compress compare BASE COMPRESSED …         what it cost
    ov-compress decompress MODEL -o OUT           floats again

Exit codes: 0 done; 1 something failed while working; 2 the options or the input cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ov_weight_compression import __version__

if TYPE_CHECKING:
    from ov_weight_compression.passes.files import FileResult

__all__ = ["main"]

_COMMANDS = ("compress", "inspect", "verify", "compare", "decompress")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] not in _COMMANDS and words[0] not in ("-h", "--help", "--version"):
        words.insert(0, "compress")
    parser = _parser()
    parsed = parser.parse_args(words)
    if not hasattr(parsed, "run"):
        parser.print_help()
        return 2
    from ov_weight_compression.ir_utils.errors import CompressionError, CompressionWarning, MissingExtraError, WorkError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CompressionWarning)  # the report that is printed has them
            code: int = parsed.run(parsed)
        sys.stdout.flush()
        return code
    except (WorkError, MissingExtraError) as error:
        return _fail(str(error), 1)
    except CompressionError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", 130)
    except MemoryError:
        return _fail("out of memory; nothing was written", 1)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except Exception as error:
        if "OV_COMPRESS_TRACEBACK" in os.environ:
            raise
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        return _fail(f"a fault of this program ({reason}); OV_COMPRESS_TRACEBACK=1 shows where", 1)


def _fail(message: str, code: int) -> int:
    from ov_weight_compression.ir_utils.kinds import one_line

    print(f"ov-compress: {one_line(' '.join(message.split()), 800)}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    from ov_weight_compression.evaluation.compare_command import add_compare_parser
    from ov_weight_compression.evaluation.inspect_command import add_inspect_parser
    from ov_weight_compression.evaluation.verify_command import add_verify_parser
    from ov_weight_compression.passes.decompress_command import add_decompress_parser

    parser = _Parser(
        prog="ov-compress",
        description="Compress the weights of OpenVINO models. MODEL -o OUT alone compresses to int8_asym.",
    )
    parser.add_argument("--version", action="version", version=f"ov-compress {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_compress(commands)
    add_inspect_parser(commands)
    add_verify_parser(commands)
    add_compare_parser(commands)
    add_decompress_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """What cannot be understood is said in one line, however long the word was."""

    def error(self, message: str) -> NoReturn:
        from ov_weight_compression.ir_utils.kinds import one_line

        self.exit(2, f"ov-compress: {one_line(message, 200)}; {self.prog} --help lists what there is\n")


def _add_compress(commands: Any) -> None:
    command = commands.add_parser("compress", help="compress a model's weights (the default command)")
    command.add_argument("model", metavar="MODEL", type=Path, help=".xml, .onnx, or a folder with openvino_*.xml files")
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
    data = command.add_argument_group("with data")
    data.add_argument("--data", metavar="FILE", help="text, .npy or .npz; random or self for a language model")
    _add_declared(command, data)
    command.add_argument("--report", metavar="FILE", type=Path, help="write the report as JSON")
    command.add_argument("--dry-run", action="store_true", help="report with exact sizes, write no model")
    command.add_argument("--verify", action="store_true", help="then see whether the device computes what it says")
    command.add_argument("--force", action="store_true", help="replace what is at the output")
    command.add_argument("--quiet", action="store_true", help="print nothing but errors")
    command.set_defaults(run=_run_compress)


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

    options: dict[str, Any] = {"quiet": parsed.quiet}
    for name, option in OPTIONS.items():
        word = getattr(parsed, name, None) if option.flag is not None else None
        if word is not None:
            options[name] = option.kind.from_text(word) if isinstance(word, str) else word
    if parsed.rule:
        options["rules"] = [parse_rule_text(rule) for rule in parsed.rule]
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


def _run_compress(parsed: argparse.Namespace) -> int:
    import json

    from ov_weight_compression.entry import done
    from ov_weight_compression.ir_utils.errors import OptionError
    from ov_weight_compression.ir_utils.publish import check_place, write_text
    from ov_weight_compression.passes.files import compress_path

    if parsed.output is None and not parsed.dry_run:
        raise OptionError("output: say where to write with -o OUT, or add --dry-run to see the report alone")
    report = None if parsed.report is None else check_place("--report", parsed.report)
    options = _options(parsed)
    target = None if parsed.dry_run else parsed.output
    if parsed.quiet:
        results = compress_path(parsed.model, target, options, parsed.force, data=parsed.data)
        done()
    else:
        from ov_weight_compression.passes.progress import weights_bar

        with weights_bar() as progress:
            results = compress_path(parsed.model, target, options, parsed.force, progress, parsed.data)
            done()
        _summarise(results, parsed.dry_run)
    if report is not None:
        models = [{"source": str(r.source), "target": str(r.target), **r.report.to_dict()} for r in results]
        write_text(report, json.dumps(models[0] if len(models) == 1 else {"models": models}, indent=1) + "\n")
    if parsed.verify and not parsed.dry_run:
        from ov_weight_compression.evaluation.verify_command import verify_files

        return verify_files([result.target for result in results if result.target is not None], parsed.device or "CPU")
    return 0


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


if __name__ == "__main__":
    from ov_weight_compression.entry import main as enter

    sys.exit(enter())
