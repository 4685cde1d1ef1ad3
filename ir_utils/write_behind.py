"""A large file leaves memory while it is written, as its source does.

What is written lies in the page cache until the kernel gets round to it. Told at once, a fast disk keeps up, and pages
that have arrived there serve the next pieces: writing takes the memory of a few pieces, not of the file. Fresh pages
are dear where the memory of a virtual machine has to be asked for again: 1.2 GB took 2.8 s there, and 0.35 s this way.

Nobody waits for a slow disk: the first call that takes long is the last one, and the file stays in the cache.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque

__all__ = ["WriteBehind"]

_KEPT_BYTES = 64 << 20  # on their way; given back when so much has been written after them
_SMALL_BYTES = 1 << 16
_SLOW_SECONDS = 0.05


class WriteBehind:
    """What has been written of one open file, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._written: deque[tuple[int, int]] = deque()
        self._kept = 0
        self._lock = threading.Lock()
        self._active = hasattr(os, "posix_fadvise")

    def note(self, offset: int, size: int) -> None:
        """So many bytes have just been written."""
        if not self._active or size < _SMALL_BYTES:
            return
        ready = [(offset, size)]
        with self._lock:
            self._written.append((offset, size))
            self._kept += size
            while self._kept > _KEPT_BYTES:
                ready.append(self._written.popleft())
                self._kept -= ready[-1][1]
        begun = time.perf_counter()
        for place, length in ready:
            # Dirty pages are sent to the disk by this call, clean ones given back: each stretch gets it twice.
            os.posix_fadvise(self._descriptor, place, length, os.POSIX_FADV_DONTNEED)
        self._active = time.perf_counter() - begun < _SLOW_SECONDS
