"""Locks on folders (`flock`), which end with the process that has them: no file of their own, and never a stale one."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows: no locks, and nothing of others is removed
    _fcntl = None

__all__ = ["PATIENCE", "hold", "sync_folder", "turn"]

PATIENCE = 60.0
"""Seconds for the turn of others, which takes milliseconds."""


def hold(folder: Path, wait: bool = False) -> int | None:
    """The locked descriptor of a folder; None where it is another's, or there are no locks."""
    if _fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its owner has just removed it
        if wait:
            raise
        return None
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                _fcntl.flock(descriptor, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if not wait:
                    break
                if time.monotonic() > deadline:
                    raise OSError(errno.EBUSY, f"another process has been writing in {folder} for a minute") from None
                time.sleep(0.005)
            except OSError:  # a file system without locks
                break
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextlib.contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Alone among those that change names in a folder."""
    descriptor = hold(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            # Unlocked by name: a forked child that shares the descriptor would keep the lock.
            _fcntl.flock(descriptor, _fcntl.LOCK_UN)
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
