"""Weight by weight beside NNCF: ``python -m benchmarks.weights --peer-python PATH [FOLDER]``.

Every model of a folder is compressed by both tools in every mode, without a search and without data. The decompression
chain in front of each consumer is evaluated in f32 and compared with the float weight. Where both tools chose the same
storage and group, this package's squared error may not be larger; where they chose differently, that is listed.
Exit code 1 when any error is larger.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import chains, jobs, machine, modes, peers, places, tables

TOLERANCE = 1 + 1e-6


@dataclass(frozen=True)
class Comparison:
    """One weight in one mode: what it was stored as and its relative error √(Σ(ŵ−w)²/Σw²), ours and theirs."""

    model: str
    mode: str
    weight: str
    ours: str
    theirs: str
    error: float
    rival: float

    @property
    def same(self) -> bool:
        """Whether both stored it alike."""
        return self.ours == self.theirs

    @property
    def worse(self) -> bool:
        """Whether this package's error is larger although the format is the same."""
        return self.same and not self.error**2 <= self.rival**2 * TOLERANCE  # a NaN is worse than anything


def compare(original: Path, ours: Path, theirs: Path, model: str, mode: str) -> Iterator[Comparison]:
    """Every weight that either tool compressed."""
    known = {"own": chains.weights_of(ours), "nncf": chains.weights_of(theirs)}
    for name, source in chains.weights_of(original).items():
        pair = [known["own"].get(name), known["nncf"].get(name)]
        stored = ["gone" if each is None else each.stored for each in pair]
        if all(text == source.stored for text in stored):
            continue
        value = source.multiplied()
        norm = float(np.sqrt(np.square(value, dtype=np.float64).sum())) or 1.0
        errors = [
            float("inf")
            if each is None
            else float(np.sqrt(np.square(each.multiplied() - value, dtype=np.float64).sum()))
            for each in pair
        ]
        yield Comparison(model, mode, name, stored[0], stored[1], errors[0] / norm, errors[1] / norm)


def run(models: list[tuple[str, Path]], arguments: argparse.Namespace) -> tuple[list[Comparison], list[str]]:
    """All models in all modes; beside the comparisons, the runs that failed."""
    found: list[Comparison] = []
    failures: list[str] = []
    for name, source in models:
        for mode in arguments.modes.split(","):
            with tempfile.TemporaryDirectory() as folder:
                options = modes.options(mode, arguments.group_size)
                outputs = {}
                for tool, extra in (("own", {} if mode in modes.INT8 else {"scale_search": "off"}), ("nncf", {})):
                    outputs[tool] = Path(folder, tool, "openvino_model.xml")
                    job = jobs.Job(source, outputs[tool], {**options, **extra})
                    failure = jobs.perform(tool, job, arguments.peer_python).failure
                    if failure is not None:
                        failures.append(f"{name}, {mode}, {tool}: {failure}")
                        print(failures[-1], flush=True)
                        outputs.pop(tool)
                if len(outputs) == 2:
                    found += compare(source, outputs["own"], outputs["nncf"], name, mode)
        print(f"{name}: {_summary([each for each in found if each.model == name])}", flush=True)
    return found, failures


def _summary(found: list[Comparison]) -> str:
    same = [each for each in found if each.same]
    ratios = [each.error / each.rival for each in same if each.rival > 0]
    middle = f", median ratio of errors {np.median(ratios):.4f}" if ratios else ""
    return (
        f"{len(found)} weights compared, {len(found) - len(same)} stored differently, "
        f"{sum(each.worse for each in found)} with a larger error{middle}"
    )


def report(found: list[Comparison], failures: list[str]) -> str:
    """The summary by mode, then the weights that are worse or stored differently, then what failed."""
    lines = []
    for mode in dict.fromkeys(each.mode for each in found):
        rows = [each for each in found if each.mode == mode]
        ratios = [each.error / each.rival for each in rows if each.same and each.rival > 0]
        middle, most = (f"{np.median(ratios):.4f}", f"{max(ratios):.6f}") if ratios else ("–", "–")
        different = sum(not each.same for each in rows)
        lines.append([mode, str(len(rows)), str(different), str(sum(each.worse for each in rows)), middle, most])
    header = ("mode", "weights", "stored differently", "larger error", "median ratio", "largest ratio")
    text = tables.markdown(header, lines)
    for title, chosen in (
        ("Larger error than NNCF's", [each for each in found if each.worse]),
        ("Stored differently", [each for each in found if not each.same]),
    ):
        if chosen:
            rows_text = [
                [f"{e.model}: {e.weight}", e.mode, e.ours, e.theirs, f"{e.error:.6f}", f"{e.rival:.6f}"] for e in chosen
            ]
            text += f"\n{title}:\n\n" + tables.markdown(
                ("weight", "mode", "this", "NNCF", "error", "NNCF's"), rows_text
            )
    if failures:
        text += "\nFailed:\n\n" + "".join(f"- {failure}\n" for failure in failures)
    return text


def models_in(folder: Path) -> list[tuple[str, Path]]:
    """Every IR with a .bin under a folder (or the one .xml given), tokenizers excepted, by its folder's name and, where
    that is not all, its own."""
    paths = [folder] if folder.suffix == ".xml" else sorted(folder.rglob("*.xml"))
    paths = [path.resolve() for path in paths if path.with_suffix(".bin").exists() and "tokenizer" not in path.name]
    named = [path.parent.name if path.stem == "openvino_model" else f"{path.parent.name}/{path.stem}" for path in paths]
    return list(zip(named, paths, strict=True))


def main(argv: list[str] | None = None) -> int:
    """Compares, prints, writes; 1 when a weight is worse than NNCF's or this package failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    peers.add_option(parser)
    parser.add_argument("folder", type=Path, nargs="?", default=places.SHARED / "zoo", help="folder or .xml")
    parser.add_argument("--modes", default=",".join(each for each in modes.ALL if each not in modes.NEEDS_DATA))
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--output", type=Path, help="Markdown file for the results")
    arguments = parser.parse_args(argv)
    peer = peers.versions(arguments.peer_python)
    models = models_in(arguments.folder)
    if peer is None or not models:
        print(f"{arguments.folder}: no IR there" if peer else peers.ADVICE)
        return 2
    found, failures = run(models, arguments)
    text = report(found, failures)
    print(text)
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(f"{machine.describe(peer)}\nGroup size {arguments.group_size}.\n\n{text}")
    return int(any(each.worse for each in found) or any(", own:" in failure for failure in failures))


if __name__ == "__main__":
    raise SystemExit(main())
