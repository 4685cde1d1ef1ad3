"""Places that stop taking what is written at a random moment of a run: a full disk, a folder that goes away.

Whatever happens, the place is as it was (or as the one who meddled left it) or the result is whole, nothing else is
there, and the run ends with exit code 0 or with one line of error and 1, or 2 where it had not begun.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import campaign
from tests.fuzz.campaign import Failure
from tests.fuzz.kills import Contents, contents, results, visible, wait_for_handler, words

_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10  # of <linux/fs.h>
_LONGEST = 1000
HAZARDS = ("limit", "small disk", "removed", "renamed", "read-only", "a folder in its place", "another's file")
"""A limit on the size of files; a file system of its own that is too small; what happens to the folder that is written
to; what somebody else puts at the output meanwhile."""


def check_case(seed: int, case: int, told: Callable[[str], None] = lambda text: None) -> list[Failure]:
    """One run into a place that does not hold; `told` is given how."""
    dice = random.Random(f"{seed} {case}")
    hazard, kind, there = HAZARDS[case % len(HAZARDS)], dice.choice(["file", "folder"]), dice.random() < 0.7
    old, _ = results(kind, "int8_sym")
    new, seconds = results(kind, "int4_sym")
    after = dice.uniform(0, seconds) if dice.random() < 0.4 else dice.uniform(0.7 * seconds, seconds)
    with tempfile.TemporaryDirectory() as name:
        outer = Path(name)
        outer.chmod(0o755)
        place = outer / "place"
        place.mkdir()
        share = dice.uniform(0, 1.2)
        mounted = hazard == "small disk" and _mount(place, old if there else {}, new, share)
        try:
            return _run(place, hazard, kind, old if there else {}, new, after, share, told)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(place)], check=True)


def _run(
    place: Path,
    hazard: str,
    kind: str,
    old: Contents,
    new: Contents,
    after: float,
    share: float,
    told: Callable[[str], None],
) -> list[Failure]:
    for path, data in old.items():
        (place / path).parent.mkdir(exist_ok=True)
        (place / path).write_bytes(data)
    before = contents(place)
    told(f"{hazard}: a {kind} {'over an old one ' if old else ''}after {after:.3f} s, {share:.2f} of what is needed")

    def prepare() -> None:
        if hazard == "limit":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            size = int(share * max(map(len, new.values())))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    process = subprocess.Popen(
        words(kind, place, "int4_sym"), stderr=subprocess.PIPE, text=True, preexec_fn=prepare, cwd="/"
    )
    found = place
    meddled: Contents = {}
    if hazard not in ("limit", "small disk"):
        wait_for_handler(process)
        time.sleep(after)
        found, meddled = _meddle(place, hazard, kind, new)
    _, said = process.communicate(timeout=120)
    if hazard == "read-only":  # nothing could be removed: a reader finds what was there, and the next run clears up
        _freeze(place, False)
        wrong = _judge(hazard, visible(place), before, new, meddled, process.returncode, said)
        subprocess.run(words(kind, place, "int4_sym"), check=True)
        if not wrong and contents(place) != new:
            wrong = "the next run leaves more than its result", f"{sorted(contents(place))}"
    else:
        wrong = _judge(hazard, contents(found), before, new, meddled, process.returncode, said)
    detail = f"({hazard}, {kind}, {'over an old one, ' if old else ''}{after:.3f} s, {share:.2f})"
    return [Failure(f"{hazard}: {wrong[0]}", f"{wrong[1]} {detail}")] if wrong else []


def _mount(place: Path, old: Contents, new: Contents, share: float) -> bool:
    """Make the place a file system that holds the old output and a share of what a run writes; whether that is allowed
    here."""
    page = 4096
    needed = [sum(len(data) // page * page + 4 * page for data in each.values()) for each in (old, new)]
    size = needed[0] + int(share * needed[1]) + 16 * page
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def _meddle(place: Path, hazard: str, kind: str, new: Contents) -> tuple[Path, Contents]:
    """Do it; where the place is to be looked for, and what was put there."""
    target = place / ("o.xml" if kind == "file" else "out")
    if hazard == "removed":
        shutil.rmtree(place, ignore_errors=True)
    elif hazard == "renamed":
        place.rename(place.with_name("elsewhere"))
        return place.with_name("elsewhere"), {}
    elif hazard == "read-only":
        _freeze(place, True)
    elif hazard == "a folder in its place" and kind == "file":
        target.unlink(missing_ok=True)
        target.mkdir(exist_ok=True)
        (target / "mine").write_text("mine")
        return place, {"o.xml/mine": b"mine"}
    else:
        name = "o.txt" if kind == "file" else "out.txt"
        (place / name).write_text("mine")
        return place, {name: b"mine"}
    return place, {}


def _freeze(place: Path, frozen: bool) -> None:
    """Nothing can be made, renamed or removed in a folder, or it can again; the superuser needs more than its mode."""
    if frozen:
        place.chmod(0o555)
    if os.geteuid() == 0:
        descriptor = os.open(place, os.O_RDONLY)
        with contextlib.suppress(OSError):  # not every file system has it
            flags = bytearray(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)))
            flags[0] = flags[0] | _IMMUTABLE if frozen else flags[0] & ~_IMMUTABLE
            fcntl.ioctl(descriptor, _SET_FLAGS, bytes(flags))
        os.close(descriptor)
    if not frozen:
        place.chmod(0o755)


def _judge(
    hazard: str, found: Contents, before: Contents, new: Contents, meddled: Contents, code: int, said: str
) -> tuple[str, str] | None:
    """What is wrong, and its particulars."""
    if code not in (0, 1, 2) or said.count("\n") != (code != 0) or len(said) > _LONGEST:
        return "another exit code, or not one line", f"{code}, {said[-300:]!r}"
    rest = {name: data for name, data in found.items() if name not in meddled}
    if any(found.get(name) != data for name, data in meddled.items()):
        return "what somebody else wrote is gone", f"exit code {code}: {sorted(found)}"
    allowed = [new] if code == 0 else [before]
    if hazard == "removed":  # before or after, the files or their names
        allowed = [{}, new] if code == 0 else [{}]
    elif hazard == "renamed":
        allowed = [before, new, {}] if code == 0 else [before]
    elif hazard == "a folder in its place" and "o.xml/mine" in meddled:
        allowed = [{name: data for name, data in one.items() if name != "o.xml"} for one in (before, new)]
    if rest not in allowed:
        return "something else is left", f"exit code {code}: {sorted(found)}, {said[-300:]!r}"
    return None


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this campaign."""
    campaign.add_arguments(parser, cases=70)


def run(parsed: argparse.Namespace) -> int:
    """Run it; 1 where something was found."""

    def check(number: int, tell: Callable[[str], None]) -> tuple[list[Failure], list[str]]:
        return check_case(parsed.seed, number, tell), [HAZARDS[number % len(HAZARDS)]]

    return campaign.run("places", parsed, check, chunk=300)
