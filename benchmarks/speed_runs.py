"""Rounds of the speed benchmark: every contender once a round, one after the other, medians over the rounds."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import floor, jobs, limits, processes

STAGES = ("import", "read", "pass", "save", "total")


@dataclass(frozen=True)
class Contender:
    """A tool with its options; ``form`` is one of ``jobs.FORMS``."""

    name: str
    tool: str
    options: dict[str, Any]
    form: str = "library"


@dataclass(frozen=True)
class Row:
    """Medians of one contender: seconds by stage, peaks and size in bytes; ``totals`` of every round, in order.

    ``failure`` says why there are no figures, for instance that the process was killed under a memory limit."""

    contender: Contender
    stages: dict[str, float]
    anonymous: float
    resident: float
    size: float
    totals: tuple[float, ...]
    failure: str | None = None
    charged: int | None = None


@dataclass(frozen=True)
class Floor:
    """Medians of what the disk alone takes, in seconds: a copy of the source, and writing what was saved."""

    copy: float
    write: float


def rounds(
    source: Path, contenders: Sequence[Contender], count: int, work: Path, peer_python: str | None
) -> tuple[list[Row], Floor]:
    """Runs all contenders ``count`` times, in turn and from the other end every second round; then the floor."""
    done: dict[str, list[jobs.Done]] = {contender.name: [] for contender in contenders}
    copies: list[float] = []
    writes: list[float] = []
    floor.warm(source.with_suffix(".bin"))
    for number in range(count):
        for contender in contenders[:: -1 if number % 2 else 1]:
            floor.settle()
            done[contender.name].append(_once(source, contender, work, peer_python, None))
        size = max((run.output_bytes for run in done[contenders[0].name]), default=0)
        floor.settle()
        copies.append(floor.copy_seconds(source.with_suffix(".bin"), work))
        floor.settle()
        writes.append(floor.write_seconds(size, work))
    rows = [_row(contender, done[contender.name]) for contender in contenders]
    return rows, Floor(statistics.median(copies), statistics.median(writes))


def under_limit(source: Path, contender: Contender, size: int, work: Path, peer_python: str | None) -> Row | None:
    """One run inside a memory limit of ``size`` bytes; None where none can be set.

    The source's pages are dropped first: pages that another group read are not charged to this one.
    """
    floor.chill(source.with_suffix(".bin"))
    with limits.limited(size) as limit:
        if limit is None:
            return None
        row = _row(contender, [_once(source, contender, work, peer_python, limit)])
        return Row(**{**vars(row), "charged": limit.peak()})


def _once(
    source: Path, contender: Contender, work: Path, peer_python: str | None, limit: limits.Limit | None
) -> jobs.Done:
    """One run, its output measured and deleted."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        job = jobs.Job(source, Path(folder, "openvino_model.xml"), contender.options, form=contender.form)
        prefix, join = (limit.prefix, limit.join) if limit else ((), None)
        if contender.form != "command":
            return jobs.perform(contender.tool, job, peer_python, before=join, prefix=prefix)
        command = [*prefix, *command_line(job)]
        run = processes.run(command, Path(folder, "log"), before=join)
        return jobs.Done(run, {"total": run.seconds} if run.code == 0 else None, jobs.size_of(job.output))


def command_line(job: jobs.Job) -> list[str]:
    """``ov-compress`` as a user types it, with the options of the job."""
    words = [sys.executable, "-m", "ov_weight_compression.cli", str(job.source), "-o", str(job.output), "--quiet"]
    for name, value in job.options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _row(contender: Contender, done: Sequence[jobs.Done]) -> Row:
    """Medians over the rounds; one failed round fails the row."""
    failed = next((each for each in done if each.stages is None), None)
    if failed is not None:
        return Row(contender, {}, failed.run.anonymous, failed.run.resident, 0, (), failed.failure)
    stages = [each.stages or {} for each in done]
    return Row(
        contender,
        {name: statistics.median(each[name] for each in stages) for name in stages[0]},
        statistics.median(each.run.anonymous for each in done),
        statistics.median(each.run.resident for each in done),
        statistics.median(each.output_bytes for each in done),
        tuple(each.run.seconds for each in done),
    )
