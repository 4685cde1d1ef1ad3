"""Bytes against divergence: a budget's choice beside NNCF's ratio, and beside uniform formats of the same bytes.

    python -m benchmarks.budget --smollm PATH --peer-python PATH              # an hour or two; writes results/budget.*
    python -m benchmarks.budget --cases pylm --series default --peer-python PATH

The encoder (``--cases encoder``, see ``benchmarks.encoder``) is judged by relative L2 in place of KL, and at the bytes
of uniform int4_sym alone.

NNCF's curve is five ratios of int4_sym to int8 by its best metric on these models, ours are targets of as many bytes as
NNCF's models take. Beside it each preset is judged at the bytes of uniform int4_sym, and where it is asked for a
divergence. Text, windows and judge are those of ``benchmarks.accuracy``; every figure is remembered in ``--cache`` as
there. ``results/budget.json`` holds

    {"curves": [{"case": …, "tool": "nncf" | "own", "name": …, "points": [{"bytes": …, "kl": …, "error": …}]}],
     "uniform": [{"case": …, "name": …, "bytes": …, "kl": …, "beside": …, "ratio": …, "error": …}],
     "divergence": [{"case": …, "name": …, "asked": …, "bytes": …, "kl": …, "error": …}]}
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import accuracy_cases, divergence, encoder, jobs, machine, peers, places
from benchmarks.accuracy import Figures, reference_of, remembered
from benchmarks.accuracy_cases import Case
from benchmarks.tables import markdown

RATIOS = (1.0, 0.8, 0.6, 0.4, 0.2)
DIVERGENCES = (0.05, 0.02, 0.01)
METRIC = "mean_activation_variance"
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {"accuracy": "fast"},
    "best": {"accuracy": "best"},
}
"""The options of each line; all get the same text."""
ANY = {"max_slowdown": 1000.0}
"""Every format that the device runs from codes, however long it takes."""

READING = """Mean KL divergence from the original in nats on held-out text, less is better; 64 × 256 tokens of other
text for calibration, sizes are those of the .bin. Curves are NNCF's ratios of int4_sym to int8, and targets of as many
bytes. Beside them each preset at the bytes of uniform int4_sym (embedding and head in int8): uniform nf4, and targets
with the formats that are chosen from by default (`max_slowdown=1.25`) or with any that the device runs from codes. A
target of a divergence is measured by the package on calibration text, here on held-out text. Errors are standard errors
over windows, those of parts ("of int4_sym") of the two figures' differences window by window. The encoder's figures are
relative L2 errors of its outputs.
"""
RESULTS = places.ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Point:
    """One compressed model, judged."""

    bytes: int
    kl: float
    error: float
    each: tuple[float, ...] = ()
    """Of every window, where it was kept: KL, or squared relative L2."""


def measured(case: Case, tool: str, name: str, options: dict[str, Any], arguments: argparse.Namespace) -> Point | None:
    """A figure that is remembered, or made; None where the tool failed, or is not there."""
    key = f"{case.name}/budget/every {case.every}/{tool}/{name}"
    with remembered(arguments.cache) as figures:
        known: Figures = {} if tool == "own" and arguments.refresh else figures
        if key in known:
            figure = known[key]
            return Point(figure["bytes"], figure["kl"], figure["error"], tuple(figure.get("each", ())))
    if arguments.table_only or (tool == "nncf" and arguments.peer_python is None):
        return None
    data = {"path": str(case.calibration_text), "windows": case.calibration, "length": case.length}
    windows = divergence.windows_of(_tokens(case), case.length, case.every)
    reference = case.model if case.name == encoder.NAME else reference_of(case, arguments.cache, arguments.threads)
    measure = encoder.measure if case.name == encoder.NAME else divergence.measure
    with tempfile.TemporaryDirectory() as folder:
        if tool == "own" and arguments.statistics is not None:
            kept = arguments.statistics / case.name / str(options.get("accuracy", "default"))
            options = {**options, "statistics_path": str(kept)}
        job = jobs.Job(case.model, Path(folder, "openvino_model.xml"), options, data)
        done = jobs.perform(tool, job, arguments.peer_python, arguments.threads, timeout=arguments.timeout)
        if done.stages is None:
            print(f"{key}: failed: {done.failure}", flush=True)
            return None
        judged = measure(reference, job.output, windows, arguments.threads)
        point = Point(job.output.with_suffix(".bin").stat().st_size, judged.kl, judged.error, judged.each)
    print(f"{key}: {point.bytes} bytes, {point.kl:.5f} ± {point.error:.5f}", flush=True)
    with remembered(arguments.cache) as figures:
        figures[key] = asdict(point)
    return point


def _tokens(case: Case) -> Any:
    import numpy as np

    return np.load(case.eval_text)


def curves(case: Case, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """NNCF's curve, and ours at its sizes."""
    theirs = []
    for ratio in RATIOS:
        options = {"mode": "int4_sym", "group_size": case.group_size, "ratio": ratio}
        options |= {} if ratio == 1 else {"sensitivity_metric": METRIC}
        theirs.append(measured(case, "nncf", f"ratio {ratio:g}", options, arguments))
    yield _curve(case, "nncf", f"ratio by {METRIC}", theirs)
    sizes = [point.bytes for point in theirs if point is not None]
    for name in arguments.series.split(","):
        ours = [
            measured(case, "own", f"{name} {size}", {"target_size": size, **PRESETS[name]}, arguments) for size in sizes
        ]
        yield _curve(case, "own", name, ours)


def _curve(case: Case, tool: str, name: str, points: list[Point | None]) -> dict[str, Any]:
    found = [{"bytes": one.bytes, "kl": one.kl, "error": one.error} for one in points if one is not None]
    return {"case": case.name, "tool": tool, "name": name, "points": found}


def beside_uniform(case: Case, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each preset at the bytes of uniform int4_sym: with formats as fast, and with any."""
    for name in arguments.series.split(","):
        uniform = measured(
            case,
            "own",
            f"{name}, uniform int4_sym",
            {"mode": "int4_sym", "group_size": case.group_size, **PRESETS[name]},
            arguments,
        )
        if uniform is None:
            continue
        yield _beside(case, f"{name}, uniform int4_sym", uniform, uniform)
        others = {
            f"{name}, uniform nf4": {"mode": "nf4", "group_size": case.group_size, **PRESETS[name]},
            f"{name}, target, formats as fast": {"target_size": uniform.bytes, **PRESETS[name]},
            f"{name}, target, any format": {"target_size": uniform.bytes, **ANY, **PRESETS[name]},
        }
        for label, options in others.items():
            point = measured(case, "own", label, options, arguments)
            if point is not None:
                yield _beside(case, label, point, uniform)


def asked_for(case: Case, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each preset where it is asked for a divergence."""
    for name in arguments.series.split(","):
        for target in DIVERGENCES:
            label = f"{name}, {target:g} nats"
            point = measured(case, "own", label, {"target_divergence": target, **PRESETS[name]}, arguments)
            if point is not None:
                figures = {"bytes": point.bytes, "kl": point.kl, "error": point.error}
                yield {"case": case.name, "name": label, "asked": target, **figures}


def _beside(case: Case, name: str, point: Point, uniform: Point) -> dict[str, Any]:
    return {
        "case": case.name,
        "name": name,
        "bytes": point.bytes,
        "kl": point.kl,
        "beside": uniform.kl,
        "ratio": point.kl / uniform.kl,
        "error": _error_of_ratio(case, point, uniform),
    }


def _error_of_ratio(case: Case, point: Point, uniform: Point) -> float | None:
    """The standard error of a part of uniform's figure, both of the same windows; None where those were not kept."""
    import numpy as np

    own, other = np.asarray(point.each), np.asarray(uniform.each)
    if not own.size or own.shape != other.shape:
        return None
    ratio = own.mean() / other.mean()
    error = float(np.std(own - ratio * other) / np.sqrt(len(own)) / other.mean())
    return error / 2 / float(np.sqrt(ratio)) if case.name == encoder.NAME else error


def render(found: dict[str, Any], peer: dict[str, str] | None) -> str:
    """The tables."""
    text = ["# Budgets\n", READING]
    for case in dict.fromkeys(one["case"] for one in (*found["curves"], *found["uniform"], *found["divergence"])):
        text.append(f"## {case}\n")
        own = [one for one in found["curves"] if one["case"] == case]
        if own:
            rows = [
                (
                    f"{one['tool']}, {one['name']}",
                    f"{point['bytes'] / 1e6:.3f}",
                    f"{point['kl']:.5f}",
                    f"{point['error']:.5f}",
                )
                for one in own
                for point in one["points"]
            ]
            text.append(markdown(("curve", "MB", "KL", "± (windows)"), rows))
        rows = [
            (
                one["name"],
                f"{one['bytes'] / 1e6:.3f}",
                f"{one['kl']:.5f}",
                f"{one['ratio']:.3f}",
                "–" if one.get("error") is None else f"{one['error']:.3f}",
            )
            for one in found["uniform"]
            if one["case"] == case
        ]
        if rows:
            text.append(markdown(("at the bytes of int4_sym", "MB", "KL", "of int4_sym", "±"), rows))
        rows = [
            (
                one["name"],
                f"{one['bytes'] / 1e6:.3f}",
                f"{one['kl']:.5f}",
                f"{one['error']:.5f}",
                f"{one['kl'] / one['asked']:.2f}",
            )
            for one in found["divergence"]
            if one["case"] == case
        ]
        if rows:
            text.append(markdown(("asked for", "MB", "KL", "± (windows)", "of what was asked"), rows))
    return "\n".join([*text, machine.describe(peer), ""])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=places.SHARED)
    parser.add_argument("--smollm", type=Path, help="folder of SmolLM2-135M as an IR")
    parser.add_argument("--cases", default=",".join(accuracy_cases.NAMES))
    parser.add_argument("--series", default="default,fast,best", help="of the presets")
    parser.add_argument("--parts", default="uniform,curves,divergence")
    peers.add_option(parser)
    parser.add_argument("--cache", type=Path, default=places.CACHE / "accuracy.json")
    parser.add_argument("--refresh", action="store_true", help="forget what an older state of this package gave")
    parser.add_argument("--table-only", action="store_true", help="measure nothing, write what is remembered")
    parser.add_argument("--every", type=int, help="judge every so manieth window only; 12 windows show 5 %% or so")
    parser.add_argument("--statistics", type=Path, help="folder to keep what data showed in between the targets")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--output", type=Path, default=RESULTS / "budget.md")
    arguments = parser.parse_args()
    place = arguments.output.with_suffix(".json")
    found: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    found = {part: found.get(part, []) for part in ("curves", "uniform", "divergence")}
    wanted = accuracy_cases.cases(arguments.shared, arguments.smollm)
    if encoder.NAME in arguments.cases.split(",") and arguments.smollm is not None:
        found_encoder = encoder.case(arguments.shared, arguments.smollm, arguments.peer_python)
        wanted += [] if found_encoder is None else [found_encoder]
    for case in wanted:
        case = replace(case, every=arguments.every or case.every)
        if case.name not in arguments.cases.split(",") or case.missing():
            continue
        parts = "uniform" if case.name == encoder.NAME else arguments.parts
        made = {
            "uniform": list(beside_uniform(case, arguments)) if "uniform" in parts else [],
            "curves": list(curves(case, arguments)) if "curves" in parts else [],
            "divergence": list(asked_for(case, arguments)) if "divergence" in parts else [],
        }
        for part, new in made.items():
            names = {(one["case"], one["name"]) for one in new}
            found[part] = [one for one in found[part] if (one["case"], one["name"]) not in names] + new
        place.write_text(json.dumps(found, indent=1) + "\n")
        arguments.output.write_text(render(found, peers.versions(arguments.peer_python)))


if __name__ == "__main__":
    main()
