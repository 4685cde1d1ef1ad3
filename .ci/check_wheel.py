"""Check what a wheel of the package holds: every module of the rooms, the type marker, and nothing else."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("calibration", "checkpoints", "cli", "evaluation", "ir_utils", "passes", "patterns", "quantization")

expected = {f"ov_weight_compression/{name}" for name in ("__init__.py", "entry.py", "py.typed")}
modules = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
expected |= {f"ov_weight_compression/{path}" for path in modules}
with zipfile.ZipFile(sys.argv[1]) as wheel:
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
if found != expected:
    sys.exit(f"too much: {sorted(found - expected)}\ntoo little: {sorted(expected - found)}")
print(f"{Path(sys.argv[1]).name}: {len(found)} files, as they should be")
