"""What all commands share: one screen of help, the rest behind --help-all, one line for a mistake, and where words
go: results to standard output or a file, everything else to standard error."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_WIDEST = 110
_COLUMN = 26
_LONGEST = 800


class CommandParser(argparse.ArgumentParser):
    """The parser of a command. Options of a `later_group` are listed by --help-all alone."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, "formatter_class": _Formatter, "add_help": False})
        self.later: list[argparse.Action] = []
        self.add_argument("-h", "--help", action=_Help, const=False, help="show this help and exit")

    @property
    def actions(self) -> list[argparse.Action]:
        """Every option and every word that it takes."""
        return list(self._actions)

    def later_group(self, title: str) -> LaterGroup:
        """A group of options that few people need."""
        if "--help-all" not in self._option_string_actions:
            self.add_argument("--help-all", action=_Help, const=True, help="list every option and exit")
        return LaterGroup(self, title)

    def help_text(self, everything: bool) -> str:
        """The help; of an option in a later group only if `everything` is wanted."""
        said = [action.help for action in self.later]
        try:
            for action in self.later:
                action.help = action.help if everything else argparse.SUPPRESS
            return self.format_help()
        finally:
            for action, own in zip(self.later, said, strict=True):
                action.help = own

    def error(self, message: str) -> NoReturn:
        """What cannot be understood is said in one line, however long the word was."""
        from ov_weight_compression.ir_utils.errors import one_line

        self.exit(2, f"ov-compress: {one_line(message, 200)}; {self.prog} --help lists what there is\n")


class LaterGroup:
    """A group of a `CommandParser` whose options only --help-all lists."""

    def __init__(self, parser: CommandParser, title: str) -> None:
        self._parser, self._group = parser, parser.add_argument_group(title)

    def add_argument(self, *words: str, **given: Any) -> argparse.Action:
        """As an argparse group has it."""
        action = self._group.add_argument(*words, **given)
        self._parser.later.append(action)
        return action


def add_json(group: Any, what: str) -> None:
    """The option that every command has: its result as JSON, in place of what it prints or in a file."""
    group.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help=f"write {what} as JSON; without FILE to standard output, in place of the tables",
    )


class _Help(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, const: bool, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, const=const, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, CommandParser)
        sys.stdout.write(parser.help_text(everything=bool(self.const)))
        parser.exit(0)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **given: Any) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDEST) - 2
        super().__init__(prog, **{**given, "max_help_position": _COLUMN, "width": width})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Examples keep their lines."""
        return text if "\n  " in text else super()._fill_text(text, width, indent)


@dataclass(frozen=True)
class JsonPlace:
    """Where a result goes as JSON: into files, to standard output, or nowhere."""

    files: tuple[Path, ...] = ()
    printed: bool = False
    """Whether standard output gets it, in place of what would be printed there."""

    def write(self, tell: Callable[[], dict[str, Any]]) -> None:
        """Write the result, where it is wanted; a file is there whole, or not at all."""
        if not self.files and not self.printed:
            return
        from ov_weight_compression.ir_utils.publish import write_text

        text = json.dumps(tell(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for path in self.files:
            write_text(path, text)
        if self.printed:
            sys.stdout.write(text)


def json_place(word: str | None, report: Path | None = None) -> JsonPlace:
    """What `--json [FILE]` means, and `--report FILE`.

    Raises:
        OptionError: nothing can be written there; asked before anything is computed.
    """
    from ov_weight_compression.ir_utils.publish import check_place

    asked = {"--report": report, "--json": None if word in (None, "-") else Path(word)}
    files = tuple(check_place(option, path) for option, path in asked.items() if path is not None)
    return JsonPlace(files, word == "-")


def of_models(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One object for what was found of one model, or of each of several: `{"models": […]}`."""
    return found[0] if len(found) == 1 else {"models": list(found)}


def say(message: str) -> None:
    """One line on standard error."""
    from ov_weight_compression.ir_utils.errors import one_line

    print(f"ov-compress: {one_line(' '.join(message.split()), _LONGEST)}", file=sys.stderr)
