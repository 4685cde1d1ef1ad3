"""Iterables that can be read any number of times, whatever they were made of: a generator gives its items only once."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class Replay:
    """The items of an iterator for as many readers as come: each is kept once it was read, and none is read early."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = iter(source)
        self._kept: list[Any] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            with self._lock:
                if number == len(self._kept):
                    try:
                        self._kept.append(next(self._source))
                    except StopIteration:
                        return
            yield self._kept[number]
            number += 1


def reads_once(source: Iterable[Any]) -> bool:
    """Whether a second reader would not find the first item again: a generator, a file, a loader that goes on."""
    if isinstance(source, Sequence) or hasattr(source, "__array__"):
        return False
    return isinstance(source, Iterator) or iter(source) is iter(source)


def read_again(source: Iterable[Any]) -> Iterable[Any]:
    """The source itself where it can be read again, else what keeps its items."""
    return Replay(source) if reads_once(source) else source
