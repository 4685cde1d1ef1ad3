"""Where the benchmarks look and keep things, unless told otherwise."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"  # models/, texts/ and zoo/ of those who have them
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ov-weight-compression-benchmarks"
