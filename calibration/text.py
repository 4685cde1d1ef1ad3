"""Calibration data from the command line: `--data file.txt | tokens.npy | tokens.npz | random | self`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.array_files import load_arrays
from ov_weight_compression.ir_utils import kinds
from ov_weight_compression.ir_utils.errors import CompressionError, MissingExtraError, ModelError, OptionError
from ov_weight_compression.ir_utils.ir_file import openvino_reason

__all__ = ["open_tokenizer", "read_data", "tokenizer_errors"]

_LONGEST_TEXT = 8 << 20
"""Bytes of a text file that are read: some two million tokens."""


def read_data(source: str | Path, model_folder: str | Path) -> Any:
    """What `make_samples` takes as its dataset, for a name given on the command line.

    `random` and `self` are handed on. A .npy file holds token ids, flat or in rows. A .npz file holds either one such
    array or, for a model of any kind, one array for each input, with the windows along the first axis. Everything else
    is text in UTF-8, turned into token ids by the tokenizer that lies beside the model: `tokenizer.json` (needs the
    package `tokenizers`) or `openvino_tokenizer.xml` (needs `openvino-tokenizers`).

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


def open_tokenizer(file: Path) -> Any:
    """A `tokenizer.json`, which cuts nothing off and fills nothing up.

    Raises:
        MissingExtraError: the package that reads it is not installed.
        ModelError: it is damaged.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "text", f"reading text with {file.name}") from error
    with tokenizer_errors(file):
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


@contextmanager
def tokenizer_errors(file: Path) -> Iterator[None]:
    """Turn whatever a tokenizer's own code raises into a `ModelError` that names its file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, CompressionError):
        raise
    except BaseException as error:  # `tokenizers` raises bare Exception, and where its code panics a BaseException
        raise ModelError(f"tokenizer {file} cannot be read: {openvino_reason(error)}") from error


def _tokenise(text: str, folder: Path) -> NDArray[np.int64]:
    if (folder / "tokenizer.json").is_file():
        tokenizer = open_tokenizer(folder / "tokenizer.json")
        with tokenizer_errors(folder / "tokenizer.json"):
            return np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    model = folder / "openvino_tokenizer.xml"
    if model.is_file():
        try:
            import openvino_tokenizers  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtraError("openvino-tokenizers", "genai", f"reading text with {model.name}") from error
        with tokenizer_errors(model):
            core = ov.Core()
            core.add_extension(str(openvino_tokenizers._ext_path))
            compiled = core.compile_model(core.read_model(model), "CPU")
            return np.asarray(compiled([text])["input_ids"], np.int64).reshape(-1)
    raise ModelError(
        f"{folder}: no tokenizer.json and no openvino_tokenizer.xml beside the model, so text cannot be read: "
        f"give token ids as .npy"
    )
