"""From whatever a caller has, `dataset=` or `--data`, to model inputs that can be run: a dictionary of arrays a window.

The dataset may be

    "random", "self"                    token ids made here, for a language model (see `generate`)
    token ids                           [n], [windows, length], or a list of [length] arrays: a language model again
    arrays by input name                a dictionary; samples lie along the first axis (see `data_files`)
    an iterable of model inputs         dictionaries by input name, tuples in input order, or arrays for a single input
    an object with get_inference_data   NNCF's Dataset: the iterable that this method returns

Arrays are numpy's, torch's or OpenVINO's tensors, or lists. Arrays of integers are token ids where the model has an
input for those, else inputs like any other. What can be read only once, such as a generator, is kept once it was read.
On the command line the dataset is a file, and may be one anywhere: text, a .npy or an .npz, or a folder of recorded
samples (see `recorded`). What lies beside the model's own file is used: a tokenizer for text and, for a language model
that takes `inputs_embeds`, the model that makes those of token ids (see `with_embeddings`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.data_files import read_file, recorded_data, rows_of, sort_arrays
from ov_weight_compression.calibration.generate import random_tokens, written_tokens
from ov_weight_compression.calibration.grams import unfit
from ov_weight_compression.calibration.model_inputs import LanguageModel, ModelInputs, with_embeddings
from ov_weight_compression.ir_utils.errors import CompressionError, OptionError, one_line
from ov_weight_compression.ir_utils.file_io import file_of
from ov_weight_compression.ir_utils.option_kinds import PATH, count, shown
from ov_weight_compression.ir_utils.types import Array

SUBSET_SIZE = 128
"""Windows used of a caller's data, as in NNCF."""
CONTEXT_LENGTH = 256
"""Tokens in a window."""
_RANDOM_WINDOWS = 4
_WRITTEN_WINDOWS = 64

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
    which: Callable[[int], bool] | None = None,
) -> Samples:
    """Model inputs made of `dataset` for `model`.

    `subset_size` is the most windows that are used: 128 of a caller's data; 4 of `"random"` and 64 of `"self"` are made
    where it is None. `context_length` is the length of the windows that a flat array of token ids is cut into. `which`
    says of those windows, by their number from 0, which are used: for several disjoint parts of one dataset.

    Raises OptionError where the data does not fit the model, and says what would.
    """
    subset_size = None if subset_size is None else count(1).parse("subset_size", subset_size)
    context_length = count(1).parse("context_length", context_length)
    dataset = opened(dataset, model)
    inputs = ModelInputs(model, "dataset")
    language = inputs.language
    embedded = with_embeddings(model) if language is None and _only_tokens(dataset) else None
    if embedded is not None:
        samples = make_samples(
            embedded.model,
            dataset,
            subset_size=subset_size,
            context_length=context_length,
            seed=seed,
            quiet=quiet,
            which=which,
        )
        return Samples(lambda: map(embedded.inputs, samples), samples.description)
    if isinstance(dataset, str):
        if language is None:
            raise OptionError(
                f"dataset='{dataset}': only a language model can be given tokens that are made up, and this model has "
                f"no input of token ids: give dictionaries with the keys {inputs.listed}"
            )
        length = language.window_length(context_length)
        if dataset == "random":
            tokens = random_tokens(language.vocabulary, subset_size or _RANDOM_WINDOWS, length, seed)
            return _language_samples(language, list(tokens), "random tokens", which)
        tokens = written_tokens(model, language, subset_size or _WRITTEN_WINDOWS, length, seed, quiet=quiet)
        return _language_samples(language, list(tokens), "tokens that the model wrote itself", which)
    limit = subset_size or SUBSET_SIZE
    dataset = readable(dataset, "dataset")
    arrays: tuple[Array, ...] | dict[str, Array] | None = None
    if isinstance(dataset, Mapping):
        arrays = sort_arrays({name: inputs.array(value, 1, str(name)) for name, value in dataset.items()}, inputs)
    elif isinstance(dataset, np.ndarray) and dataset.ndim > 1 and len(dataset):
        # Rows of token ids come one by one, as windows in a list do.
        arrays = None if language and _is_tokens(inputs, dataset) else sort_arrays(dataset, inputs)
    if isinstance(arrays, tuple):
        assert language is not None
        cut = [window for array in arrays for window in _as_windows(array, language, context_length, limit)]
        return _language_samples(language, cut[:limit], "tokens of given data", which)
    if arrays is not None:
        dataset = Again(partial(rows_of, arrays, inputs, 1))
    if not isinstance(dataset, Iterable):
        raise OptionError(
            f"dataset: {type(dataset).__name__} is not a sequence of model inputs: give a list of them, an array of "
            f"token ids, 'random' or 'self'"
        )
    dataset = Told(dataset, "dataset")
    first = next(iter(dataset), None)
    if first is None:
        raise OptionError("dataset: it is empty: give at least one model input")
    if language is None and np.isscalar(first) and _is_tokens(inputs, first):
        raise OptionError(
            f"dataset: single integers can only be token ids, and the model has no input for those: give dictionaries "
            f"with the keys {inputs.listed}"
        )
    if language is not None and _is_tokens(inputs, first):
        given = dataset.source if isinstance(dataset.source, np.ndarray) else dataset
        cut = _as_windows(given, language, context_length, limit)
        return _language_samples(language, cut, "tokens of given data", which)
    windows = Again(
        lambda: (
            _window(inputs, number, item)
            for number, item in enumerate(islice(dataset, limit), 1)
            if which is None or which(number - 1)
        )
    )
    if next(iter(windows), None) is None:  # a first look, so that bad data is refused before any work
        raise OptionError(_TOO_FEW)
    source = dataset.source
    return Samples(windows.__iter__, f"{min(limit, len(source)) if isinstance(source, Sequence) else 'given'} inputs")


def readable(dataset: Any, option: str) -> Any:
    """The dataset as it can be read any number of times; whatever is none is left as it is.

    Raises OptionError, which names the option that it was given for, where the caller's own code raises.
    """
    try:
        if isinstance(dataset, (str, Mapping)):
            return dataset
        if hasattr(dataset, "get_inference_data"):
            # What NNCF's Dataset was made of tells whether it can be read again; where it does not say, samples are
            # kept.
            source = getattr(dataset, "_data_source", None)
            if isinstance(source, Iterable) and not reads_once(source):
                return Again(dataset.get_inference_data)
            return Replay(dataset.get_inference_data())
        if isinstance(dataset, Iterable):
            return Replay(dataset) if reads_once(dataset) else dataset
        if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
            return Again(lambda: (dataset[number] for number in range(len(dataset))))
        return dataset
    except (CompressionError, MemoryError):
        raise
    except Exception as error:
        raise OptionError(f"{option}: it cannot be read: {_said(error)}") from error


class Replay:
    """The items of an iterator for as many readers as come: each is kept once it was read, and none is read early."""

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = iter(source)
        self._kept: list[Any] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Any]:
        number = 0
        while True:
            with self._lock:
                if number == len(self._kept):
                    try:
                        self._kept.append(next(self._source))
                    except StopIteration:
                        return
            yield self._kept[number]
            number += 1


def reads_once(source: Iterable[Any]) -> bool:
    """Whether a second reader would not find the first item again: a generator, a file, a loader that goes on."""
    if isinstance(source, Sequence) or hasattr(source, "__array__"):
        return False
    return isinstance(source, Iterator) or iter(source) is iter(source)


@dataclass(frozen=True, eq=False)
class Again:
    """Iterates over a fresh iterator each time."""

    make: Callable[[], Iterable[Any]]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.make())


@dataclass(frozen=True, eq=False)
class Told:
    """A caller's samples; what their own code raises becomes an error that says which of them could not be read."""

    source: Iterable[Any]
    option: str

    def __iter__(self) -> Iterator[Any]:
        number = 1
        try:
            for item in self.source:
                yield item
                number += 1
        except (CompressionError, MemoryError):
            raise
        except Exception as error:
            raise OptionError(f"{self.option}: sample {number} cannot be read: {_said(error)}") from error


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 120)


def opened(dataset: Any, model: ov.Model) -> Any:
    """The dataset itself or, where it is the name of a file or folder, what that holds.

    Raises OptionError for a file that is not there or holds no data, and for text where no tokenizer is found.
    """
    named = isinstance(dataset, PathLike) or (isinstance(dataset, str) and dataset not in ("random", "self"))
    if not named:
        return dataset
    if not Path(PATH.parse("dataset", dataset)).exists():
        raise OptionError(
            f"dataset={shown(str(dataset))}: allowed are 'random', 'self', a file (there is none of "
            "this name), token ids and model inputs"
        )
    home = file_of(model)
    return read_data(dataset, None if home is None else home.parent, home)


def _only_tokens(dataset: Any) -> bool:
    """Whether the data are words or whole numbers without a name."""
    if isinstance(dataset, (str, np.ndarray)):
        return isinstance(dataset, str) or bool(np.issubdtype(dataset.dtype, np.integer))
    if isinstance(dataset, Mapping) or not isinstance(dataset, Sequence) or not len(dataset):
        return False
    first = dataset[0]
    return not isinstance(first, (Mapping, tuple)) and np.asarray(first).dtype.kind in "iu"


_TOO_FEW = "dataset: it has too few windows to be parted: give more"


def _language_samples(
    language: LanguageModel, windows: Sequence[NDArray[Any]], how: str, which: Callable[[int], bool] | None
) -> Samples:
    chosen = [window for number, window in enumerate(windows) if which is None or which(number)]
    if windows and not chosen:
        raise OptionError(_TOO_FEW)
    groups = list(_batches(chosen, language.batch))
    language.inputs(groups[0])  # refuses a model with inputs that do not follow from token ids
    total = sum(window.size for window in chosen)
    return Samples(lambda: (language.inputs(group) for group in groups), f"{len(chosen)} windows, {total} {how}")


def _is_tokens(inputs: ModelInputs, first: Any) -> bool:
    """Whether the data is bare token ids: integers, or arrays of integers, without input names."""
    if isinstance(first, (Mapping, tuple)):
        return False
    return bool(np.issubdtype(inputs.array(first).dtype, np.integer))


def _window(inputs: ModelInputs, number: int, item: Any) -> Window:
    """Sample `number` by the inputs' names, each array checked against the input's type and shape."""
    given = inputs.named(item, number)
    window = inputs.complete(given)
    for name, array in given.items():
        _check_sample(number, name, array, window[name].dtype)
    return window


_ROOT = 1.8e19
"""The square of a larger value is infinity in f32."""


def _check_sample(number: int, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Refuse an input of a sample that is no data.

    Masks may hold -infinity and the like: that is how they take something out of a sum.

    Args:
        number: of the sample, from 1.
        name: of the model's input.
        array: of any type.
        dtype: that it will be given to the model as.

    Raises:
        OptionError: it holds NaN, infinity, or a value that is too large.
    """
    if array.dtype.kind != "f" or dtype.kind != "f" or unfit(array.reshape(-1), _ROOT) is None:
        return
    flat = array.reshape(-1)
    wrong = np.isnan(flat) if "mask" in name else ~(np.abs(flat) <= _ROOT)
    if not wrong.any():
        return
    first = float(flat[int(np.argmax(wrong))])
    told = {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}.get(str(first), f"{first:g}")
    more = "" if np.isfinite(first) else f" ({int(wrong.sum())} of {array.size} values are not finite or too large)"
    limit = ", whose square overflows" if np.isfinite(first) else ""
    raise OptionError(
        f"dataset: sample {number}, input '{name}': it holds {told}{more}{limit}; mend the sample or leave it out"
    )


_LONGEST_TEXT = 8 << 20
"""Bytes of a text file that are read: some two million tokens."""


def read_data(source: str | PathLike[str], folder: Path | None, model: Path | str | None = None) -> Any:
    """What `make_samples` takes as its dataset, for a name.

    `random` and `self` are handed on; everything else is a file (see `data_files`). Of arrays by name, the windows lie
    along the first axis.

    Args:
        source: what the data are called.
        folder: where a tokenizer is looked for.
        model: the model's file, by which its samples are found in a folder of samples for several.

    Raises OptionError for a file that is not there or holds no data, and where there is no tokenizer.
    """
    if str(source) in ("random", "self"):
        return str(source)
    place: Any = PATH.parse("data", source)
    if place.is_dir():
        place = recorded_data(place, [model])
    return read_file(place, [folder], _LONGEST_TEXT)[0] if isinstance(place, Path) else place


_TOKENS_A_RUN = 1024
"""Enough rows for a matrix product to run at full speed, few enough for activations to stay small."""


def _as_windows(
    dataset: Iterable[Any], language: LanguageModel, context_length: int, limit: int
) -> list[NDArray[np.int64]]:
    """Token ids, flat or in rows, as at most `limit` windows `[length]`.

    A flat array is cut into windows of `context_length`, or of the one length that the model takes, of which `limit`
    are taken at equal distances from all over it; its last tokens, too few for a window, are left out. Rows are taken
    as they are, from the first on.
    """
    rows = [np.asarray(row) for row in dataset] if not isinstance(dataset, np.ndarray) else dataset
    for array in [rows] if isinstance(rows, np.ndarray) else rows:
        if not np.issubdtype(array.dtype, np.integer):
            raise OptionError(f"dataset: token ids must be whole numbers, this array holds {array.dtype}")
    if (isinstance(rows, np.ndarray) and rows.ndim == 1) or all(np.ndim(row) == 0 for row in rows):
        flat = np.asarray(rows).astype(np.int64)
        length = min(language.window_length(context_length), flat.size)
        whole = flat[: flat.size // length * length].reshape(-1, length)
        taken = np.linspace(0, len(whole) - 1, min(limit, len(whole))).round().astype(int)
        windows = list(whole[taken])
    else:
        windows = [line for row in rows for line in np.atleast_2d(np.asarray(row, np.int64))][:limit]
    longest = language.length or language.positions
    for window in windows:
        if window.ndim != 1 or window.size == 0:
            raise OptionError(f"dataset: a window of token ids has the shape {list(window.shape)}: give [length]")
        low, high = int(window.min()), int(window.max())
        if low < 0 or high >= language.vocabulary:
            raise OptionError(
                f"dataset: token id {low if low < 0 else high}: the model's vocabulary has ids 0 to "
                f"{language.vocabulary - 1}. Was the text tokenised for another model?"
            )
        if longest and window.size > longest:
            raise OptionError(f"dataset: a window of {window.size} tokens: the model takes at most {longest}")
        if language.length and window.size != language.length:
            raise OptionError(f"dataset: a window of {window.size} tokens: the model's input takes {language.length}")
    return windows


def _batches(windows: Iterable[NDArray[Any]], batch: int | None) -> Iterator[NDArray[Any]]:
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
