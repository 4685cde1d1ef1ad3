"""Where the command's words go: results to standard output or a file, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ov_weight_compression.ir_utils.errors import one_line
from ov_weight_compression.ir_utils.publish import check_place, write_text

__all__ = ["JsonPlace", "json_place", "of_models", "say"]

_LONGEST = 800


class JsonPlace:
    """Where `--json` writes."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the file; None for standard output."""
        self.path = path

    def write(self, found: dict[str, Any]) -> None:
        """Write the result; the file is there whole, or not at all."""
        text = json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if self.path is None:
            sys.stdout.write(text)
        else:
            write_text(self.path, text)


def json_place(word: str | None) -> JsonPlace | None:
    """What `--json [FILE]` means; None where it was not given.

    Raises:
        OptionError: nothing can be written there; asked before anything is computed.
    """
    if word is None:
        return None
    return JsonPlace(None if word == "-" else check_place("--json", Path(word)))


def of_models(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One object for what was found of one model, or of each of several: `{"models": […]}`."""
    return found[0] if len(found) == 1 else {"models": list(found)}


def say(message: str) -> None:
    """One line on standard error."""
    print(f"ov-compress: {one_line(' '.join(message.split()), _LONGEST)}", file=sys.stderr)
