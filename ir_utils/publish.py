"""How everything that is written gets its name: whole or not at all, whenever the process ends.

What is to be written at `out/m.xml` is made in a hidden folder beside it and takes its place when it is complete:

    out/.m.xml.7f3a….partial/new/       m.xml, m.bin: what is being written
                             old/       links to what was there, while two files take their places
                             now        a link to `old`, then to `new`

**One file** is renamed over the old one. **A folder** is exchanged with the old one (`renameat2`), or renamed where
there is none. **A model's two files** cannot be renamed in one step, so each becomes a symbolic link through `now`
first, which changes nothing for a reader; then `now` is turned from `old` to `new` by one rename, and the files take
the links' places. Whoever reads the plain path at any of these moments, with any program, finds the old model or the
new one, and so does whoever comes after the process was killed: never one's .xml beside the other's .bin. (A reader
that is between opening the two files at that one moment can get one of each, as with every pair of files.)

Where the file system has no links, the old .xml is taken away before the .bin changes, and where folders cannot be
exchanged the old one is moved aside: a process killed there leaves nothing at the plain path for as long as nobody
writes or reads there again through `mend`, which finishes what was begun.

The file descriptor of the hidden folder is locked (`flock`) for as long as its process lives, so one whose lock can be
had was left by a process that was killed, and the next write to the same place removes it. The folder above is locked
while names change hands, so that several writers take turns. No lock outlives its process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ov_weight_compression.ir_utils.errors import WorkError

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows: no locks, and nothing of others is removed
    _fcntl = None

__all__ = ["Publication", "cannot_write", "discard_open", "mend", "under_way", "write_text"]

_LONGEST_NAME = 120  # bytes of the target's name in the hidden folder's, which must fit in 255 itself
_PATIENCE = 60.0  # seconds for the turn of others, which takes milliseconds
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
_BEGUN = "begun"  # where there are no links: the moves of new files to their places have begun
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class Publication:
    """Files or a folder on the way to a name. `path` is where to write; `commit` gives it, and what lies beside it
    under the names in `beside`, their places; `discard` forgets them. As a context it commits at its end, and discards
    after an exception.

    Raises:
        OSError: by all of them: the place cannot be written.
    """

    def __init__(self, target: Path, beside: Sequence[str] = ()) -> None:
        self._target, self._names = target, (target.name, *beside)
        self._folder = target.with_name(f"{_prefix(target.name)}{os.urandom(8).hex()}.partial")
        self.path = self._folder / "new" / target.name
        self._lock: int | None = None
        self._made: list[Path] = []
        _open.add(self)
        try:
            self._made = _make_folder(target.parent)
            with _turn(target.parent):
                _sweep(target, self._names)
                self._folder.mkdir()
                self._lock = _hold(self._folder)
                self.path.parent.mkdir()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Give everything its place; what was there is gone after that."""
        try:
            _settle_on_disk(self.path.parent)
            with _turn(self._target.parent):
                _finish_links(self._target, self._names)
                self._place()
            self._made = []
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what was not committed, and the folders that were made for it."""
        _open.discard(self)
        with contextlib.suppress(OSError):  # what cannot be removed now is removed by the next write
            if self._half_placed():
                with _turn(self._target.parent):
                    _finish_links(self._target, self._names)
            if not self._half_placed():
                _remove(self._folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self._remove_made()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.commit()
        else:
            self.discard()

    def _half_placed(self) -> bool:
        """Whether what is at the target would go with the hidden folder: names were changing hands."""
        places = [self._target.parent / name for name in self._names]
        through = any(path.is_symlink() and os.readlink(path).startswith(self._folder.name) for path in places)
        return through or (self._folder / _BEGUN).exists()

    def _place(self) -> None:
        if self.path.is_file():
            for name in self._names:
                path = self._target.parent / name
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if len(self._names) > 1 and os.path.lexists(self._target):
            _swap_files(self._folder, self._target.parent, self._names)
        elif self.path.is_dir() and os.path.lexists(self._target):
            _swap_folder(self._folder, self._target)
        else:  # of a pair, what readers look for last
            for name in reversed(self._names):
                if (self.path.parent / name).exists():
                    os.replace(self.path.parent / name, self._target.parent / name)
        _sync_folder(self._target.parent)

    def _remove_made(self) -> None:
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._made = []


_open: set[Publication] = set()


def discard_open() -> None:
    """Discard every publication of this process that is under way: it is about to end."""
    for publication in list(_open):
        publication.discard()


def mend(target: Path) -> None:
    """Finish what a killed process had begun to put at `target`, a model or a folder, if there is anything of that."""
    with contextlib.suppress(OSError):
        if target.parent.is_dir() and _left_behind(target):
            with _turn(target.parent):
                _sweep(target, [target.name, target.with_suffix(".bin").name])


def under_way(path: Path) -> bool:
    """Whether a path inside some folder is that of something that has not got its name yet, or never will."""
    return any(part.startswith(".") and part.endswith(".partial") for part in path.parts)


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole, or leave what was there; what is no file (a terminal, a pipe) is written to as it is.

    Raises:
        WorkError: it cannot be written; names the file.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        with Publication(path) as written:
            written.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> WorkError:
    """The error for people: the file, and what the system says."""
    return WorkError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}")


def _prefix(name: str) -> str:
    """What the names of hidden folders for a target begin with."""
    raw = os.fsencode(name)
    if len(raw) > _LONGEST_NAME:
        short = os.fsdecode(raw[: _LONGEST_NAME - 20]).encode("utf-8", "ignore").decode()
        name = f"{short}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return f".{name}."


def _left_behind(target: Path) -> list[Path]:
    prefix = _prefix(target.name)
    length = len(prefix) + len(".partial") + 16
    return [
        path
        for path in target.parent.iterdir()
        if path.name.startswith(prefix) and path.name.endswith(".partial") and len(path.name) == length
    ]


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder; returns those that had to be made, the outermost first."""
    missing: list[Path] = []
    while not folder.exists() and folder != folder.parent:
        missing.insert(0, folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for path in missing:
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                made.append(path)
        if missing and not missing[-1].is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(missing[-1]))
    except BaseException:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise
    return made


def _hold(folder: Path, wait: bool = False) -> int | None:
    """The locked descriptor of a folder; None where it is another's, or there are no locks."""
    if _fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + _PATIENCE
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
def _turn(folder: Path) -> Iterator[None]:
    """Alone among those that change names in a folder."""
    descriptor = _hold(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            # Unlocked by name: a forked child that shares the descriptor would keep the lock.
            _fcntl.flock(descriptor, _fcntl.LOCK_UN)
            os.close(descriptor)


def _sweep(target: Path, names: Sequence[str]) -> None:
    """Finish and remove what killed processes left on their way to `target`. To be called in one's turn."""
    _finish_links(target, names)
    for folder in _left_behind(target):
        descriptor = _hold(folder)
        if descriptor is None:
            continue
        try:
            _finish_moves(folder, target)
            _remove(folder)
        finally:
            os.close(descriptor)


def _swap_files(folder: Path, place: Path, names: Sequence[str]) -> None:
    """Give files the places of others at once (see the module's text)."""
    old, now = folder / "old", folder / "now"
    try:
        old.mkdir()
        for name in names:
            if os.path.lexists(place / name):
                _link(place / name, old / name)
        now.symlink_to("old")
        (folder / "to").symlink_to("new")
        for name in names:
            (folder / name).symlink_to(f"{folder.name}/now/{name}")
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LINKS:
            raise
        _move_files(folder, place, names)
        return
    try:
        for name in names:
            os.replace(folder / name, place / name)
        _sync_folder(folder)
        _sync_folder(place)
        os.replace(folder / "to", now)
        _sync_folder(folder)
    finally:  # forwards or, where the last step was not reached, backwards
        _finish_links(place / names[0], names)


def _finish_links(target: Path, names: Sequence[str]) -> None:
    """Put files in the places of links through `now`, which a killed process left there."""
    place = target.parent
    for name in names:
        path = place / name
        if not path.is_symlink():
            continue
        through = Path(os.readlink(path))
        if through.parts[1:2] != ("now",) or not through.parts[0].startswith(_prefix(target.name)):
            continue
        if not os.path.lexists(place / through):  # the model that is in force has no such file
            path.unlink()
            continue
        fresh = place / through.parts[0] / name
        fresh.unlink(missing_ok=True)
        _link(place / through, fresh)
        os.replace(fresh, path)


def _link(source: Path, target: Path) -> None:
    """A second name for a file; for a symbolic link another one to the same place."""
    if source.is_symlink():
        target.symlink_to(source.parent.resolve() / os.readlink(source))
    else:
        os.link(source, target)


def _move_files(folder: Path, place: Path, names: Sequence[str]) -> None:
    """As `_swap_files` where there are no links: begun is begun, and `_finish_moves` goes on from wherever it ended."""
    (folder / _BEGUN).write_text("\n".join(names), encoding="utf-8")
    _finish_moves(folder, place / names[0])


def _finish_moves(folder: Path, target: Path) -> None:
    """Go on with moves that were begun and not ended."""
    if (folder / _BEGUN).exists():
        first, *others = (folder / _BEGUN).read_text(encoding="utf-8").split("\n")
        if (folder / "new" / first).exists():
            (target.parent / first).unlink(missing_ok=True)
        for name in (*others, first):
            if (folder / "new" / name).exists():
                os.replace(folder / "new" / name, target.parent / name)
        (folder / _BEGUN).unlink()
    elif (folder / "aside").exists() and not os.path.lexists(target):
        os.rename(folder / "aside", target)


def _swap_folder(folder: Path, target: Path) -> None:
    """Exchange the new folder with what is there."""
    new = folder / "new" / target.name
    if not _exchange(new, target):
        os.rename(target, folder / "aside")
        try:
            os.rename(new, target)
        except OSError:
            os.rename(folder / "aside", target)
            raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    try:
        rename: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _settle_on_disk(folder: Path) -> None:
    """Have what was written on the disk before it gets its name: otherwise a name may survive a power cut that its
    contents do not."""
    for file in folder.rglob("*"):
        if _fcntl is None or file.is_symlink() or not file.is_file():
            continue
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
