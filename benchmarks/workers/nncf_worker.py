"""Compresses one model with NNCF: a script for the rival's own interpreter, never imported by the project.

    /rival/bin/python nncf_worker.py JOB.json

The job: ``source`` and ``output`` (paths of .xml), ``options`` (``nncf.compress_weights``' by name and string value),
``data`` (null, or ``path`` of an .npy of token ids, ``windows`` and ``length``), ``answer`` (where the JSON with the
stamps of ``time.time()`` goes). The file stands alone, since nothing of the project is installed beside NNCF.
"""

import json
import sys
import time
from typing import Any

stamps = {"started": time.time()}

import numpy as np  # noqa: E402
import openvino as ov  # noqa: E402

stamps["openvino"] = time.time()

import nncf  # type: ignore[import-not-found]  # noqa: E402
from nncf.parameters import (  # type: ignore[import-not-found]  # noqa: E402
    BackupMode,
    CompressWeightsMode,
    SensitivityMetric,
)
from nncf.quantization.advanced_parameters import (  # type: ignore[import-not-found]  # noqa: E402
    AdvancedCompressionParameters,
    AdvancedGPTQParameters,
    GroupSizeFallbackMode,
)

stamps["imported"] = time.time()

FIXED_GROUP = ("mxfp4", "mxfp8_e4m3", "nvfp4")  # NNCF cannot adjust these; what does not fit stays float
SMALLEST_GROUP = 16  # the project's own limit for a group that is made to fit; NNCF's default is 32


def windows_of(data: dict[str, Any], model: ov.Model) -> list[dict[str, np.ndarray]]:
    """The first ``windows`` stretches of ``length`` tokens, as a causal language model takes them."""
    count, length = data["windows"], data["length"]
    tokens = np.load(data["path"])[: count * length].astype(np.int64).reshape(count, 1, length)
    names = {name for port in model.inputs for name in port.get_names()}
    fixed = {
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    fixed = {name: value for name, value in fixed.items() if name in names}
    return [{"input_ids": row, **fixed} for row in tokens]


def arguments(job: dict[str, Any], model: ov.Model) -> dict[str, Any]:
    """The job's options as NNCF's own objects; every sample of the data serves every algorithm."""
    options = dict(job["options"])
    options["mode"] = CompressWeightsMode(options["mode"])
    if "backup_mode" in options:
        options["backup_mode"] = BackupMode(options["backup_mode"])
    if "sensitivity_metric" in options:
        options["sensitivity_metric"] = SensitivityMetric(options["sensitivity_metric"])
    if not options["mode"].value.startswith("int8"):
        fixed = options["mode"].value in FIXED_GROUP
        advanced = AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.IGNORE if fixed else GroupSizeFallbackMode.ADJUST,
            min_adjusted_group_size=SMALLEST_GROUP,
        )
        if job.get("data"):
            options["subset_size"] = job["data"]["windows"]
            advanced.gptq_params = AdvancedGPTQParameters(subset_size=job["data"]["windows"])
            options["dataset"] = nncf.Dataset(windows_of(job["data"], model))
        options["advanced_parameters"] = advanced
    return options


def main() -> None:
    with open(sys.argv[1]) as file:
        job = json.load(file)
    model = ov.Core().read_model(job["source"])
    stamps["read"] = time.time()
    compressed = nncf.compress_weights(model, **arguments(job, model))
    stamps["passed"] = time.time()
    ov.save_model(compressed, job["output"])
    stamps["saved"] = time.time()
    answer = {"stamps": stamps, "version": nncf.__version__, "openvino": ov.__version__}
    with open(job["answer"], "w") as file:
        json.dump(answer, file)


main()
