"""The command `ov-compress`.

    ov-compress MODEL -o OUT [--mode …]           compress (the word `compress` may be left out)
    ov-compress inspect MODEL [--device CPU]      what its weights are stored as, and what the device executes
    ov-compress verify MODEL [--device CPU]       whether the device computes what it says
    ov-compress compare BASE COMPRESSED …         what it cost
    ov-compress decompress MODEL -o OUT           floats again
    ov-compress completion bash|zsh|fish          a script that completes all of that in a shell

Results (tables, JSON, paths) go to standard output; progress, warnings and the line that says what it took to standard
error.


Exit codes: 0 done; 1 something failed while working; 2 the options or the input cannot be used.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from ov_weight_compression import __version__
from ov_weight_compression.cli.terminal import CommandParser, say

COMMANDS = {
    "compress": "compress a model's weights; the word may be left out",
    "plan": "what formats a size or a divergence would give the weights, and at what cost",
    "inspect": "what a model's weights are stored as, and what a device executes",
    "verify": "whether a device computes what a compressed model says",
    "compare": "what compression cost: two models on the same data",
    "decompress": "write a compressed model's weights as floats",
    "completion": "print a script that completes the command in a shell",
}
"""Each is a function `NAME_parser` of a module `NAME_command`, which is imported when that command is called."""
_BESIDE = {"plan": "compress", "verify": "inspect"}
"""Those that are in the module of another."""

_EXAMPLES = """examples:
  ov-compress model -o model-int4 --mode int4_sym --group-size 64
  ov-compress compare model model-int4 --html cost.html
  ov-compress inspect model-int4 --device CPU

ov-compress COMMAND --help explains a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "--version"):
        parser = _overview()
        parser.parse_args(words)
        parser.print_help(sys.stderr)
        return 2
    name = words.pop(0) if words[0] in COMMANDS else "compress"
    parsed = command_parser(name).parse_args(words)
    from ov_weight_compression.ir_utils.errors import CompressionError, CompressionWarning, MissingExtraError, WorkError

    try:
        with warnings.catch_warnings():
            if getattr(parsed, "quiet", False):
                warnings.simplefilter("always", CompressionWarning)
                warnings.showwarning = _show_warning
            else:  # the report that is printed has them
                warnings.simplefilter("ignore", CompressionWarning)
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
        return _fail(f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except Exception as error:
        if "OV_COMPRESS_TRACEBACK" in os.environ:
            raise
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        return _fail(f"a fault of this program ({reason}); OV_COMPRESS_TRACEBACK=1 shows where", 1)


def _fail(message: str, code: int) -> int:
    say(message)
    return code


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In place of `warnings.showwarning`, where no report is printed."""
    say(f"warning: {message}")


def command_parser(name: str) -> CommandParser:
    """The parser of one command."""
    parser: CommandParser = getattr(
        import_module(f"ov_weight_compression.cli.{_BESIDE.get(name, name)}_command"), f"{name}_parser"
    )()
    return parser


def _overview() -> CommandParser:
    """What is printed where no command is named; nothing is imported for it."""
    parser = CommandParser(
        prog="ov-compress",
        usage="ov-compress [COMMAND] MODEL [options]",
        description="Compress the weights of OpenVINO models. MODEL -o OUT alone compresses to int8_asym.",
        epilog="\n".join(["commands:", *(f"  {name:12}{said}" for name, said in COMMANDS.items()), "", _EXAMPLES]),
    )
    parser.add_argument("--version", action="version", version=f"ov-compress {__version__}", help="show the version")
    return parser
