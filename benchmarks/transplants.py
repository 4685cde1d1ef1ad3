"""Another checkpoint's weights put into an IR: the outputs that exporting that checkpoint gives, or a refusal.

    python -m benchmarks.transplants [ARCHITECTURE …]      exit code 1 where outputs differ without an error

For each architecture two checkpoints with other random weights are exported by optimum-intel; the second one's weights
go into the first one's IR, as it is and stored in f16, and both models run on the same inputs. An exporter that
computes with weights leaves constants that are no tensor's: those models must be refused, and are counted as such. It
needs an interpreter that has torch, transformers and optimum-intel.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks.architectures import ARCHITECTURES, build, export_checkpoint
from ov_weight_compression.checkpoints import WeightsFromCheckpoint
from ov_weight_compression.ir_utils.errors import ModelError
from tests.running import inputs_for, run

TOLERANCE = {"f32": 1e-5, "f16": 1e-3}


def difference(one: ov.Model, other: ov.Model) -> float:
    """The largest difference of outputs over the largest output; NaN where one of them has NaN."""
    feed = inputs_for(one)
    pairs = zip(run(one, feed), run(other, feed), strict=True)
    return float(np.max([np.abs(a.astype(np.float32) - b).max() / max(1e-9, np.abs(b).max()) for a, b in pairs]))


def check(name: str, work: Path) -> list[str]:
    """A line for each model of an architecture and each way to store it; "WRONG" where outputs differ."""
    for which, variant in (("first", ""), ("second", " again")):
        checkpoint = build(name, "float32", work / which, variant)
        export_checkpoint(checkpoint, work / f"{which}-ir", ARCHITECTURES[name].task, tokenizer=False)
    lines = []
    for xml in sorted((work / "first-ir").glob("openvino_*model*.xml")):
        truth = ov.Core().read_model(work / "second-ir" / xml.name)
        for stored, tolerance in TOLERANCE.items():
            ov.save_model(ov.Core().read_model(xml), work / "stored.xml", compress_to_fp16=stored == "f16")
            model = ov.Core().read_model(work / "stored.xml")
            pass_ = WeightsFromCheckpoint(work / "second")
            try:
                pass_.run_on_model(model)
            except ModelError as error:
                lines.append(f"{xml.stem} {stored}: refused: {str(error)[-140:]}")
                continue
            assert pass_.report is not None
            far = difference(model, truth)
            rules = dict(Counter(row.rule for row in pass_.report.rows))
            lines.append(f"{xml.stem} {stored}: {'' if far <= tolerance else 'WRONG '}{far:.1e} {rules}")
    return lines


def main() -> int:
    """Print lines for each architecture; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help=", ".join(ARCHITECTURES))
    parser.add_argument("--work", type=Path, help="folder to work in")
    arguments: Any = parser.parse_args()
    bad = 0
    for name in arguments.architectures or ARCHITECTURES:
        begun, work = time.perf_counter(), Path(tempfile.mkdtemp(prefix="transplants-", dir=arguments.work))
        try:
            lines = check(name, work)
        except Exception as error:  # whatever a library raises for one of them, the others are looked at
            lines = [f"not looked at: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"]
        finally:
            shutil.rmtree(work, ignore_errors=True)
        bad += sum("WRONG" in line for line in lines)
        for line in lines:
            print(f"{name:14} {time.perf_counter() - begun:5.1f} s  {line}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
