"""Calibration data from the command line: `--data file.txt | tokens.npy | tokens.npz | random | self`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ov_weight_compression.calibration.array_files import load_arrays
from ov_weight_compression.calibration.tokenizer import TOKENIZERS, find_tokenizer
from ov_weight_compression.ir_utils import kinds
from ov_weight_compression.ir_utils.errors import ModelError, OptionError

__all__ = ["read_data"]

_LONGEST_TEXT = 8 << 20
"""Bytes of a text file that are read: some two million tokens."""


def read_data(source: str | Path, model_folder: str | Path) -> Any:
    """What `make_samples` takes as its dataset, for a name given on the command line.

    `random` and `self` are handed on. A .npy file holds token ids, flat or in rows. A .npz file holds either one such
    array or, for a model of any kind, one array for each input, with the windows along the first axis. Everything else
    is text in UTF-8, turned into token ids by the tokenizer that lies beside the model (see `tokenizer`).

    Raises OptionError for a file that is not there or holds no data, and ModelError where there is no tokenizer.
    """
    if str(source) in ("random", "self"):
        return str(source)
    path = kinds.path().parse("data", source)
    if not path.is_file():
        raise OptionError(f"data={source}: there is no such file; allowed are a file, 'random' and 'self'")
    if path.suffix in (".npy", ".npz"):
        return _read_arrays(path)
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_TEXT).decode("utf-8", errors="ignore")
    except OSError as error:
        raise OptionError(f"data={source}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise OptionError(f"data={source}: the file holds no text")
    return _tokenise(text, Path(model_folder))


def _read_arrays(path: Path) -> Any:
    arrays = load_arrays(path)
    if not isinstance(arrays, dict):
        return arrays
    if len(arrays) == 1:
        only = next(iter(arrays.values()))
        if np.issubdtype(only.dtype, np.integer):
            return only
    single = [name for name, array in arrays.items() if array.ndim == 0]
    if single:
        raise OptionError(f"data={path}: its array {single[0]!r} is a single number: windows lie along the first axis")
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise OptionError(f"data={path}: its arrays disagree about the number of windows: {sorted(counts)}")
    return [{name: array[row : row + 1] for name, array in arrays.items()} for row in range(counts.pop())]


def _tokenise(text: str, folder: Path) -> NDArray[np.int64]:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(
            f"{folder}: no {' and no '.join(TOKENIZERS)} beside the model, so text cannot be read: "
            f"give token ids as .npy"
        )
    return find_tokenizer([folder]).encode(text)
