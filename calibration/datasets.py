"""From whatever a caller has, `dataset=` or `--data`, to model inputs that can be run: a dictionary of arrays a window.

The dataset may be

    "random", "self"                    token ids made here, for a language model (see `generate`)
    token ids                           [n], [windows, length], or a list of [length] arrays: a language model again
    an iterable of model inputs         dictionaries by input name, tuples in input order, or arrays for a single input
    an object with get_inference_data   NNCF's Dataset: the iterable that this method returns

Arrays are numpy's, torch's or OpenVINO's tensors, or lists. Arrays of integers are token ids where the model has an
input for those, else inputs like any other. What can be read only once, such as a generator, is kept once it was read.
On the command line the dataset is a file: text, a .npy or an .npz.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.generate import random_tokens, written_tokens
from ov_weight_compression.calibration.language_model import (
    LanguageModel,
    input_label,
    input_names,
    read_language_model,
)
from ov_weight_compression.calibration.sums import check_sample
from ov_weight_compression.calibration.tokenizer import TOKENIZERS, find_tokenizer
from ov_weight_compression.ir_utils import kinds
from ov_weight_compression.ir_utils.constants import tensor_values
from ov_weight_compression.ir_utils.errors import CompressionError, ModelError, OptionError
from ov_weight_compression.ir_utils.kinds import count, one_line, shown
from ov_weight_compression.ir_utils.replay import Replay, read_again, reads_once
from ov_weight_compression.ir_utils.types import Array

__all__ = [
    "CONTEXT_LENGTH",
    "SUBSET_SIZE",
    "Samples",
    "as_windows",
    "batches",
    "load_arrays",
    "make_samples",
    "read_data",
    "readable",
]

SUBSET_SIZE = 128
"""Windows used of a caller's data, as in NNCF."""
CONTEXT_LENGTH = 256
"""Tokens in a window."""
_RANDOM_WINDOWS = 4
_WRITTEN_WINDOWS = 64

_RESET_STATE = "nncf_reset_state"
"""A key that NNCF looks for in a sample of a stateful model: whether to reset the state before it."""

Window = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Samples:
    """Calibration windows, ready to run; can be iterated over any number of times, with the same result."""

    source: Callable[[], Iterator[Window]]
    description: str
    """What the data is, for reports and for the file of statistics."""

    def __iter__(self) -> Iterator[Window]:
        return self.source()


def make_samples(
    model: ov.Model,
    dataset: Any,
    *,
    subset_size: int | None = None,
    context_length: int = CONTEXT_LENGTH,
    seed: int = 0,
    quiet: bool = False,
) -> Samples:
    """Model inputs made of `dataset` for `model`.

    `subset_size` is the most windows that are used: 128 of a caller's data; 4 of `"random"` and 64 of `"self"` are made
    where it is None. `context_length` is the length of the windows that a flat array of token ids is cut into.

    Raises OptionError where the data does not fit the model, and says what would.
    """
    subset_size = None if subset_size is None else count(1).parse("subset_size", subset_size)
    context_length = count(1).parse("context_length", context_length)
    language = read_language_model(model)
    if isinstance(dataset, str):
        tokens = _made(model, language, dataset, subset_size, context_length, seed, quiet)
        how = "random tokens" if dataset == "random" else "tokens that the model wrote itself"
        assert language is not None
        return _language_samples(language, list(tokens), how)
    dataset = readable(dataset)
    if not isinstance(dataset, Iterable) or isinstance(dataset, Mapping):
        raise OptionError(
            f"dataset: {type(dataset).__name__} is not a sequence of model inputs: give a list of them, an array of "
            f"token ids, 'random' or 'self'"
        )
    limit = subset_size or SUBSET_SIZE
    dataset = _Told(dataset)
    first = next(iter(dataset), None)
    if first is None:
        raise OptionError("dataset: it is empty: give at least one model input")
    if language is None and np.isscalar(first) and _is_tokens(dataset, first):
        raise OptionError(
            f"dataset: single integers can only be token ids, and the model has no input for those: give dictionaries "
            f"with the keys {_names(model)}"
        )
    if language is not None and _is_tokens(dataset, first):
        given = dataset.source if isinstance(dataset.source, np.ndarray) else dataset
        return _language_samples(language, as_windows(given, language, context_length, limit), "tokens of given data")
    windows = _Again(lambda: (_window(model, language, *item) for item in enumerate(islice(dataset, limit), 1)))
    next(iter(windows))  # a first look, so that bad data is refused before any work
    source = dataset.source
    return Samples(windows.__iter__, f"{min(limit, len(source)) if isinstance(source, Sequence) else 'given'} inputs")


def readable(dataset: Any) -> Any:
    """The dataset as it can be read any number of times; whatever is none is left as it is."""
    if isinstance(dataset, (str, Mapping)):
        return dataset
    if hasattr(dataset, "get_inference_data"):
        # What NNCF's Dataset was made of tells whether it can be read again; where it does not say, samples are kept.
        source = getattr(dataset, "_data_source", None)
        if isinstance(source, Iterable) and not reads_once(source):
            return _Again(dataset.get_inference_data)
        return Replay(dataset.get_inference_data())
    if not isinstance(dataset, Iterable) and hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        return _Again(lambda: (dataset[number] for number in range(len(dataset))))
    return read_again(dataset) if isinstance(dataset, Iterable) else dataset


class _Again:
    """Iterates over a fresh iterator each time."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


class _Told:
    """A caller's samples; what their own code raises becomes an error that says which of them could not be read."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source

    def __iter__(self) -> Iterator[Any]:
        number = 1
        try:
            for item in self.source:
                yield item
                number += 1
        except (CompressionError, MemoryError):
            raise
        except Exception as error:
            reason = one_line(f"{type(error).__name__}: {error}", 120)
            raise OptionError(f"dataset: sample {number} cannot be read: {reason}") from error


def _made(
    model: ov.Model,
    language: LanguageModel | None,
    dataset: str,
    subset_size: int | None,
    context_length: int,
    seed: int,
    quiet: bool,
) -> NDArray[np.int64]:
    if dataset not in ("random", "self"):
        raise OptionError(f"dataset={shown(dataset)}: allowed are 'random', 'self', token ids and model inputs")
    if language is None:
        raise OptionError(
            f"dataset='{dataset}': only a language model can be given tokens that are made up, and this model has no "
            f"input of token ids: give dictionaries with the keys {_names(model)}"
        )
    length = min(context_length, language.positions or context_length)
    length = language.length or length
    if dataset == "random":
        return random_tokens(language.vocabulary, subset_size or _RANDOM_WINDOWS, length, seed)
    return written_tokens(model, language, subset_size or _WRITTEN_WINDOWS, length, seed, quiet=quiet)


def _language_samples(language: LanguageModel, windows: list[NDArray[Any]], how: str) -> Samples:
    total = sum(window.size for window in windows)
    groups = list(batches(windows, language.batch))
    language.inputs(groups[0])  # refuses a model with inputs that do not follow from token ids
    return Samples(lambda: (language.inputs(group) for group in groups), f"{len(windows)} windows, {total} {how}")


def _is_tokens(dataset: Any, first: Any) -> bool:
    """Whether the data is bare token ids: integers, or arrays of integers, without input names."""
    if isinstance(first, (Mapping, tuple)):
        return False
    return bool(np.issubdtype(_array(1, "", first).dtype, np.integer))


def _window(model: ov.Model, language: LanguageModel | None, number: int, item: Any) -> Window:
    """Sample `number` by friendly names, each array checked against the input's type and shape."""
    parameters = list(model.get_parameters())
    if not isinstance(item, Mapping):
        values = item if isinstance(item, (tuple, list)) else (item,)
        if len(values) > len(parameters):
            raise OptionError(f"dataset: {len(values)} arrays for {len(parameters)} inputs: {_names(model)}")
        item = dict(enumerate(values))
    window: Window = {}
    for key, value in item.items():
        if key == _RESET_STATE:
            if not value:
                raise OptionError(
                    f"dataset: {_RESET_STATE}={value!r} asks for a state that is kept between samples; here every "
                    "sample starts with an empty one: leave the key out, or join the samples that belong together"
                )
            continue
        node = _parameter(parameters, key)
        if node is None:
            raise OptionError(f"dataset: the model has no input {shown(key)}: its inputs are {_names(model)}")
        window[str(node.get_friendly_name())] = _fitted(number, node, _array(number, input_label(node), value))
    if language is not None and language.ids in window:
        return language.inputs(window[language.ids], window)
    missing = [input_label(node) for node in parameters if node.get_friendly_name() not in window]
    if missing:
        raise OptionError(f"dataset: the inputs {', '.join(missing)} are not in it: the model needs {_names(model)}")
    return window


def _parameter(parameters: Sequence[ov.Node], key: Any) -> ov.Node | None:
    """The model input that a key stands for: a name, or its number."""
    if isinstance(key, int):
        return parameters[key] if 0 <= key < len(parameters) else None
    return next((node for node in parameters if isinstance(key, str) and key in input_names(node)), None)


def _fitted(number: int, node: ov.Node, array: NDArray[Any]) -> NDArray[Any]:
    wanted, shape = node.get_output_element_type(0), node.get_output_partial_shape(0)
    dtype = np.dtype(wanted.to_dtype())
    if array.dtype.kind == "f" and dtype.kind in "iub" and not _whole(array, dtype):
        raise OptionError(
            f"dataset: input '{input_label(node)}' takes {wanted.to_string()}, and the data is {array.dtype} with "
            "values that are no such integers"
        )
    if not shape.compatible(ov.PartialShape(list(array.shape))):
        raise OptionError(
            f"dataset: input '{input_label(node)}' has the shape {shape}, and the data {list(array.shape)}"
        )
    check_sample(number, input_label(node), array, dtype)
    with np.errstate(over="ignore"):
        return array.astype(dtype, copy=False)


def _whole(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether floats are integers of a type: exporters and examples make masks and ids of ones and zeros."""
    with np.errstate(invalid="ignore"):
        return np.array_equal(array, array.astype(dtype))


def _array(number: int, name: str, value: Any) -> NDArray[Any]:
    """Arrays, lists, tensors of OpenVINO or torch; OptionError where it is none of those."""
    try:
        array = tensor_values(value) if isinstance(value, ov.Tensor) else np.asarray(value)
    except Exception:
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf" and array.dtype.itemsize != 2:
        place = f"sample {number}" + (f", input '{name}'" if name else "")
        raise OptionError(f"dataset: {place}: expected an array of numbers, got {shown(value)}")
    return array


def _names(model: ov.Model) -> str:
    return ", ".join(map(input_label, model.get_parameters()))


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


_TOKENS_A_RUN = 1024
"""Enough rows for a matrix product to run at full speed, few enough for activations to stay small."""


def as_windows(
    dataset: Iterable[Any], language: LanguageModel, context_length: int, limit: int
) -> list[NDArray[np.int64]]:
    """Token ids, flat or in rows, as at most `limit` windows `[length]`.

    A flat array is cut into windows of `context_length`, of which `limit` are taken at equal distances from all over
    it; its last tokens, too few for a window, are left out. Rows are taken as they are, from the first on.
    """
    rows = [np.asarray(row) for row in dataset] if not isinstance(dataset, np.ndarray) else dataset
    if (isinstance(rows, np.ndarray) and rows.ndim == 1) or all(np.ndim(row) == 0 for row in rows):
        flat = np.asarray(rows).astype(np.int64)
        length = min(language.length or context_length, language.positions or context_length, flat.size)
        whole = flat[: flat.size // length * length].reshape(-1, length)
        taken = np.linspace(0, len(whole) - 1, min(limit, len(whole))).round().astype(int)
        windows = list(whole[taken])
    else:
        windows = [line for row in rows for line in np.atleast_2d(np.asarray(row, np.int64))][:limit]
    for window in windows:
        _check(window, language)
    return windows


def batches(windows: Iterable[NDArray[Any]], batch: int | None) -> Iterator[NDArray[Any]]:
    """Windows of one length side by side, `[batch, length]`: `batch` of them, or as many as make about 1,024 tokens.

    With a prescribed batch, windows that do not fill the last one are left out, unless there would be none.
    """
    by_length: dict[int, list[NDArray[Any]]] = {}
    for window in windows:
        by_length.setdefault(window.size, []).append(window)
    for length, group in by_length.items():
        size = batch or max(1, _TOKENS_A_RUN // length)
        if batch and len(group) < batch:
            group = (group * batch)[:batch]
        for begin in range(0, len(group), size):
            part = group[begin : begin + size]
            if batch is None or len(part) == batch:
                yield np.stack(part)


def _check(window: NDArray[np.int64], language: LanguageModel) -> None:
    if window.ndim != 1 or window.size == 0:
        raise OptionError(f"dataset: a window of token ids has the shape {list(window.shape)}: give [length]")
    low, high = int(window.min()), int(window.max())
    if low < 0 or high >= language.vocabulary:
        raise OptionError(
            f"dataset: token id {low if low < 0 else high}: the model's vocabulary has ids 0 to "
            f"{language.vocabulary - 1}. Was the text tokenised for another model?"
        )
    longest = language.length or language.positions
    if longest and window.size > longest:
        raise OptionError(f"dataset: a window of {window.size} tokens: the model takes at most {longest}")
    if language.length and window.size != language.length:
        raise OptionError(f"dataset: a window of {window.size} tokens: the model's input takes {language.length}")


def load_arrays(path: Path) -> Array | dict[str, Array]:
    """The array of an .npy file, or those of an .npz file by name.

    Raises:
        OptionError: the file is damaged, of another kind, or holds something else than numbers.
    """
    try:
        read = np.load(path, allow_pickle=False)
        if not isinstance(read, np.ndarray):
            with read:
                read = {name: read[name] for name in read.files}
    except (Exception, MemoryError) as error:  # of zipfile, zlib, tokenize, struct and numpy itself, as they come
        reason = one_line(str(error), 200) or type(error).__name__
        raise OptionError(f"data={str(path)!r}: cannot be read as numpy arrays ({reason})") from error
    found: Array | dict[str, Array] = read
    for name, array in found.items() if isinstance(found, dict) else [("", found)]:
        if array.dtype.kind not in "biuf":
            what = f"its array {one_line(name, 60)!r}" if name else "it"
            raise OptionError(f"data={str(path)!r}: {what} holds no numbers but {one_line(str(array.dtype), 60)}")
    return found
