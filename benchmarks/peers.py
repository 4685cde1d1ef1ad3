"""Finding the rival: an interpreter of its own that has NNCF, since the project never depends on it."""

from __future__ import annotations

import argparse
import os
import subprocess

VARIABLE = "PEER_PYTHON"
ADVICE = (
    "NNCF is not measured: make an environment with it (pip install nncf==3.4.0 openvino==2026.4.1) and give its "
    f"interpreter as --peer-python PATH or in the environment variable {VARIABLE}"
)


def add_option(parser: argparse.ArgumentParser) -> None:
    """``--peer-python``, with the environment variable as its default."""
    parser.add_argument(
        "--peer-python",
        metavar="PATH",
        default=os.environ.get(VARIABLE),
        help=f"interpreter of an environment with NNCF (default: the variable {VARIABLE}); without it NNCF is left out",
    )


def versions(python: str | None) -> dict[str, str] | None:
    """Versions of ``nncf`` and ``openvino`` there; None where there is no such interpreter or no NNCF in it."""
    if python is None:
        return None
    script = "from importlib.metadata import version as v; print(v('nncf'), v('openvino'))"
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    nncf, openvino = done.stdout.split()
    return {"nncf": nncf, "openvino": openvino}
