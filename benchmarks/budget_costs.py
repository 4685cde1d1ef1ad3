"""How near targets of a size come on many models, and what probes take beside the algorithms that they serve.

    python -m benchmarks.budget_costs sizes                       # every IR of ../shared/zoo; two minutes
    python -m benchmarks.budget_costs probes --smollm PATH        # processor time, in turns; a quarter of an hour

Sizes: each model is asked for the middle between its smallest and its largest .bin, and written; the file's bytes are
compared with those asked for. Times are user and system time of this process: a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks import accuracy_cases, places
from benchmarks.tables import markdown
from ov_weight_compression import OptionError, WeightCompression, apply_weight_compression, report_of, save_model


def sizes(folder: Path) -> str:
    """A row for each IR in a folder of folders."""
    rows = []
    for file in sorted(folder.glob("*/*.xml")):
        row = [f"{file.parent.name}/{file.stem.removeprefix('openvino_')}"]
        started = time.process_time()
        try:
            rows.append([*row, *_size(file), f"{time.process_time() - started:.1f}"])
        except OptionError as error:
            rows.append([*row, "–", "–", "–", "–", str(error)[:60], "–"])
        print(rows[-1], flush=True)
    header = ("model", "asked for", "written", "less", "half a layer", "beside uniform", "s of processor time")
    return markdown(header, rows)


def _size(file: Path) -> list[str]:
    core = ov.Core()
    with tempfile.TemporaryDirectory() as place:
        given: dict[str, Any] = {"statistics_path": place, "quiet": True}
        planned = WeightCompression(target_bits=8.5, **given).preview(core.read_model(file)).budget
        assert planned is not None
        asked = (planned.curve[0].bytes + planned.curve[-1].bytes) // 2
        model = core.read_model(file)
        apply_weight_compression(model, target_size=asked, **given)
        report = report_of(model)
        assert report.budget is not None
        save_model(model, Path(place, "model.xml"))
        written = Path(place, "model.bin").stat().st_size
    half = min(row.elements for row in report.rows) / 2 / 2  # in 4 bits
    remark = " ".join(report.budget.remarks)
    kept = "–" if not remark else "choice kept" if "the choice was kept" in remark else "uniform kept"
    return [str(asked), str(written), str(asked - written), f"{half:.0f}", kept]


def probes(case: accuracy_cases.Case, rounds: int) -> str:
    """Processor time of the probes, and of whole runs, in turns."""
    tokens = np.load(case.calibration_text)
    data = tokens[: case.calibration * case.length].reshape(-1, case.length)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], Any]) -> None:
        started = time.process_time()
        run()
        seconds.setdefault(name, []).append(time.process_time() - started)
        print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)

    for _ in range(rounds):
        for accuracy in (None, "fast", "best"):
            given: dict[str, Any] = {"dataset": data, "quiet": True} | ({"accuracy": accuracy} if accuracy else {})
            target = WeightCompression(target_bits=5, **given)
            timed(f"probes, and what is chosen: {accuracy or 'default'}", lambda one=target: one.preview(_read(case)))
        timed("best, whole", lambda: _whole(case, mode="int4_sym", dataset=data, accuracy="best", quiet=True))
    return markdown(
        ("processor time", *["s"] * rounds), [(name, *(f"{one:.1f}" for one in each)) for name, each in seconds.items()]
    )


def _read(case: accuracy_cases.Case) -> ov.Model:
    return ov.Core().read_model(case.model)


def _whole(case: accuracy_cases.Case, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        save_model(apply_weight_compression(_read(case), **options), Path(place, "model.xml"))


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("sizes", "probes"))
    parser.add_argument("--shared", type=Path, default=places.SHARED)
    parser.add_argument("--smollm", type=Path, help="folder of SmolLM2-135M as an IR")
    parser.add_argument("--case", default="smollm", help="of the models of benchmarks.accuracy")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "sizes":
        print(sizes(arguments.shared / "zoo"))
        return
    found = [one for one in accuracy_cases.cases(arguments.shared, arguments.smollm) if one.name == arguments.case]
    if not found or found[0].missing():
        parser.error(f"{arguments.case} is not there")
    print(probes(found[0], arguments.rounds))


if __name__ == "__main__":
    main()
