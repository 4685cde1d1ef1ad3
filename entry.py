"""The first thing that the command does: see to it that a signal ends it cleanly, also while the rest is imported.

A signal ends the process where it is. What it was writing is discarded first (see `ir_utils.publish`); only while
finished files take their places, which takes milliseconds, is that waited for.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["done", "main"]

_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}
_SHOW_CURSOR = b"\x1b[?25h"
_AGAIN_SECONDS = 0.02


def main() -> int:
    """Run the command with the arguments of the process and return its exit code."""
    numbers = [number for number in map(_number, _WORDS) if number is not None]
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, _end)
    from ov_weight_compression.cli.supervisor import supervised

    return supervised(_run, handled)


def _number(name: str) -> int | None:
    return getattr(signal, name, None)


def _run() -> int:
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
    for name in _WORDS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    publish = sys.modules.get("ov_weight_compression.ir_utils.publish")
    if publish is not None and hasattr(publish, "discard_open"):
        if publish.placing():
            signal.signal(signal.SIGALRM, lambda *_: _end(number, None))
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
            return
        publish.discard_open()
    for descriptor in (1, 2):
        if os.isatty(descriptor):  # a progress bar hides it
            os.write(descriptor, _SHOW_CURSOR)
    os.write(2, f"ov-compress: {_WORDS[signal.Signals(number).name]}; nothing was written\n".encode())
    os._exit(128 + number)
