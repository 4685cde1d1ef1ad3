"""Accuracy beside NNCF: mean KL divergence from the original, same data, mode, group and layers.

    python -m benchmarks.accuracy --smollm PATH --peer-python PATH --output benchmarks/results/accuracy.md

Every variant is compressed in a process of its own, judged here (``divergence.py``) and remembered in ``--cache``, so a
long table can be made over several runs; ``--refresh own`` forgets what an older state of the package gave.
The first embedding and the last MatMul stay in the backup mode, int8, on both sides.
"""

from __future__ import annotations

import argparse
import fcntl
import fnmatch
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import accuracy_cases, accuracy_goals, accuracy_table, divergence, jobs, machine, peers, places
from benchmarks.accuracy_cases import Case, Variant

Figures = dict[str, dict[str, Any]]
READING = """
Mean KL divergence from the original in nats (f32 execution) on held-out text, less is better; 64 × 256 tokens of other
text for calibration; the first embedding and the last MatMul in int8. "NNCF's best" is the least of its awq,
scale_estimation, both, gptq, and gptq with scale_estimation. Seconds were taken at different hours, some on a busy
machine: they count where a goal names them.
"""


def key_of(case: Case, mode: str, variant: Variant) -> str:
    """What a figure is remembered under."""
    return f"{case.name}/{mode}/g{case.group_size}/{variant.tool}/{variant.name}"


@contextmanager
def remembered(cache: Path) -> Iterator[Figures]:
    """The cache's figures under a lock; what the block changed is written back, whole or not at all."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        figures: Figures = json.loads(cache.read_text()) if cache.exists() else {}
        before = json.dumps(figures, indent=1, sort_keys=True)
        yield figures
        after = json.dumps(figures, indent=1, sort_keys=True)
        if after != before:
            partial = cache.with_suffix(".partial")
            partial.write_text(after + "\n")
            os.replace(partial, cache)


def reference_of(case: Case, cache: Path, threads: int) -> Path:
    """The original's log-probabilities on the held-out windows, made when they are not there yet."""
    windows = divergence.windows_of(_tokens(case.eval_text), case.length, case.every)
    path = cache.with_suffix(".references") / f"{case.name}-{len(windows)}x{case.length}.npy"
    if not path.exists():
        divergence.save_reference(case.model, windows, path, threads)
    return path


def measure(case: Case, mode: str, variant: Variant, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compresses one model one way and judges it: the figures to remember, or ``{"failed": why}``."""
    data: Any = variant.data
    if variant.data == "text":
        data = {"path": str(case.calibration_text), "windows": case.calibration, "length": case.length}
    options = {"mode": mode, "group_size": case.group_size, **variant.options}
    reference = reference_of(case, arguments.cache, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        job = jobs.Job(case.model, Path(folder, "openvino_model.xml"), options, data)
        done = jobs.perform(variant.tool, job, arguments.peer_python, arguments.threads, timeout=arguments.timeout)
        if done.stages is None:
            return {"failed": done.failure}
        windows = divergence.windows_of(_tokens(case.eval_text), case.length, case.every)
        judged = divergence.measure(reference, job.output, windows, arguments.threads)
    return {
        **{name: figure for name, figure in asdict(judged).items() if name != "each"},
        "bytes": done.output_bytes,
        "seconds": round(done.stages["pass"] + done.stages["save"], 2),
        "processor": round(done.run.processor, 2),
        "anonymous": done.run.anonymous,
        "threads": arguments.threads,
    }


def _tokens(path: Path) -> Any:
    import numpy as np

    return np.load(path)


def run_all(arguments: argparse.Namespace, chosen: list[Case]) -> None:
    """Measures what is asked for and not remembered, one line each."""
    tools = set(arguments.tools.split(","))
    variants = [*accuracy_cases.NNCF_VARIANTS, *accuracy_cases.OWN_VARIANTS]
    patterns = arguments.variants.split(";")
    for case in chosen:
        for mode in arguments.modes.split(","):
            for variant in variants:
                if variant.tool not in tools or not any(fnmatch.fnmatchcase(variant.name, p) for p in patterns):
                    continue
                key = key_of(case, mode, variant)
                with remembered(arguments.cache) as figures:
                    known = figures.get(key)
                if known is not None and "failed" not in known and variant.tool != arguments.refresh:
                    continue
                result = measure(case, mode, variant, arguments)
                with remembered(arguments.cache) as figures:
                    figures[key] = result
                print(key, result.get("failed") or f"KL {result['kl']:.5f} in {result['seconds']:.1f} s", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    peers.add_option(parser)
    parser.add_argument("--shared", type=Path, default=places.SHARED, help="folder with models/ and texts/")
    parser.add_argument("--smollm", type=Path, help="folder with SmolLM2-135M's IR; without it, it is left out")
    parser.add_argument("--models", default=",".join(accuracy_cases.NAMES))
    parser.add_argument("--modes", default="int4_sym,int4_asym,int2_sym")
    parser.add_argument("--variants", default="*", help="wildcards on the variants' names, separated by semicolons")
    parser.add_argument("--tools", default="nncf,own")
    parser.add_argument("--refresh", choices=["own", "nncf"], help="measure this tool's variants again")
    parser.add_argument("--cache", type=Path, default=places.CACHE / "accuracy.json")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, help="seconds after which one compression is given up")
    parser.add_argument("--table-only", action="store_true", help="measure nothing, print what is remembered")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table, writes it."""
    arguments = parse(argv)
    wanted = arguments.models.split(",")
    unknown = set(wanted) - set(accuracy_cases.NAMES)
    if unknown:
        raise SystemExit(f"no such model: {', '.join(sorted(unknown))}; there are {', '.join(accuracy_cases.NAMES)}")
    chosen = [case for case in accuracy_cases.cases(arguments.shared, arguments.smollm) if case.name in wanted]
    for case in [case for case in chosen if case.missing()]:
        print(f"{case.name} is left out: {case.missing()} is not there")
        chosen.remove(case)
    if not arguments.table_only:
        if "nncf" in arguments.tools and peers.versions(arguments.peer_python) is None:
            print(peers.ADVICE)
            arguments.tools = arguments.tools.replace("nncf", "")
        run_all(arguments, chosen)
    with remembered(arguments.cache) as figures:
        text = accuracy_table.render(figures) + accuracy_goals.render(figures)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        peer = peers.versions(arguments.peer_python)
        arguments.output.write_text(f"{machine.describe(peer)}\n{READING}\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
