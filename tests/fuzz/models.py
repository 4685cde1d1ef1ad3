"""Random models times random options, each checked for everything that is promised of a compressed model.

A case follows from the seed and its number alone: `python -m tests.fuzz models --seed 7 --case 123 -v` shows it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from tests.fuzz import campaign, oracle
from tests.fuzz.campaign import Failure
from tests.fuzz.graphs import Sketch, sketch
from tests.fuzz.settings import settings

_WITH_DATA = 0.08
_SHM = Path("/dev/shm")


def draw(seed: int, number: int, folder: Path) -> tuple[oracle.Case | None, Sketch | None, dict[str, Any]]:
    """The case of a number; no case where the drawn graph is none that OpenVINO takes."""
    random = np.random.default_rng([seed, number])
    try:
        model, drawn = sketch(random)
    except RuntimeError:  # shapes that do not go together: the generator draws some
        return None, None, {}
    kinds = ("Constant", "MatMul", "Gather", "Convolution", "GroupedMatMul")
    names = [str(node.get_friendly_name()) for node in model.get_ops() if node.get_type_name() in kinds]
    options = settings(random, names, random.random() < _WITH_DATA)
    feeds = [feed(random) for feed in drawn.feeds]
    if random.random() < 0.5:  # most models come from a file, and their constants lie in its mapping
        ov.serialize(model, folder / "source.xml")
        model = ov.Core().read_model(folder / "source.xml")
    model = model.clone()  # a clone's results have names that the drawn model's have not, when they are serialised
    samples = [
        {number: feed(random) for number, feed in enumerate(drawn.feeds)} for _ in range(options.get("dataset", 0))
    ]
    return oracle.Case(model, options, feeds, samples, folder, number), drawn, options


def check_case(
    seed: int, number: int, stage: Callable[[str], None] = lambda name: None
) -> tuple[Sequence[Failure], Sequence[str]]:
    """What is wrong with a case, and what sort of case it was; `stage` is told what may end the process."""
    with tempfile.TemporaryDirectory(dir=_SHM if _SHM.is_dir() else None) as folder:
        case, _, _ = draw(seed, number, Path(folder))
        if case is None:
            return [], ["no graph"]
        case.stage = stage
        return oracle.check(case), case.notes


def configure(command: argparse.ArgumentParser) -> None:
    """The arguments of this part."""
    campaign.add_arguments(command, cases=20_000)
    command.add_argument("--save", metavar="XML", help="with --case: write the float model there")


def run(parsed: argparse.Namespace) -> int:
    """One case, a worker's share, or the campaign."""
    if parsed.case is not None:
        return _one(parsed)
    return campaign.run("models", parsed, partial(check_case, parsed.seed))


def _one(parsed: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        case, drawn, options = draw(parsed.seed, parsed.case, Path(folder))
        if case is None or drawn is None:
            print("no graph")
            return 0
        if parsed.save:
            ov.serialize(case.model, parsed.save)
        if parsed.verbose:
            print("\n".join(drawn.lines))
            print(options)
            print(*case.model.get_ordered_ops(), sep="\n")
        failures = oracle.check(case)
        print(f"case {parsed.case}: {', '.join(case.notes)}")
        print(*failures, sep="\n")
    return 1 if failures else 0
