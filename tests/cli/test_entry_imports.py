"""What the command does not import, for every start pays for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import sys
from ov_weight_compression.entry import main
sys.argv = ["ov-compress", "nothing.xml", "-o", "out.xml"]
code = main()
own = ("evaluation", "checkpoints.opening")
unwanted = ("openvino_telemetry", *(f"ov_weight_compression.{name}" for name in own))
print(code, "openvino" in sys.modules, [name for name in unwanted if name in sys.modules])
"""


def test_what_pages_checkpoints_and_converters_need_stays_away(tmp_path: Path) -> None:
    environment = {**os.environ, "OV_COMPRESS_TRACEBACK": "1"}  # in this process, not in a child of it
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "2 True []"
    assert "nothing.xml" in done.stderr
