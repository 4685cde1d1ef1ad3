"""The command runs in a child of a process that waits for it: a crash ends in one line, too.

OpenVINO reads, compiles and runs models in C++, and a model that is damaged, or one that a plugin does not survive, can
end the process (a division by zero in the shape of a Reshape, a file that is cut off while its weights lie in a
mapping). So before anything is imported the process forks; the child does everything, and the parent hands on signals
and the exit code. Should the child crash, the parent removes what it had begun to write and says which model it was at.

The child does not outlive the parent: it is killed with it. Only on Linux; elsewhere, and where OV_COMPRESS_TRACEBACK
asks for crashes as they are, there is no child.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from ov_weight_compression.ir_utils import journal

_CRASHES = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")
_PR_SET_PDEATHSIG = 1


def supervised(run: Callable[[], int], signals: Collection[int], forked: Callable[[], None] = lambda: None) -> int:
    """The exit code of `run`, in a child where there can be one; `signals` are handed on to it. The child calls
    `forked` before any of them can reach it."""
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
            _die_with(parent)
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


def _die_with(parent: int) -> None:
    import ctypes

    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it is gone already
        os.kill(os.getpid(), signal.SIGKILL)


def _after_crash(number: int, notes: int) -> int:
    """Remove what the child had begun to write, say what happened, and return the exit code."""
    found = journal.read_journal(notes)
    done = next((entry for entry in reversed(found) if entry.kind == "done"), None)
    if done is not None and done.what:  # it crashed while it ended
        return int(done.what)
    _clean(found)
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


def _clean(found: Sequence[journal.Entry]) -> None:
    """What the next run to the same places would remove."""
    import shutil
    from pathlib import Path

    from ov_weight_compression.ir_utils.publish import mend

    for entry in reversed(found):
        path = Path(os.fsdecode(entry.what))
        if entry.kind == "writes":
            mend(path)
        elif entry.kind == "temporary":
            shutil.rmtree(path, ignore_errors=True)
        elif entry.kind == "made":
            with suppress(OSError):  # it holds something
                path.rmdir()
