"""Compresses the models of `benchmarks.awq_without_data` with one of the two tools, in its own interpreter.

    /rival/bin/python awq_worker.py nncf FOLDER

FOLDER has job.json, ``names`` of the models and ``groups``, and gets NAME.TOOL.GROUP.AWQ.xml for each.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import openvino as ov

TOOL, FOLDER = sys.argv[1], Path(sys.argv[2])

if TOOL == "nncf":
    import nncf  # type: ignore[import-not-found]

    nncf.set_log_level(logging.ERROR)
    tool: Any = nncf
else:
    from ov_weight_compression.passes import compat

    tool = compat

job = json.loads((FOLDER / "job.json").read_text())
core = ov.Core()
for name in job["names"]:
    for group in job["groups"]:
        for awq in (False, True):
            model = core.read_model(FOLDER / f"{name}.xml")
            model = tool.compress_weights(
                model,
                mode=tool.CompressWeightsMode.INT4_SYM,
                ratio=1,
                group_size=group,
                all_layers=True,
                awq=True if awq else None,
            )
            ov.save_model(model, FOLDER / f"{name}.{TOOL}.{group}.{int(awq)}.xml")
