"""`ov-compress completion bash|zsh|fish`: a script that completes commands, options, their choices and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from ov_weight_compression.cli.terminal import CommandParser

_INSTALL = """to use it:
  bash   eval "$(ov-compress completion bash)"       in ~/.bashrc
  zsh    eval "$(ov-compress completion zsh)"        in ~/.zshrc, after compinit
  fish   ov-compress completion fish > ~/.config/fish/completions/ov-compress.fish"""

_CHOICES = {"device": ("CPU", "GPU", "NPU"), "dtype": ("f16", "f32"), "data": ("random", "self")}
"""Of options that are in no table; what else they take is a file."""


def completion_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_completion`."""
    parser = CommandParser(
        prog="ov-compress completion",
        description="Print a script that completes commands, options and their choices in a shell.",
        epilog=_INSTALL,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")
    parser.set_defaults(run=run_completion)
    return parser


def run_completion(args: argparse.Namespace) -> int:
    """Print the script and return 0."""
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](list(_commands())))
    return 0


@dataclass(frozen=True)
class _Word:
    """An option of a command."""

    names: tuple[str, ...]
    said: str
    takes: bool
    """Whether a value follows."""
    choices: tuple[str, ...]
    repeated: bool


@dataclass(frozen=True)
class _Command:
    """A command and its options; `words` are what may stand in its first place, where that is no file."""

    name: str
    said: str
    options: tuple[_Word, ...]
    words: tuple[str, ...] = ()


def _commands() -> Iterator[_Command]:
    from ov_weight_compression.cli.command import COMMANDS, command_parser

    for name, said in COMMANDS.items():
        options, words = [], tuple[str, ...]()
        for action in command_parser(name).actions:
            if action.option_strings:
                options.append(_word(action))
            elif action.choices is not None:
                words = tuple(map(str, action.choices))
        yield _Command(name, said, tuple(options), words)


def _word(action: argparse.Action) -> _Word:
    from ov_weight_compression.passes.options import OPTIONS

    choices = OPTIONS[action.dest].kind.choices if action.dest in OPTIONS else ()
    said = " ".join((action.help or "").replace("%%", "%").split())
    return _Word(
        tuple(action.option_strings),
        said.split(":")[0].split(" (")[0].split(";")[0],
        action.nargs is None or action.nargs == "?",
        choices or _CHOICES.get(action.dest, ()),
        isinstance(action, argparse._AppendAction),
    )


def _bash(commands: list[_Command]) -> str:
    lines = ["# completion of ov-compress for bash", "_ov_compress() {"]
    lines.append(
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command=compress options='
    )
    lines.append(f'  case "${{COMP_WORDS[1]}}" in {"|".join(one.name for one in commands)})')
    lines.append('    [ "$COMP_CWORD" -gt 1 ] && command="${COMP_WORDS[1]}";; esac')
    lines.append('  case "$command $before" in')
    for one in commands:
        for option in one.options:
            if option.choices:
                patterns = "|".join(f'"{one.name} {name}"' for name in option.names)
                files = ' $(compgen -f -- "$word")' if option.names == ("--data",) else ""
                words = f'$(compgen -W "{" ".join(option.choices)}" -- "$word")'
                lines.append(f"    {patterns}) COMPREPLY=({words}{files}); return;;")
    lines += ["  esac", '  case "$command" in']
    for one in commands:
        every = " ".join(name for option in one.options for name in option.names)
        lines.append(f'    {one.name}) options="{every}";;')
    lines += ["  esac", '  case "$word" in -*) COMPREPLY=($(compgen -W "$options" -- "$word")); return;; esac']
    for one in commands:
        if one.words:
            words = f'$(compgen -W "{" ".join(one.words)}" -- "$word")'
            lines.append(f'  [ "$command" = {one.name} ] && {{ COMPREPLY=({words}); return; }}')
    lines.append('  COMPREPLY=($(compgen -f -- "$word"))')
    names = " ".join(one.name for one in commands)
    lines.append(f'  [ "$COMP_CWORD" -eq 1 ] && COMPREPLY+=($(compgen -W "{names}" -- "$word"))')
    return "\n".join([*lines, "}", "complete -o filenames -F _ov_compress ov-compress"])


def _zsh(commands: list[_Command]) -> str:
    lines = [
        "#compdef ov-compress",
        "_ov_compress() {",
        "  local command=compress",
        "  local -a names options",
        "  names=(",
    ]
    lines += [f"    {_quoted(one.name + ':' + one.said.replace(':', ' '))}" for one in commands]
    lines += ["  )", f"  if (( CURRENT > 2 )) && [[ $words[2] == ({'|'.join(one.name for one in commands)}) ]]; then"]
    lines += ["    command=$words[2]; shift words; (( CURRENT-- ))", "  fi", "  case $command in"]
    for one in commands:
        lines.append(f"    {one.name}) options=(")
        for option in one.options:
            lines += [f"      {_quoted(spec)}" for spec in _zsh_specs(option)]
        lines.append(f"      {_quoted('*:word:(' + ' '.join(one.words) + ')' if one.words else '*:file:_files')});;")
    lines += ["  esac", "  (( CURRENT == 2 )) && [[ $command == compress ]] && _describe command names"]
    return "\n".join([*lines, "  _arguments $options", "}", "compdef _ov_compress ov-compress"])


def _zsh_specs(option: _Word) -> Iterator[str]:
    said = option.said.replace("[", "(").replace("]", ")").replace(":", " ")
    several = "*" if option.repeated else ""
    value = ""
    if option.takes:
        value = (
            f":value:({' '.join(option.choices)})"
            if option.choices and "--data" not in option.names
            else ":file:_files"
        )
    for name in option.names:
        yield f"{several}{name}[{said}]{value}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish(commands: list[_Command]) -> str:
    lines = ["# completion of ov-compress for fish"]
    others = " ".join(one.name for one in commands if one.name != "compress")
    for one in commands:
        lines.append(f"complete -c ov-compress -n __fish_use_subcommand -a {one.name} -d {_quoted(one.said)}")
        when = (
            f"not __fish_seen_subcommand_from {others}"
            if one.name == "compress"
            else f"__fish_seen_subcommand_from {one.name}"
        )
        if one.words:
            lines.append(f"complete -c ov-compress -n {_quoted(when)} -f -a {_quoted(' '.join(one.words))}")
        for option in one.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = "" if not option.takes else " -x" if option.choices and "--data" not in option.names else " -r"
            value += f" -a {_quoted(' '.join(option.choices))}" if option.choices else ""
            lines.append(f"complete -c ov-compress -n {_quoted(when)} {names}{value} -d {_quoted(option.said)}")
    return "\n".join(lines)
