"""The first thing that the command does: see to it that a signal ends it cleanly, also while the rest is imported.

A signal ends the process where it is. What it was writing is discarded first (see `ir_utils.publish`); only while
finished files take their places, which takes milliseconds, is that waited for.
"""

from __future__ import annotations

import os
import signal
import sys

_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}
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
    from ov_weight_compression.cli.supervisor import supervised

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
    from ov_weight_compression.cli import main as run

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files and layers may be no text at all
    return run()


def done() -> None:
    """What was asked for has its place: a signal comes too late to take it back, and the process ends in a moment."""
    from ov_weight_compression.ir_utils.journal import note

    note("done", "")
    for name in _WORDS:
        number = getattr(signal, name, None)
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
