"""What a run took: time, and the memory that was its own."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ov_weight_compression.ir_utils.wording import human_bytes

_EVERY_SECONDS = 0.02
_STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Usage:
    """What a run took."""

    seconds: float
    peak_bytes: int | None
    """Memory of its own at its peak, without mapped files, which the system may drop at any time; the largest
    resident set where that is not told, None where nothing is."""

    def to_dict(self, read_bytes: int) -> dict[str, Any]:
        """As JSON; `read_bytes` are those of the weights that were compressed."""
        return {
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak_bytes,
            "bytes_per_second": round(read_bytes / self.seconds) if self.seconds else None,
        }

    def told(self, read_bytes: int) -> str:
        """In one line."""
        speed = f", {human_bytes(read_bytes / self.seconds)}/s of weights" if self.seconds and read_bytes else ""
        memory = "" if self.peak_bytes is None else f", {human_bytes(self.peak_bytes)} of memory at its peak"
        return f"{self.seconds:.1f} s{speed}{memory}"


class Watch:
    """Watches the process while the block runs; `usage` is there after it."""

    def __enter__(self) -> Watch:
        self._start, self._peak, self._over = time.monotonic(), 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.usage = Usage(time.monotonic() - self._start, self._peak or _largest_resident())

    def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        with suppress(OSError, ValueError, IndexError):  # where the system does not tell it
            while True:
                numbers = _STATM.read_text().split()
                self._peak = max(self._peak, (int(numbers[1]) - int(numbers[2])) * page)
                if self._over.wait(_EVERY_SECONDS):
                    return


def _largest_resident() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
