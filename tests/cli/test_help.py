"""`--help` of every command: one screen, every choice and default; and what a shell completes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from ov_weight_compression.cli import main
from ov_weight_compression.cli.command import COMMANDS, command_parser
from ov_weight_compression.passes.option_values import Mode
from ov_weight_compression.passes.options import OPTIONS

_SCREEN = 50


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    return output


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, command, "--help")
    assert told.count("\n") <= _SCREEN, told
    assert max(map(len, told.splitlines())) <= 82, told


def test_all_of_it_names_every_option_with_its_choices_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    told = re.sub(r"\s+", " ", printed(capsys, "compress", "--help-all"))
    for name, option in OPTIONS.items():
        if option.flag is None:
            continue
        assert re.search(rf"--{name.replace('_', '-')}\b", told), name
        assert f"{option.help}" in told, name
        if option.kind.annotation == "bool":
            assert option.default is not None or option.usual, name
            continue
        choices = f": {', '.join(option.kind.choices)}" if option.kind.choices else ""
        usual = option.usual or getattr(option.default, "value", option.default)
        assert usual not in ("", None, ()), f"{name}: what its default means is not said"
        assert f"{option.help}{choices} (default: {usual})" in told, name


def test_what_most_need_comes_first_and_the_rest_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    first, everything = (printed(capsys, "compress", word) for word in ("--help", "--help-all"))
    for word in ("--mode", "--group-size", "--ratio", "--rule", "--ignore", "--data", "--accuracy", "--dry-run"):
        assert word in first, word
    for word in ("--codebook-type", "--min-adjusted-group-size", "--lora-rank", "--task"):
        assert word not in first, word
        assert word in everything, word
    assert "--help-all" in first
    assert f"are stored: {', '.join(mode.value for mode in Mode)} (default" in re.sub(r"\s+", " ", first)


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(capsys, "--help")
    for name, said in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(said)}$", told, re.MULTILINE), name
    assert printed(capsys, "--version").startswith("ov-compress ")
    assert main([]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == told


def test_the_overview_imports_nothing() -> None:
    code = (
        "import sys\nfrom ov_weight_compression.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('numpy', 'openvino', 'rich') if name in sys.modules], file=sys.stderr)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr == "[]\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json(command: str) -> None:
    words = {word for action in command_parser(command).actions for word in action.option_strings}
    assert ("--json" in words) == (command != "completion")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        (["ins"], ["inspect"]),
        (["compress", "m.xml", "--mode", "mx"], ["mxfp4", "mxfp8_e4m3"]),
        (["m.xml", "--accuracy", ""], ["balanced", "best", "fast"]),
        (["m.xml", "--group-size-f"], ["--group-size-fallback"]),
        (["compare", "a", "b", "--no-"], ["--no-layers", "--no-score-last"]),
        (["completion", "f"], ["fish"]),
    ],
)
def test_bash_completes(line: list[str], found: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    words = " ".join(f"'{word}'" for word in ["ov-compress", *line])
    script = capsys.readouterr().out + f"\nCOMP_WORDS=({words}); COMP_CWORD={len(line)}\n_ov_compress\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert sorted(done.stdout.split()) == found
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_every_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for command in COMMANDS:
        for action in command_parser(command).actions:
            for word in action.option_strings:
                name = word.lstrip("-")
                assert f"{word}[" in script if shell == "zsh" else re.search(rf"-[ls] {name}\b", script), (
                    command,
                    word,
                )
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
