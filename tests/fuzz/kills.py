"""Processes that are ended at random moments of a run: kill -9, Ctrl-C, SIGTERM.

After a signal that can be caught the place is as it was before, or the result is whole, and nothing else is there.
After kill -9 whoever reads the place, with whatever program, finds the old model or the new one; the next run to the
same place leaves its result and nothing else.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import openvino as ov

from tests.fuzz import campaign
from tests.fuzz.campaign import Failure
from tests.models import layers

_COMMAND = [sys.executable, "-m", "ov_weight_compression.cli"]
_SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


Contents = dict[str, bytes]


def contents(place: Path) -> Contents:
    """Everything in a folder, by name; links are followed as readers do."""
    return {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


def visible(place: Path) -> Contents:
    """What a reader of the plain names finds."""
    return {name: data for name, data in contents(place).items() if not name.startswith(".")}


@cache
def source() -> tempfile.TemporaryDirectory[str]:
    """A model that takes a while to compress, as a file and as a folder."""
    folder = tempfile.TemporaryDirectory()
    inside = Path(folder.name) / "in"
    inside.mkdir()
    ov.save_model(layers(16, 512), inside / "openvino_model.xml")
    (inside / "config.json").write_text("{}")
    return folder


def words(kind: str, place: Path, mode: str) -> list[str]:
    """The command line that writes one kind of output into `place`."""
    model = Path(source().name) / "in"
    given, written = (model, place / "out") if kind == "folder" else (model / "openvino_model.xml", place / "o.xml")
    return [*_COMMAND, str(given), "-o", str(written), "--mode", mode, "--quiet", "--force"]


@cache
def results(kind: str, mode: str) -> tuple[Contents, float]:
    """What an undisturbed run leaves, and the seconds that it takes."""
    with tempfile.TemporaryDirectory() as place:
        begun = time.monotonic()
        subprocess.run(words(kind, Path(place), mode), check=True)
        return contents(Path(place)), time.monotonic() - begun


def check_case(seed: int, case: int, told: Callable[[str], None] = lambda text: None) -> list[Failure]:
    """One run that is ended; `told` is given how."""
    dice = random.Random(f"{seed} {case}")
    kind, there, number = dice.choice(["file", "folder"]), dice.random() < 0.7, _SIGNALS[case % len(_SIGNALS)]
    old, _ = results(kind, "int8_sym")
    new, seconds = results(kind, "int4_sym")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if there:
            for path, data in old.items():
                (place / path).parent.mkdir(exist_ok=True)
                (place / path).write_bytes(data)
        before = contents(place)
        process = subprocess.Popen(words(kind, place, "int4_sym"), stderr=subprocess.PIPE, text=True)
        wait_for_handler(process)
        after = dice.uniform(0, seconds)
        told(f"a {kind} {'over an old one ' if there else ''}{number.name} after {after:.3f} s")
        time.sleep(after)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        wrong = _judge(place, before, new, number, process.returncode, said)
        if not wrong and number == signal.SIGKILL:
            subprocess.run(words(kind, place, "int4_sym"), check=True)
            if contents(place) != new or any(path.is_symlink() for path in place.rglob("*")):
                wrong = "the next run leaves more than its result", f"{sorted(contents(place))}"
        return [Failure(f"{number.name}: {wrong[0]}", f"{wrong[1]} ({kind}, after {after:.3f} s)")] if wrong else []


def _judge(
    place: Path, before: Contents, new: Contents, number: signal.Signals, code: int, said: str
) -> tuple[str, str] | None:
    """What is wrong, and its particulars."""
    if number == signal.SIGKILL:
        found = visible(place)
        if found in (before, new) or (not before and not {"o.xml", "out/openvino_model.xml"} & set(found)):
            return None
        return "neither the old nor the new is whole", f"{sorted(found)}"
    found = contents(place)
    if code not in (0, 128 + number) or "Traceback" in said or said.count("\n") > 1:
        return "another exit code, or more than a line", f"{code}, {said[-300:]!r}"
    if found != (new if code == 0 else before):
        return "something else is left", f"exit code {code}: {sorted(found)}"
    return None


def wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Until the interpreter itself is up: before that a signal is not the command's to handle."""
    status = Path(f"/proc/{process.pid}/status")
    while status.exists() and process.poll() is None:
        caught = next((line for line in status.read_text().splitlines() if line.startswith("SigCgt")), "SigCgt: 0")
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this campaign."""
    campaign.add_arguments(parser, cases=60)


def run(parsed: argparse.Namespace) -> int:
    """Run it; 1 where something was found."""

    def check(number: int, tell: Callable[[str], None]) -> tuple[list[Failure], list[str]]:
        return check_case(parsed.seed, number, tell), [_SIGNALS[number % len(_SIGNALS)].name]

    return campaign.run("kills", parsed, check, chunk=300)
