"""What is written takes its place whole, wherever the process ends: stepped through at each change of a name."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.publish import Publication, discard_open, mend, write_text

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def pair(folder: Path, content: str) -> None:
    """Publish a model's two files."""
    with Publication(folder / "m.xml", ["m.bin"]) as written:
        written.write_text(f"{content}.xml")
        written.with_suffix(".bin").write_text(f"{content}.bin")


def tree(folder: Path, content: str) -> None:
    """Publish a folder."""
    with Publication(folder / "out") as written:
        (written / "sub").mkdir(parents=True)
        (written / "m.xml").write_text(f"{content}.xml")
        (written / "sub" / "m.bin").write_text(f"{content}.bin")


def one(folder: Path, content: str) -> None:
    """Publish one file."""
    write_text(folder / "report.json", content)


def read_pair(folder: Path) -> str:
    """Whose model lies at the plain path; fails for a mixture."""
    read = [(folder / name).read_text() for name in ("m.xml", "m.bin")]
    assert read[0][:3] == read[1][:3], read
    assert not (folder / "m.xml").exists() or read[0].endswith(".xml")
    return read[0][:3]


def read_tree(folder: Path) -> str:
    read = [(folder / "out" / name).read_text() for name in ("m.xml", "sub/m.bin")]
    assert read[0][:3] == read[1][:3], read
    return read[0][:3]


def read_one(folder: Path) -> str:
    return (folder / "report.json").read_text()


KINDS = {"pair": (pair, read_pair), "tree": (tree, read_tree), "one": (one, read_one)}


def ends_at(step: int, signal_: signal.Signals, work: Callable[[], None]) -> bool:
    """Do `work` in a child that gets a signal at its n-th change of a name; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = step

        def hook(event: str, _: object) -> None:
            nonlocal left
            if event in CHANGES:
                left -= 1
                if left == 0:
                    if signal_ == signal.SIGINT:
                        raise KeyboardInterrupt
                    os.kill(os.getpid(), signal_)

        code = 3
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 4
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal_
        return True
    assert os.WEXITSTATUS(status) in (0, 4)
    return os.WEXITSTATUS(status) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("there", [True, False])
def test_killed_at_any_step(kind: str, there: bool, tmp_path: Path) -> None:
    """The plain path is whole at every step, and the next write leaves nothing but itself."""
    write, read = KINDS[kind]
    seen, names = [], []
    for step in range(1, 99):
        folder = tmp_path / str(step)
        folder.mkdir()
        if there:
            write(folder, "old")
        if not ends_at(step, signal.SIGKILL, lambda folder=folder: write(folder, "new")):  # type: ignore[misc]
            break
        try:
            seen.append(read(folder))
        except FileNotFoundError:
            assert not there
            assert not (folder / "m.xml").exists()
            seen.append("none")
        write(folder, "two")
        assert read(folder) == "two"
        names = sorted(os.listdir(folder))
        assert names == {"pair": ["m.bin", "m.xml"], "tree": ["out"], "one": ["report.json"]}[kind]
        assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert step > (15 if kind == "pair" and there else 5)
    assert sorted(set(seen)) == (["new", "old"] if there else ["new", "none"])
    assert seen == sorted(seen, key=["old", "none", "new"].index)


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_at_any_step(kind: str, tmp_path: Path) -> None:
    """An exception at any step leaves the old or the new, and nothing beside it at once."""
    write, read = KINDS[kind]
    for step in range(1, 99):
        folder = tmp_path / str(step)
        folder.mkdir()
        write(folder, "old")
        before = sorted(os.listdir(folder))
        if not ends_at(step, signal.SIGINT, lambda folder=folder: write(folder, "new")):  # type: ignore[misc]
            break
        assert read(folder) in ("old", "new")
        left = [name for name in os.listdir(folder) if name not in before]
        # While it is being removed the hidden folder itself may be what the exception came at.
        assert not left or read(folder) == "new" or not any((folder / left[0]).iterdir())
        assert not any(path.is_symlink() for path in folder.iterdir())
        write(folder, "two")
        assert sorted(os.listdir(folder)) == before
    assert step > 5


def test_where_there_are_no_links_nothing_is_mixed_and_the_next_one_mends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    seen = []
    for step in range(1, 99):
        folder = tmp_path / str(step)
        folder.mkdir()
        pair(folder, "old")
        if not ends_at(step, signal.SIGKILL, lambda folder=folder: pair(folder, "new")):  # type: ignore[misc]
            break
        seen.append(read_pair(folder) if (folder / "m.xml").exists() else "none")
        mend(folder / "m.xml")
        assert read_pair(folder) in (("old", "new") if seen[-1] == "old" else ("new",))
        assert sorted(os.listdir(folder)) == ["m.bin", "m.xml"]
    assert set(seen) == {"old", "none", "new"}


def test_where_there_are_no_links_a_save_that_failed_is_not_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    pair(tmp_path, "old")
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", refuse)
        unlink = Path.unlink
        patched.setattr(
            Path, "unlink", lambda path, **how: refuse() if path == tmp_path / "m.xml" else unlink(path, **how)
        )
        with pytest.raises(PermissionError):
            pair(tmp_path, "new")
    mend(tmp_path / "m.xml")
    assert read_pair(tmp_path) == "old"


def test_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # a C library without renameat2
    seen = []
    for step in range(1, 99):
        folder = tmp_path / str(step)
        folder.mkdir()
        tree(folder, "old")
        if not ends_at(step, signal.SIGKILL, lambda folder=folder: tree(folder, "new")):  # type: ignore[misc]
            break
        seen.append(read_tree(folder) if (folder / "out").exists() else "none")
        mend(folder / "out")
        assert read_tree(folder) in ("old", "new")
        assert os.listdir(folder) == ["out"]
    assert set(seen) == {"old", "none", "new"}


@pytest.mark.parametrize("kind", KINDS)
def test_many_at_once(kind: str, tmp_path: Path) -> None:
    """Threads and processes that write to one place: it ends whole, and is left clean."""
    write, read = KINDS[kind]
    write(tmp_path, "old")
    names = sorted(os.listdir(tmp_path))
    failed: list[BaseException] = []

    def often(content: str) -> None:
        try:
            for _ in range(10):
                write(tmp_path, content)
        except BaseException as error:
            failed.append(error)

    children = []
    for content in ("one", "two"):
        child = os.fork()
        if child == 0:
            often(content)
            os._exit(len(failed))
        children.append(child)
    threads = [threading.Thread(target=often, args=(content,)) for content in ("thr", "fou", "fiv")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert failed == []
    assert read(tmp_path) in ("one", "two", "thr", "fou", "fiv")
    assert sorted(os.listdir(tmp_path)) == names


def test_folders_that_were_made_for_it_go_with_it(tmp_path: Path) -> None:
    Publication(tmp_path / "a" / "b" / "m.xml").discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the folder there")
def test_nothing_is_left_in_a_folder_that_is_renamed_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    publication = Publication(tmp_path / "place" / "o.xml", ["o.bin"])
    publication.path.write_text("half")
    (tmp_path / "place").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError), publication:
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["elsewhere"]


def test_a_process_that_ends_discards_what_is_under_way(tmp_path: Path) -> None:
    publication = Publication(tmp_path / "m.xml")
    publication.path.write_text("x")
    discard_open()
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    with Publication(tmp_path / "m.xml") as other:
        other.write_text("other")
        write_text(tmp_path / "m.xml", "mine")
    assert (tmp_path / "m.xml").read_text() == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["m.xml"]


def test_names_as_long_as_names_can_be(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    assert len(os.listdir(tmp_path)) == 2
    with pytest.raises(WorkError, match="cannot be written: File name too long"):
        write_text(tmp_path / ("n" * 256), "x")
    assert len(os.listdir(tmp_path)) == 2


def test_links_to_models_are_replaced_by_files(tmp_path: Path) -> None:
    """As in a cache of downloads, where the name is a link to a blob."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "here").mkdir()
    for suffix in (".xml", ".bin"):
        (tmp_path / "blobs" / suffix[1:]).write_text(f"old{suffix}")
        (tmp_path / "here" / f"m{suffix}").symlink_to(f"../blobs/{suffix[1:]}")
    for step in range(1, 99):
        if not ends_at(step, signal.SIGKILL, lambda: pair(tmp_path / "here", "new")):
            break
        assert read_pair(tmp_path / "here") in ("old", "new")
    assert read_pair(tmp_path / "here") == "new"
    assert sorted(os.listdir(tmp_path / "here")) == ["m.bin", "m.xml"]
    assert (tmp_path / "blobs" / "bin").read_text() == "old.bin"


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "m.bin").mkdir()
    with pytest.raises(IsADirectoryError):
        pair(tmp_path, "new")
    assert os.listdir(tmp_path) == ["m.bin"]
