"""The process that the command runs in: a signal or a crash ends it cleanly and in one line, also while the rest is
imported.

**A signal** ends the process where it is. What it was writing is discarded first (see `ir_utils.publish`); only while
finished files take their places, which takes milliseconds, is that waited for.

**A crash.** OpenVINO reads, compiles and runs models in C++, and a model that is damaged, or one that a plugin does not
survive, can end the process (a division by zero in the shape of a Reshape, a file that is cut off while its weights lie
in a mapping). So before anything is imported the process forks; the child does everything, and the parent hands on
signals and the exit code. Should the child crash, the parent removes what it had begun to write and says which model it
was at (see `ir_utils.journal`).

The child does not outlive the parent: it is killed with it. Only on Linux; elsewhere, and where OV_COMPRESS_TRACEBACK
asks for crashes as they are, there is no child.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection
from contextlib import suppress

_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}
_CRASHES = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")
_PR_SET_PDEATHSIG = 1
_SHOW_CURSOR = b"\x1b[?25h"
_AGAIN_SECONDS = 0.02

_owner = 0
"""The process that a signal is to end cleanly. (OpenVINO's telemetry forks a process when it is imported.)"""
_ended_by: list[int] = []


def main() -> int:
    """Run the command with the arguments of the process and return its exit code."""
    _open_standard_streams()
    _own()
    numbers = [number for number in map(_number, _WORDS) if number is not None]
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, _end)
    return supervised(_run, handled, _own)


def _open_standard_streams() -> None:
    """Where one is closed the next file that is opened would take its place, and what is printed would go there."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))


def _number(name: str) -> int | None:
    return getattr(signal, name, None)


def _own() -> None:
    global _owner
    _owner = os.getpid()


def _run() -> int:
    # OpenVINO imports its model converter, with telemetry behind it, where it finds it, and that takes a third of its
    # own import. The command converts nothing with it, and exports of checkpoints run in a process of their own.
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    from ov_weight_compression.cli.command import main as run

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files and layers may be no text at all
    return run()


def supervised(run: Callable[[], int], signals: Collection[int], forked: Callable[[], None] = lambda: None) -> int:
    """The exit code of `run`, in a child where there can be one; `signals` are handed on to it. The child calls
    `forked` before any of them can reach it."""
    from ov_weight_compression.ir_utils import journal

    if sys.platform != "linux" or "OV_COMPRESS_TRACEBACK" in os.environ:
        return run()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored nobody can be waited for
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # until each of the two knows what to do with them
    parent, child = os.getpid(), 0
    try:
        notes = os.memfd_create("ov-compress")
        child = os.fork()
        if child:
            for number in signals:
                signal.signal(number, lambda number, _: os.kill(child, number))
        else:
            forked()
            journal.keep_in(notes)
            with suppress(AttributeError, OSError):
                import ctypes

                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it is gone already
                os.kill(os.getpid(), signal.SIGKILL)
    except OSError:
        return run()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    if not child:
        code = run()
        journal.note("done", str(code))
        return code
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # as long as it is not fetched nobody else gets its number
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else _after_crash(os.WTERMSIG(status), notes)


def _after_crash(number: int, notes: int) -> int:
    """Remove what the child had begun to write, say what happened, and return the exit code."""
    from ov_weight_compression.ir_utils import journal

    found = journal.read_journal(notes)
    done = next((entry for entry in reversed(found) if entry.kind == "done"), None)
    if done is not None and done.what:  # it crashed while it ended
        return int(done.what)
    import shutil
    from pathlib import Path

    from ov_weight_compression.ir_utils.publish import mend

    for entry in reversed(found):  # what the next run to the same places would remove
        path = Path(os.fsdecode(entry.what))
        if entry.kind == "writes":
            mend(path)
        elif entry.kind == "temporary":
            shutil.rmtree(path, ignore_errors=True)
        elif entry.kind == "made":
            with suppress(OSError):  # it holds something
                path.rmdir()
    name = signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"
    models = dict.fromkeys(os.fsdecode(entry.what) for entry in found if entry.kind == "reads")
    outcome = "what was asked for has been written" if done is not None else "nothing was written"
    if name == "SIGKILL":
        said, code = f"was killed, most likely because memory ran out; {outcome}", 128 + number
    elif name not in _CRASHES:
        said, code = f"was ended by {name}; {outcome}", 128 + number
    elif models:
        which = "it is damaged, or holds" if len(models) == 1 else "one of them is damaged, or holds"
        said = f"{', '.join(models)}: OpenVINO crashed ({name}): {which} what this OpenVINO cannot run; {outcome}"
        code = 2
    else:
        said, code = f"a fault of this program ({name}); {outcome}", 1
    line = " ".join(f"ov-compress: {said}".split())
    os.write(2, f"{line[:900]}\n".encode("utf-8", "backslashreplace"))
    return code


def done() -> None:
    """What was asked for has its place: a signal comes too late to take it back, and the process ends in a moment."""
    from ov_weight_compression.ir_utils.journal import note

    note("done", "")
    for number in map(_number, _WORDS):
        if number is not None and signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: object) -> None:
    """A signal's handler."""
    if os.getpid() != _owner:
        os._exit(128 + number)
    _ended_by.append(number)
    if len(_ended_by) == 1:  # the terminal and the parent may both have sent it
        for other in filter(None, map(_number, _WORDS)):
            signal.signal(other, signal.SIG_IGN)
        _leave(number)


def _leave(number: int) -> None:
    publish = sys.modules.get("ov_weight_compression.ir_utils.publish")
    if publish is not None and hasattr(publish, "discard_open"):
        if publish.placing():
            if not hasattr(signal, "setitimer"):  # Windows: it takes its place, and the process ends by itself
                return
            signal.signal(signal.SIGALRM, lambda *_: _leave(number))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            return
        publish.discard_open()
    for descriptor in (1, 2):
        if os.isatty(descriptor):  # a progress bar hides it
            os.write(descriptor, _SHOW_CURSOR)
    os.write(2, f"ov-compress: {_WORDS[signal.Signals(number).name]}; nothing was written\n".encode())
    os._exit(128 + number)
