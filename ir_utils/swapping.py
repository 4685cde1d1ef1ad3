"""New files or a new folder in the place of old ones, in one step for whoever reads (see `ir_utils.publish`).

All of it is for one writer at a time, in its turn: under locks on folders (`flock`), which end with the process that
has them. They are no files of their own, and never stale.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_fcntl: Any
try:
    import fcntl as _fcntl
except ImportError:  # Windows: no locks, and nothing of others is removed
    _fcntl = None

BEGUN = "begun"
"""A file of the hidden folder: where there are no links, the moves of new files to their places have begun."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_LONGEST_NAME = 120  # bytes of the target's name in the hidden folder's, which must fit in 255 itself
PATIENCE = 60.0
"""Seconds for the turn of others, which takes milliseconds."""


def prefix(name: str) -> str:
    """What the names of hidden folders for a target begin with."""
    raw = os.fsencode(name)
    if len(raw) > _LONGEST_NAME:
        short = os.fsdecode(raw[: _LONGEST_NAME - 20]).encode("utf-8", "ignore").decode()
        name = f"{short}~{hashlib.sha256(raw).hexdigest()[:16]}"
    return f".{name}."


def swap_files(folder: Path, place: Path, names: Sequence[str]) -> None:
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
        sync_folder(folder)
        sync_folder(place)
        os.replace(folder / "to", now)
        sync_folder(folder)
    finally:  # forwards or, where the last step was not reached, backwards
        finish_links(place / names[0], names)


def finish_links(target: Path, names: Sequence[str]) -> None:
    """Put files in the places of links through `now`, which a killed process left there."""
    place = target.parent
    for name in names:
        path = place / name
        if not path.is_symlink():
            continue
        through = Path(os.readlink(path))
        if through.parts[1:2] != ("now",) or not through.parts[0].startswith(prefix(target.name)):
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
    """As `swap_files` where there are no links: begun is begun, and `finish_moves` goes on from wherever it ended."""
    (folder / BEGUN).write_text("\n".join(names), encoding="utf-8")
    try:
        finish_moves(folder, place / names[0])
    except OSError:
        if os.path.lexists(place / names[0]):  # it goes first: nothing has moved, and nothing is to be finished later
            (folder / BEGUN).unlink()
        raise


def finish_moves(folder: Path, target: Path) -> None:
    """Go on with moves that were begun and not ended."""
    if (folder / BEGUN).exists():
        first, *others = (folder / BEGUN).read_text(encoding="utf-8").split("\n")
        if (folder / "new" / first).exists():
            (target.parent / first).unlink(missing_ok=True)
        for name in (*others, first):
            if (folder / "new" / name).exists():
                os.replace(folder / "new" / name, target.parent / name)
        (folder / BEGUN).unlink()
    elif (folder / "aside").exists() and not os.path.lexists(target):
        os.rename(folder / "aside", target)


def swap_folder(folder: Path, target: Path) -> None:
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
    """Have a folder's names on the disk."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
