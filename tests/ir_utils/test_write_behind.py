"""What is written stays written, the cache does not fill up, and a slow disk is left alone."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ov_weight_compression.ir_utils.file_io import ForeignFiles, WriteBehind, reserve
from ov_weight_compression.ir_utils.worker_pool import FileSink

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, place, size, advice: made.append((place, size)))
    return made


def test_the_file_is_what_was_written(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, 5 << 20, dtype=np.uint8)
    with (tmp_path / "file").open("w+b") as file:
        os.ftruncate(file.fileno(), values.size + 7)
        sink = FileSink(file.fileno(), 7, WriteBehind(file.fileno(), 1 << 18))
        for start in range(0, values.size, 100_000):
            sink.write(start, values[start : start + 100_000])
    assert (np.fromfile(tmp_path / "file", np.uint8)[7:] == values).all()


def test_each_stretch_is_sent_at_once_and_given_back_later(calls: list[tuple[int, int]]) -> None:
    behind = WriteBehind(0, 3 << 20)
    for number in range(5):
        behind.note(number << 20, 1 << 20)
    sent = [(number << 20, 1 << 20) for number in range(5)]
    assert calls == [*sent[:4], sent[0], sent[4], sent[1]]


def test_small_things_do_not_matter(calls: list[tuple[int, int]]) -> None:
    WriteBehind(0).note(0, 100)
    assert calls == []


def test_a_slow_disk_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *call: (time.sleep(0.02), made.append(call)))
    behind = WriteBehind(0, slow=0.01)
    for number in range(5):
        behind.note(number << 20, 1 << 20)
    assert len(made) == 1


def test_a_large_stretch_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *call: (time.sleep(0.02), made.append(call)))
    behind = WriteBehind(0, slow=0.01)
    behind.note(0, 1 << 30)
    behind.note(1 << 30, 1 << 30)
    assert len(made) >= 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_what_somebody_else_adds_to_weights_is_sent(calls: list[tuple[int, int]], tmp_path: Path) -> None:
    files = ForeignFiles()
    with (tmp_path / "model.bin").open("wb") as weights, (tmp_path / "model.log").open("wb") as other:
        for file in (weights, other):
            file.write(bytes(1 << 20))
            file.flush()
        assert files.look()
        assert not files.look()
        weights.write(bytes(1 << 17))
        weights.flush()
        assert files.look()
    assert calls == [(0, 1 << 20), (1 << 20, 1 << 17)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_a_thread_looks_while_constants_are_handed_out(calls: list[tuple[int, int]], tmp_path: Path) -> None:
    def looking() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name == "ov-weight-compression" and one not in before]

    before = threading.enumerate()
    files = ForeignFiles(idle_looks=3)
    with (tmp_path / "model.bin").open("wb") as weights:
        weights.write(bytes(1 << 20))
        weights.flush()
        files.handed_out(1 << 20)
        assert not looking()
        files.handed_out(16 << 20)
        (thread,) = looking()
        thread.join(timeout=10)
    assert calls == [(0, 1 << 20)]
    assert not looking()


@pytest.mark.parametrize("refuses", [False, True])
def test_space_that_is_not_promised_is_told(refuses: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    if refuses:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    with (tmp_path / "file").open("wb") as file:
        assert reserve(file.fileno(), 1 << 20) is not refuses
        about = os.fstat(file.fileno())
    assert about.st_size == 1 << 20
    assert (about.st_blocks * 512 >= 1 << 20) is not refuses
