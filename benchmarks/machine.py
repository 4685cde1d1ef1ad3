"""The machine in words, for results that are kept."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe(peer: dict[str, str] | None) -> str:
    """Cores, memory, system, versions of everything measured, date."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rival = f"NNCF {peer['nncf']} with OpenVINO {peer['openvino']}" if peer else "no NNCF"
    return (
        f"{cores} cores of {_processor()}, {memory / 1e9:.0f} GB of memory, {platform.system()} {platform.release()}; "
        f"Python {platform.python_version()}, OpenVINO {version('openvino')}, numpy {version('numpy')}; {rival}; "
        f"{datetime.date.today().isoformat()}."
    )


def _processor() -> str:
    """The model's name and the widest vectors it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    wide = next(
        (name for flag, name in (("amx_tile", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), ""
    )
    return f"{fields.get('model name', platform.machine())}{f' ({wide})' if wide else ''}"
