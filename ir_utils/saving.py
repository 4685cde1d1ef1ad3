"""Writing a model so that neither memory nor a crash matters.

`ov.save_model` holds one weight at a time, but all of it: the table of a large vocabulary is hundreds of megabytes. And
it writes on one thread. Here the graph is written first, with stubs for its weights (see `ir_utils.deferral`), and then
all weights are computed straight into their places in the .bin.

Both files are written beside the destination and take their places at once (see `ir_utils.publish`): whenever a process
is killed, the old model or the new one is there, never a mixture.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov

from ov_weight_compression.ir_utils import kinds
from ov_weight_compression.ir_utils.deferral import Deferral, deferring
from ov_weight_compression.ir_utils.errors import CompressionError, OptionError, WorkError
from ov_weight_compression.ir_utils.ir_file import stored_constants
from ov_weight_compression.ir_utils.publish import Publication, cannot_write
from ov_weight_compression.ir_utils.stubs import find_stubs, make_room

__all__ = ["save_model"]


def save_model(model: Any, path: str | Path, after_write: Callable[[], None] | None = None) -> None:
    """Write `model` as `path` (.xml) and its .bin, in bounded memory and all or nothing.

    Unlike `ov.save_model` it leaves the precision of everything that was not compressed as it is. `after_write` is
    called when both files are complete and before they take their names: what it raises leaves the destination as it
    was.

    Raises:
        WorkError: the disk is full or the files cannot be written, or a weight could not be computed.
    """
    kinds.check_model(model)
    path = Path(kinds.path().parse("path", path))
    if path.suffix != ".xml":
        raise OptionError(f"path: {path} must end in .xml")
    try:
        with Publication(path, [path.with_suffix(".bin").name]) as partial:
            weights, stubs = partial.with_suffix(".bin"), partial.with_suffix(".stubs.bin")
            with deferring() as deferral:
                ov.serialize(model, str(partial), str(stubs))
            _check_complete(partial, stubs)
            _fill(partial, stubs, weights, deferral)
            if after_write is not None:
                after_write()
    except (OSError, ValueError) as error:
        if isinstance(error, CompressionError):
            raise
        raise cannot_write(path, error) from error
    except RuntimeError as error:
        if isinstance(error.__cause__, OSError):
            raise cannot_write(path, error.__cause__) from error
        if isinstance(error, CompressionError):
            raise
        raise WorkError(f"{path}: cannot be written: {_reason(error)}") from error


def _fill(xml: Path, stubs: Path, weights: Path, deferral: Deferral) -> None:
    """Put what the stubs stand for in their place."""
    if not deferral.stubs:
        stubs.replace(weights)
        return
    text = xml.read_bytes()
    found = find_stubs(text, stubs, deferral.stubs)
    for mark in deferral.stubs.keys() - set(found.values()):
        stub = deferral.stubs[mark]
        raise WorkError(f"{stub.owner.name}: its {stub.part} were not found in {stubs}")
    text, places = make_room(text, stubs, weights, found, deferral.stubs)
    stubs.unlink()
    xml.write_bytes(text)
    descriptor = os.open(weights, os.O_WRONLY)
    try:
        deferral.compute(descriptor, places)
    finally:
        os.close(descriptor)


def _reason(error: RuntimeError) -> str:
    """The last line of what OpenVINO says; in plain words where that is only that a stream failed."""
    line = (str(error).strip() or "no reason given").splitlines()[-1]
    return f"the disk is full, or refuses more for another reason ({line})" if "iostream" in line else line


def _check_complete(xml: Path, weights: Path) -> None:
    """OpenVINO does not notice a full disk."""
    needed = max((constant.offset + constant.size for constant in stored_constants(xml)), default=0)
    size = weights.stat().st_size if weights.exists() else 0
    if size < needed:
        raise OSError(28, f"the disk is full ({size} of {needed} bytes were written)")
