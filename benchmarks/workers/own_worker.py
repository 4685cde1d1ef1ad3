"""Compresses one model with this package, as a user's script would: ``python own_worker.py JOB.json``.

The job is the one of ``nncf_worker.py``; ``data`` may also be the string ``"random"`` or ``"self"``, which goes to the
package as it is. What is timed is ``ov.save_model(apply_weight_compression(model, ...), output)``, or as ``form`` says
the package's own ``save_model`` (``"writer"``) or ``compile_model`` of the lazily compressed model (``"compiled"``).
"""

import json
import sys
import time
from typing import Any

stamps = {"started": time.time()}

import openvino as ov  # noqa: E402

stamps["openvino"] = time.time()

from ov_weight_compression.passes import apply_weight_compression  # noqa: E402

stamps["imported"] = time.time()


def windows_of(data: dict[str, Any]) -> list[Any]:
    """The first ``windows`` stretches of ``length`` tokens; the package makes the other inputs."""
    import numpy as np

    count, length = data["windows"], data["length"]
    tokens = np.load(data["path"])[: count * length].astype(np.int64).reshape(count, 1, length)
    return list(tokens)


def finish(form: str, model: ov.Model, output: str) -> None:
    if form == "compiled":
        ov.Core().compile_model(model, "CPU")
    elif form == "writer":
        from ov_weight_compression import save_model

        save_model(model, output)
    else:
        ov.save_model(model, output)


def main() -> None:
    with open(sys.argv[1]) as file:
        job = json.load(file)
    options = dict(job["options"])
    data = job.get("data")
    if data is not None:
        options["dataset"] = data if isinstance(data, str) else windows_of(data)
        if not isinstance(data, str):
            options["subset_size"] = data["windows"]
    model = ov.Core().read_model(job["source"])
    stamps["read"] = time.time()
    compressed = apply_weight_compression(model, **options)
    stamps["passed"] = time.time()
    finish(job.get("form", "library"), compressed, job["output"])
    stamps["saved"] = time.time()
    with open(job["answer"], "w") as file:
        json.dump({"stamps": stamps, "openvino": ov.__version__}, file)


main()
