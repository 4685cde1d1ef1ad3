"""In how many threads numpy multiplies matrices, where it has an OpenBLAS of its own (its wheels do).

Threads of OpenBLAS wait for work by spinning. Beside a thread that runs a model they take the processors from it, and
what they gain is less. There is no call of numpy's for this, so the library's own is called; any other BLAS stays as it
is: the same numbers, only later.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_FOLDERS = ("../numpy.libs", ".dylibs")  # beside the package numpy: Linux and Windows, macOS
_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads")

_lock = threading.Lock()
_before: list[int] = []
"""The number that was there, once for each block that runs."""


@contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """While the block runs, numpy's matrix products take at most so many threads, in the whole process. Blocks may run
    at the same time: the last one to end puts back what the first one found."""
    calls = _calls()
    if calls is None:
        yield
        return
    get, put = calls
    with _lock:
        found = int(get())
        _before.append(_before[0] if _before else found)
        put(min(count, found))
    try:
        yield
    finally:
        with _lock:
            found = _before.pop()
            if not _before:
                put(found)


@cache
def _calls() -> tuple[Any, Any] | None:
    """OpenBLAS's functions that tell and set the number of its threads."""
    for path in (file for folder in _FOLDERS for file in (Path(np.__file__).parent / folder).glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))  # loaded already: it is the same
        except OSError:
            continue
        for name in _NAMES:
            if hasattr(library, name.format("get")) and hasattr(library, name.format("set")):
                return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None
