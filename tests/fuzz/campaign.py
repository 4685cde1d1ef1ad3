"""Many cases in child processes, a line of progress, and a summary by kind of failure.

A part of the campaign gives the command of a worker, which checks the cases `first` up to `stop` and prints a JSON line
when it starts one and when it has ended it. A worker that dies, or is silent for too long, has failed in the case that
it was at: that is recorded as a failure of its own kind, and the next worker goes on behind it. Where the part has a
way to check a case apart, in a process of its own, a case that a worker has died in is checked in that way.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ORIGINAL = "the original"
"""The stage of a case whose crash is not ours: OpenVINO runs the model that nothing was done to."""
_ROOT = Path(__file__).resolve().parents[2]
_SILENCE_SECONDS = 120.0
_PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class Failure:
    """What is wrong in one case: a kind, by which failures are counted, and this one's particulars."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass
class Campaign:
    """The cases `first` to `first + cases - 1` of a seed, in `workers` processes."""

    command: Callable[[int, int], Sequence[str]]
    """The command line of a worker for the cases `[first, stop)`."""
    first: int
    cases: int
    workers: int
    seconds: float = float("inf")
    """No case is begun after so long."""
    chunk: int = 50
    """How many cases a worker is started for."""
    apart: Callable[[int], Sequence[Failure]] | None = None
    """Checks a case in which a worker has died."""
    done: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    """What the cases said of themselves, counted: "ran", "refused" …"""
    failures: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """By kind: case and detail."""
    _end: float = float("inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> int:
        """Run everything and print the summary; 1 where there are failures."""
        chunks: queue.SimpleQueue[range] = queue.SimpleQueue()
        stop = self.first + self.cases
        for start in range(self.first, stop, self.chunk):
            chunks.put(range(start, min(start + self.chunk, stop)))
        began = time.monotonic()
        self._end = began + self.seconds
        threads = [threading.Thread(target=self._work, args=(chunks,), daemon=True) for _ in range(self.workers)]
        for thread in threads:
            thread.start()
        shown = began
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            if time.monotonic() - shown > _PROGRESS_SECONDS:
                shown = time.monotonic()
                print(self._progress(shown - began), file=sys.stderr, flush=True)
        print(self.summary(time.monotonic() - began))
        return 1 if self.failures else 0

    def _progress(self, seconds: float) -> str:
        found = sum(map(len, self.failures.values()))
        return f"{self.done} of {self.cases} cases, {seconds:.0f} s, {found} failures of {len(self.failures)} kinds"

    def summary(self, seconds: float) -> str:
        """Cases, what they were, and each kind of failure with the first cases that show it."""
        notes = ", ".join(f"{count} {note}" for note, count in sorted(self.notes.items()))
        lines = [f"{self.done} cases in {seconds:.0f} s ({notes})"]
        for kind, cases in sorted(self.failures.items(), key=lambda entry: -len(entry[1])):
            lines.append(f"{len(cases):6d}  {kind}")
            lines += [f"        case {number}: {detail}" for number, detail in sorted(cases)[:3]]
        lines.append(f"{sum(map(len, self.failures.values()))} failures of {len(self.failures)} kinds")
        return "\n".join(lines)

    def _work(self, chunks: queue.SimpleQueue[range]) -> None:
        while True:
            try:
                chunk = chunks.get_nowait()
            except queue.Empty:
                return
            while chunk and time.monotonic() < self._end:
                chunk = range(self._serve(chunk), chunk.stop)

    def _serve(self, chunk: range) -> int:
        """Let one worker do as much of a chunk as it gets to; the first case that is left."""
        process = subprocess.Popen(
            self.command(chunk.start, chunk.stop),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        tail: list[str] = []
        listener = threading.Thread(target=lambda: tail.extend(list(process.stderr or ())[-5:]), daemon=True)
        listener.start()
        left, silent, stage = chunk.start, False, ""

        def give_up() -> None:
            nonlocal silent
            silent = True
            process.kill()

        watch = threading.Timer(_SILENCE_SECONDS, give_up)
        watch.start()
        for line in process.stdout:
            watch.cancel()
            watch = threading.Timer(_SILENCE_SECONDS, give_up)
            watch.start()
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            stage = said.get("stage", "")
            if time.monotonic() > self._end and "failures" not in said:
                process.kill()
                break
            if "failures" in said:
                self._record(said["case"], [Failure(*one) for one in said["failures"]], said["notes"])
                left = said["case"] + 1
        watch.cancel()
        code = process.wait()
        listener.join(timeout=5)
        if time.monotonic() > self._end:
            return chunk.stop
        if left < chunk.stop and stage == ORIGINAL and not silent:
            self._record(left, [], ["the original ends the process"])
            left += 1
        elif left < chunk.stop and self.apart is not None and not silent:
            self._record(left, self.apart(left), [f"ends a process ({_ending(code)})"])
            left += 1
        elif left < chunk.stop:
            kind = "hangs" if silent else f"the process ended ({_ending(code)})"
            self._record(left, [Failure(kind, " ".join(tail)[-300:].strip())], [])
            left += 1
        return left

    def _record(self, case: int, failures: Sequence[Failure], notes: Sequence[str]) -> None:
        with self._lock:
            self.done += 1
            self.notes.update(notes)
            for one in failures:
                if one.kind not in self.failures:
                    print(f"new in case {case}: {one}", file=sys.stderr, flush=True)
                self.failures.setdefault(one.kind, []).append((case, one.detail))


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


Check = Callable[[int, Callable[[str], None]], tuple[Sequence[Failure], Sequence[str]]]
"""Given a case's number, and what it may tell its stage to: failures and notes."""


def run(
    part: str,
    parsed: argparse.Namespace,
    check: Check,
    chunk: int = 50,
    apart: Callable[[int], Sequence[Failure]] | None = None,
) -> int:
    """What the arguments of `add_arguments` ask for: a worker's share, one case in this process, or the campaign; 1
    where it found something."""
    if parsed.worker is not None:
        return _serve(range(parsed.first, parsed.worker), check)
    if parsed.case is not None:
        failures, notes = check(parsed.case, print if parsed.verbose else lambda stage: None)
        print(f"case {parsed.case}: {', '.join(notes)}", *failures, sep="\n")
        return 1 if failures else 0
    command = worker_command(part, parsed.seed)
    return Campaign(command, parsed.first, parsed.cases, parsed.workers, parsed.seconds, chunk, apart).run()


def _serve(cases: range, check: Check) -> int:
    """The worker's side: check cases one after the other."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    for number in cases:
        print(json.dumps({"case": number}), file=out, flush=True)

        def tell(stage: str, number: int = number) -> None:
            print(json.dumps({"case": number, "stage": stage}), file=out, flush=True)

        failures, notes = check(number, tell)
        said = {"case": number, "failures": [(one.kind, one.detail) for one in failures], "notes": list(notes)}
        print(json.dumps(said), file=out, flush=True)
    return 0


def add_arguments(command: argparse.ArgumentParser, cases: int) -> None:
    """The arguments that every campaign has; `cases` is the default of how many."""
    command.add_argument("--seed", type=int, default=0, help="of all cases (0)")
    command.add_argument("--cases", type=int, default=cases, metavar="N", help=f"how many ({cases})")
    command.add_argument("--first", type=int, default=0, metavar="N", help="the number of the first one (0)")
    command.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes")
    command.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="begin no case after so long")
    command.add_argument("--case", type=int, metavar="N", help="this one alone, in this process")
    command.add_argument("-v", "--verbose", action="store_true", help="with --case: say what it is made of")
    command.add_argument("--worker", type=int, metavar="STOP", help=argparse.SUPPRESS)


def worker_command(part: str, seed: int) -> Callable[[int, int], Sequence[str]]:
    """The command line of this package's workers."""

    def command(first: int, stop: int) -> Sequence[str]:
        numbers = ["--seed", str(seed), "--first", str(first), "--worker", str(stop)]
        return [sys.executable, "-m", "tests.fuzz", part, *numbers]

    return command
