"""From whatever a caller has, `dataset=`, to model inputs that can be run: one dictionary of arrays per window.

The dataset may be

    "random", "self"                    token ids made here, for a language model (see `generate`)
    token ids                           [n], [windows, length], or a list of [length] arrays: a language model again
    an iterable of model inputs         dictionaries by input name, tuples in input order, or arrays for a single input
    an object with get_inference_data   NNCF's Dataset: the iterable that this method returns

Arrays are numpy's, torch's or OpenVINO's tensors, or lists. Arrays of integers are token ids where the model has an
input for those, else inputs like any other. What can be read only once, such as a generator, is kept once it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.finite import check_sample
from ov_weight_compression.calibration.generate import random_tokens, written_tokens
from ov_weight_compression.calibration.language import LanguageModel, input_label, input_names, read_language_model
from ov_weight_compression.calibration.tokens import as_windows, batches
from ov_weight_compression.ir_utils.constants import tensor_values
from ov_weight_compression.ir_utils.errors import CompressionError, OptionError
from ov_weight_compression.ir_utils.kinds import count, one_line, shown
from ov_weight_compression.ir_utils.replay import Replay, read_again, reads_once

__all__ = ["CONTEXT_LENGTH", "SUBSET_SIZE", "Samples", "make_samples", "readable"]

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
        return random_tokens(language, subset_size or _RANDOM_WINDOWS, length, seed)
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
