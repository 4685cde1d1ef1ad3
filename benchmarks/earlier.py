"""The same jobs with an earlier state of the package: ``python -m benchmarks.earlier REVISION --cases plain,best``.

Says whether a change that should change nothing has cost time, memory or a byte. Each run is a process of its own, the
two states take turns, and the table has medians: seconds on the clock, of the processor, and peaks of memory that the
process allocated itself; ``same bytes`` says whether both files are the same in all runs.

``plain`` and ``search`` compress a Llama-shaped model of ``--size`` billion parameters that is built once in
``--models``, ``writer`` stands for the package's own ``save_model``; ``small`` has 1,000 weights of 64 x 64. ``fast``,
``gptq`` and ``best`` take a language model's folder (``--language-model``) and windows of ``--tokens``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import statistics
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import floor, jobs, llama_ir, machine, places, small_weights, tables

INT4: dict[str, Any] = {"mode": "int4_asym", "group_size": 128}
DATA: dict[str, Any] = {"mode": "int4_sym", "group_size": 64}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("library", {**INT4, "scale_search": "off"}),
    "search": ("library", INT4),
    "plain-writer": ("writer", {**INT4, "scale_search": "off"}),
    "search-writer": ("writer", INT4),
}
SMALL: dict[str, Any] = {"mode": "int4_sym", "group_size": 32, "all_layers": True}
WITH_DATA: dict[str, dict[str, Any]] = {
    "fast": {**DATA, "accuracy": "fast"},
    "gptq": {**DATA, "gptq": True},
    "best": {**DATA, "accuracy": "best"},
}
CASES = (*PLAIN, "small", *WITH_DATA)
WINDOW = 256


def unpack(revision: str, folder: Path) -> Path:
    """The repository as it was, as an importable package in ``folder``.

    Raises:
        SystemExit: git does not know the revision.
    """
    done = subprocess.run(["git", "archive", revision], cwd=places.ROOT, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{revision}: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder / "ov_weight_compression", filter="data")
    return folder


def job_of(case: str, arguments: argparse.Namespace, output: Path) -> jobs.Job:
    """What a case compresses, and how."""
    if case == "small":
        return jobs.Job(small_weights.build(1000, arguments.models / "small-1000"), output, SMALL, form="writer")
    if case in PLAIN:
        form, options = PLAIN[case]
        source = llama_ir.build(llama_ir.shape_of(arguments.size), arguments.models / f"llama-{arguments.size}")
        return jobs.Job(source, output, options, form=form)
    windows = arguments.tokens // WINDOW
    data = {"path": str(arguments.text), "windows": windows, "length": WINDOW}
    return jobs.Job(arguments.language_model / "openvino_model.xml", output, WITH_DATA[case], data, "writer")


def digest(output: Path) -> str:
    """Of both files together."""
    found = hashlib.sha256(output.read_bytes())
    with output.with_suffix(".bin").open("rb") as file:
        while block := file.read(1 << 24):
            found.update(block)
    return found.hexdigest()


def measure(case: str, packages: dict[str, Path], arguments: argparse.Namespace) -> list[list[str]]:
    """A row for each state of the package."""
    done: dict[str, list[jobs.Done]] = {name: [] for name in packages}
    digests = set()
    for number in range(arguments.runs):
        for name in list(packages)[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
                job = job_of(case, arguments, Path(folder, "openvino_model.xml"))
                floor.settle()
                done[name].append(jobs.perform("own", job, None, package=packages[name]))
                if done[name][-1].failure:
                    raise SystemExit(f"{case}, {name}: {done[name][-1].failure}")
                digests.add(digest(job.output))
    same = "yes" if len(digests) == 1 else "no"
    return [
        [
            f"{case}, {name}",
            tables.seconds(statistics.median(each.run.seconds for each in runs)),
            tables.seconds(statistics.median(each.run.processor for each in runs)),
            tables.megabytes(statistics.median(each.run.anonymous for each in runs)),
            same,
        ]
        for name, runs in done.items()
    ]


def main() -> None:
    """Print two rows for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the earlier state, as git names it")
    parser.add_argument("--cases", default="plain-writer,search-writer,small", help=", ".join(CASES))
    parser.add_argument("--runs", type=int, default=3, help="of each state")
    parser.add_argument("--size", default="1.2", help="billions of parameters of the Llama-shaped model")
    parser.add_argument("--models", type=Path, default=places.CACHE / "models", help="where models are built")
    parser.add_argument("--language-model", type=Path, default=places.ROOT / "samples" / "pylm")
    parser.add_argument("--text", type=Path, default=places.ROOT / "samples" / "python_tokens.npy", help="token ids")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--work", type=Path, default=places.CACHE, help="where output goes, and is deleted again")
    arguments = parser.parse_args()
    cases = arguments.cases.split(",")
    if unknown := [case for case in cases if case not in CASES]:
        parser.error(f"cases: {', '.join(unknown)}; there are {', '.join(CASES)}")
    arguments.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as earlier, tempfile.TemporaryDirectory() as now:
        Path(now, "ov_weight_compression").symlink_to(places.ROOT)
        packages = {arguments.revision: unpack(arguments.revision, Path(earlier)), "now": Path(now)}
        print(machine.describe(None))
        header = ["", "clock s", "processor s", "peak MB", "same bytes"]
        rows = [row for case in cases for row in measure(case, packages, arguments)]
        print(tables.markdown(header, rows))


if __name__ == "__main__":
    main()
