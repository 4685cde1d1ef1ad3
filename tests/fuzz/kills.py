"""Processes that are ended at random moments of a run: kill -9, Ctrl-C, SIGTERM.

    python -m tests.fuzz.kills --count 60 --seed 1

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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import openvino as ov

from tests.models import layers

__all__ = ["Kill", "campaign"]

_COMMAND = [sys.executable, "-m", "ov_weight_compression.cli"]
_SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Kill:
    """A run that ended wrongly."""

    seed: int
    signal: str
    after: float
    what: str


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


def one(seed: int) -> Kill | None:
    """One run that is ended."""
    dice = random.Random(seed)
    kind, there, number = dice.choice(["file", "folder"]), dice.random() < 0.7, _SIGNALS[seed % len(_SIGNALS)]
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
        _wait_for_handler(process)
        after = dice.uniform(0, seconds)
        time.sleep(after)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        wrong = _judge(place, before, new, number, process.returncode, said)
        if not wrong and number == signal.SIGKILL:
            subprocess.run(words(kind, place, "int4_sym"), check=True)
            if contents(place) != new or any(path.is_symlink() for path in place.rglob("*")):
                wrong = f"the next run left {sorted(contents(place))}"
        return Kill(seed, number.name, after, wrong) if wrong else None


def _judge(place: Path, before: Contents, new: Contents, number: signal.Signals, code: int, said: str) -> str:
    if number == signal.SIGKILL:
        found = visible(place)
        if not before and "o.xml" not in found and "out/openvino_model.xml" not in found:
            return ""
        return "" if found in (before, new) else f"neither the old nor the new is whole: {sorted(found)}"
    found = contents(place)
    if code not in (0, 128 + number) or "Traceback" in said or said.count("\n") > 1:
        return f"exit code {code}, and {said[-300:]!r}"
    if found != (new if code == 0 else before):
        return f"exit code {code}, and left behind are {sorted(found)}"
    return ""


def _wait_for_handler(process: subprocess.Popen[str]) -> None:
    """Until the interpreter itself is up: before that a signal is not the command's to handle."""
    status = Path(f"/proc/{process.pid}/status")
    while status.exists() and process.poll() is None:
        caught = next((line for line in status.read_text().splitlines() if line.startswith("SigCgt")), "SigCgt: 0")
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.002)


def campaign(seeds: Sequence[int]) -> list[Kill]:
    """One run for each seed; those that ended wrongly."""
    return [found for found in map(one, seeds) if found is not None]


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    found = campaign(range(parsed.seed, parsed.seed + parsed.count))
    for kill in found:
        print(kill)
    print(f"{parsed.count} runs ended, {len(found)} of them wrongly")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(_main())
