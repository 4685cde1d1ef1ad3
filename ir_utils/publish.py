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
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ov_weight_compression.ir_utils import option_kinds
from ov_weight_compression.ir_utils.errors import OptionError, WorkError
from ov_weight_compression.ir_utils.journal import note

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows: no locks, and nothing of others is removed
    _fcntl = None

_BEGUN = "begun"
"""A file of the hidden folder: where there are no links, the moves of new files to their places have begun."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_LONGEST_NAME = 120  # bytes of the target's name in the hidden folder's, which must fit in 255 itself
_PATIENCE = 60.0
"""Seconds for the turn of others, which takes milliseconds."""
_TEMPORARY = "ov-weight-compression-"


class Publication:
    """Files or a folder on the way to a name: a context that gives the path to write to. At its end that, and what lies
    beside it under the names in `beside`, take their places, and what was there is gone; after an exception they are
    discarded.

    Raises:
        OSError: by the constructor and at the end: the place cannot be written.
    """

    def __init__(self, target: Path, beside: Sequence[str] = ()) -> None:
        self._target, self._names = target, (target.name, *beside)
        self._folder = target.with_name(f"{_prefix(target.name)}{os.urandom(8).hex()}.partial")
        self.path = self._folder / "new" / target.name
        self._lock: int | None = None
        self.placing = False
        """Whether names are changing hands."""
        self._made: list[Path] = []
        _open.add(self)
        try:
            missing, folder = [], target.parent
            while not folder.exists() and folder != folder.parent:
                missing.append(folder)
                folder = folder.parent
            for path in reversed(missing):
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    self._made.append(path)
                    note("made", path)
            if not target.parent.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent))
            note("writes", target)
            with _turn(target.parent):
                _sweep(target, self._names)
                self._folder.mkdir()
                self._lock = _hold(self._folder)
                self.path.parent.mkdir()
        except BaseException:
            self.discard()
            raise

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.discard()
            return
        place = self._target.parent
        try:
            # On the disk before it gets its name: otherwise a name may survive a power cut that its contents do not.
            for file in self.path.parent.rglob("*"):
                if os.name != "nt" and not file.is_symlink() and file.is_file():
                    _sync(file)
            self.placing = True
            with _turn(place):
                _finish_links(self._target, self._names)
                for name in self._names if self.path.is_file() else ():
                    if (place / name).is_dir():
                        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place / name))
                if len(self._names) > 1 and os.path.lexists(self._target):
                    _swap_files(self._folder, place, self._names)
                elif self.path.is_dir() and os.path.lexists(self._target):
                    _swap_folder(self._folder, self._target)
                else:  # of a pair, what readers look for last
                    for name in reversed(self._names):
                        if (self.path.parent / name).exists():
                            os.replace(self.path.parent / name, place / name)
                with contextlib.suppress(OSError):
                    _sync(place)
            self._made = []
        finally:
            self.discard()
            self.placing = False

    def discard(self) -> None:
        """Remove what was not committed, and the folders that were made for it."""
        with contextlib.suppress(OSError):  # what cannot be removed now is removed by the next write
            folder = self._folder
            if self._lock is not None:
                with contextlib.suppress(OSError):  # somebody may have renamed a folder above it
                    found = Path(os.readlink(f"/proc/self/fd/{self._lock}"))
                    if found.name == folder.name and found.is_dir():
                        folder = found
            # What is at the target would go with the folder where names were changing hands.
            places = [folder.with_name(name) for name in self._names]
            if any(path.is_symlink() and os.readlink(path).startswith(folder.name) for path in places):
                with _turn(folder.parent):
                    _finish_links(places[0], self._names)
            if not (folder / _BEGUN).exists():
                shutil.rmtree(folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        for path in reversed(self._made):
            with contextlib.suppress(OSError):
                path.rmdir()
        self._made = []
        _open.discard(self)


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
        for one in (folder, place):
            with contextlib.suppress(OSError):
                _sync(one)
        os.replace(folder / "to", now)
        with contextlib.suppress(OSError):
            _sync(folder)
    finally:  # forwards or, where the last step was not reached, backwards
        _finish_links(place / names[0], names)


def _link(source: Path, target: Path) -> None:
    """A second name for a file; for a symbolic link another one to the same place."""
    if source.is_symlink():
        target.symlink_to(source.parent.resolve() / os.readlink(source))
    else:
        os.link(source, target)


def _move_files(folder: Path, place: Path, names: Sequence[str]) -> None:
    """As `_swap_files` where there are no links: begun is begun, and `_finish_moves` goes on from wherever it ended."""
    (folder / _BEGUN).write_text("\n".join(names), encoding="utf-8")
    try:
        _finish_moves(folder, place / names[0])
    except OSError:
        if os.path.lexists(place / names[0]):  # it goes first: nothing has moved, and nothing is to be finished later
            (folder / _BEGUN).unlink()
        raise


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


def _sweep(target: Path, names: Sequence[str]) -> None:
    """Finish and remove what killed processes left on their way to `target`. To be called in one's turn."""
    _finish_links(target, names)
    begin, length = _prefix(target.name), len(_prefix(target.name)) + len(".partial") + 16
    for folder in target.parent.iterdir():
        name = folder.name
        if not (name.startswith(begin) and name.endswith(".partial") and len(name) == length):
            continue
        descriptor = _hold(folder)
        if descriptor is not None:
            try:
                _finish_moves(folder, target)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def mend(target: Path) -> None:
    """Finish what a killed process had begun to put at `target`, a model or a folder, if there is anything of that."""
    with contextlib.suppress(OSError):
        # Looked at without a lock first: nearly always there is nothing, and readers wait for nobody.
        if any(path.name.startswith(_prefix(target.name)) for path in target.parent.iterdir()):
            with _turn(target.parent):
                _sweep(target, [target.name, target.with_suffix(".bin").name])


def _prefix(name: str) -> str:
    """What the names of hidden folders for a target begin with."""
    raw = os.fsencode(name)
    if len(raw) > _LONGEST_NAME:
        short = os.fsdecode(raw[: _LONGEST_NAME - 20]).encode("utf-8", "ignore").decode()
        name = f"{short}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return f".{name}."


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


def _hold(folder: Path, wait: bool = False) -> int | None:
    """The locked descriptor of a folder; None where it is another's, or there are no locks."""
    if _fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # its owner has just removed it
        if wait:
            raise
        return None
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


def _sync(path: Path) -> None:
    """Have a file's contents, or a folder's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class TemporaryFolder:
    """A folder for what does not fit into memory: gone with `discard`, or with the next one that is made after the
    process was killed. As a context it gives its path."""

    placing = False

    def __init__(self) -> None:
        _sweep_temporary()
        self.path = Path(tempfile.mkdtemp(prefix=_TEMPORARY))
        note("temporary", self.path)
        self._lock = _hold(self.path)
        _open.add(self)

    def discard(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        _open.discard(self)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.discard()


def _sweep_temporary() -> None:
    """Remove what killed processes left; young folders may be about to be locked."""
    with contextlib.suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):
                known = folder.lstat()
                young = time.time() - known.st_mtime < _PATIENCE
                if young or not folder.is_dir() or not hasattr(os, "geteuid") or known.st_uid != os.geteuid():
                    continue
                descriptor = _hold(folder)
                if descriptor is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(descriptor)


_open: set[Publication | TemporaryFolder] = set()


def placing() -> bool:
    """Whether something that this process has written is taking its place at this moment."""
    return any(publication.placing for publication in list(_open))


def discard_open() -> None:
    """Discard every publication of this process that is under way: it is about to end."""
    for publication in list(_open):
        publication.discard()


def check_place(option: str, path: Path) -> Path:
    """Whether a file of this name can be written, before anything is computed for it; its path without a `~`.

    Raises:
        OptionError: it cannot.
    """
    path = expanded(option, path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            return path
        if path.is_dir():
            raise OptionError(f"{option}: {path} is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise OptionError(f"{option}: there is no folder {path.parent} to write {path.name} to")
        Publication(path).discard()
    except OSError as error:
        raise OptionError(f"{option}: {cannot_write(path, error)}") from error
    return path


def expanded(option: str, path: Path) -> Path:
    """A path with `~` replaced.

    Raises:
        OptionError: there is no such home, or no file can have this name.
    """
    try:
        return Path(option_kinds.PATH.parse(option, path)).expanduser()
    except RuntimeError as error:
        raise OptionError(f"{option}: {path}: there is no such home") from error


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
            path.write_text(text, "utf-8", errors="backslashreplace")
            return
        with Publication(path) as written:
            written.write_text(text, "utf-8", errors="backslashreplace")
    except (OSError, ValueError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> WorkError:
    """The error for people: the file, and what the system says."""
    return WorkError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}")
