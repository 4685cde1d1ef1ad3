"""What this process is at, noted where the one that watches over it finds it should it crash (see `entry`).

Nothing is noted in a process that nobody watches over.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

NoteKind = Literal["reads", "writes", "made", "temporary", "done"]
"""A model that is read; an output that is about to be written; a folder that was made for it; a temporary folder; what
was asked for is done, and then with which exit code the process ends."""

_descriptor: int | None = None


@dataclass(frozen=True)
class Entry:
    """One note."""

    kind: str
    what: bytes


def keep_in(descriptor: int) -> None:
    """Note everything in this file from now on."""
    global _descriptor
    _descriptor = descriptor


def note(kind: NoteKind, what: str | os.PathLike[str]) -> None:
    """Add a note."""
    if _descriptor is not None:
        with suppress(OSError):
            os.write(_descriptor, kind.encode() + b"\0" + os.fsencode(what) + b"\0")


def read_journal(descriptor: int) -> list[Entry]:
    """Everything that has been noted."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    parts = os.pread(descriptor, size, 0).split(b"\0")
    return [Entry(kind.decode(), what) for kind, what in zip(parts[::2], parts[1::2], strict=False)]
