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
from typing import NoReturn, TextIO

from ov_weight_compression import __version__

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
    _say(message)
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
    _say(f"warning: {message}")


def _say(message: str) -> None:
    from ov_weight_compression.ir_utils.errors import one_line

    print(f"ov-compress: {one_line(' '.join(message.split()), 800)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    from ov_weight_compression.cli.compare_command import add_compare_parser
    from ov_weight_compression.cli.compress_command import add_compress_parser
    from ov_weight_compression.cli.decompress_command import add_decompress_parser
    from ov_weight_compression.cli.inspect_command import add_inspect_parser
    from ov_weight_compression.cli.verify_command import add_verify_parser

    parser = _Parser(
        prog="ov-compress",
        description="Compress the weights of OpenVINO models. MODEL -o OUT alone compresses to int8_asym.",
    )
    parser.add_argument("--version", action="version", version=f"ov-compress {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    add_compress_parser(commands)
    add_inspect_parser(commands)
    add_verify_parser(commands)
    add_compare_parser(commands)
    add_decompress_parser(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """What cannot be understood is said in one line, however long the word was."""

    def error(self, message: str) -> NoReturn:
        from ov_weight_compression.ir_utils.errors import one_line

        self.exit(2, f"ov-compress: {one_line(message, 200)}; {self.prog} --help lists what there is\n")
