"""What can go wrong, as exceptions that subclass the builtin they specialise.

CompressionError
├── OptionError        (ValueError)    an option's value, or a combination of options, means nothing
├── ModelError         (ValueError)    a model or file that cannot be read as one
├── WorkError          (RuntimeError)  a failure while computing or writing; names the weight
└── MissingExtraError  (ImportError)   a feature whose optional dependency is not installed

CompressionWarning     (UserWarning)   what was done, but perhaps not as expected; the report has it too
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from warnings import warn

_PACKAGE = str(Path(__file__).parent.parent) + os.sep


_LONGEST = 290


def one_line(text: str, length: int) -> str:
    """A text without line breaks and other control characters, its middle left out where it is too long."""
    kept = text if len(text) <= length else f"{text[: length - 1 - length // 3]}…{text[len(text) - length // 3 :]}"
    return "".join(sign if sign.isprintable() else " " for sign in kept)


class CompressionError(Exception):
    """The root of everything that this package raises on purpose. Its message is one line that a person can read."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message, _LONGEST))


class CompressionWarning(UserWarning):
    """Something that the caller should know: a weight that holds NaN, samples that overflow inside the model."""


def warn_caller(texts: Iterable[str]) -> None:
    """A `CompressionWarning` for each text, at the line that called the package: what a filter by module goes by, and
    what is shown. (Python has `skip_file_prefixes` for that from 3.12 on.)"""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    for text in texts:
        warn(text, CompressionWarning, stacklevel=level)


class OptionError(CompressionError, ValueError):
    """An option that cannot be: the message names the field, the limit and the value received."""


class ModelError(CompressionError, ValueError):
    """A model or a file that cannot be used: missing, truncated, corrupt, or not a model at all."""


class WorkError(CompressionError, RuntimeError):
    """A failure while quantising or writing. The message names the weight."""


class MissingExtraError(CompressionError, ImportError):
    """An optional dependency is needed and absent. The message gives the command that installs it."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{module}': install it with pip install 'ov-weight-compression[{extra}]'"
        )
