"""What a caller may give as data, brought to one of two shapes: token ids, or sets of inputs.

    .npy                         token ids, or the one input of a model that takes something else
    .npz                         inputs by name; or token ids, where the arrays are whole numbers under other names
    any other file               text, through the tokenizer beside the model
    numpy array, list of arrays  as .npy
    dict, iterable of dicts      inputs by name
    None                         random inputs made from the input shapes, and said to be so

An array of a set of inputs that has one axis more than the model's input holds samples along its first axis. With
`batch`, arrays are cut along their first axis instead, so many rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ov_weight_compression.calibration.datasets import load_arrays
from ov_weight_compression.calibration.tokenizer import find_tokenizer
from ov_weight_compression.evaluation.models import Feeder
from ov_weight_compression.ir_utils import kinds
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["Data", "Inputs", "Source", "read_data"]

Source: TypeAlias = "str | PathLike[str] | Array | Mapping[str, Array] | Iterable[Array | Mapping[str, Array]] | None"
Inputs: TypeAlias = "Mapping[str, Array]"


@dataclass(frozen=True)
class Data:
    """Either `tokens` or `inputs` is there."""

    source: str
    """Where it came from, in words."""
    tokens: tuple[Array, ...] = ()
    inputs: Iterable[Inputs] | None = None
    synthesised: bool = False


def read_data(data: Source, feeder: Feeder, places: Sequence[Path | None], batch: int | None) -> Data:
    """Read what the caller gave (anything but None).

    Args:
        data: see the module.
        feeder: of the base model.
        places: files and folders in which a tokenizer is looked for.
        batch: rows of a set of inputs to run at once.

    Raises:
        OptionError: the data is missing, of no known kind, or does not fit the model's inputs.
    """
    if isinstance(data, (str, PathLike)):
        path = kinds.path().parse("data", data)
        if not path.is_file():
            raise OptionError(f"data={str(path)!r}: there is no such file")
        if path.suffix in (".npy", ".npz"):
            return _read_arrays(path, feeder, batch)
        return _read_text(path, feeder, places)
    if isinstance(data, np.ndarray):
        return _of_array(data, "an array", feeder, batch)
    if isinstance(data, Mapping):
        return Data("inputs by name", inputs=_samples([data], feeder, batch))
    if not isinstance(data, Iterable):
        raise OptionError(f"data: {type(data).__name__} is not a file, an array, a dict or an iterable of those")
    return _of_iterable(iter(data), feeder, batch)


def _read_arrays(path: Path, feeder: Feeder, batch: int | None) -> Data:
    arrays = load_arrays(path)
    if not isinstance(arrays, dict):
        return _of_array(arrays, path.name, feeder, batch)
    if set(arrays) == {feeder.ids} and feeder.takes_tokens and arrays[feeder.ids].ndim <= 2:
        return Data(path.name, tokens=(arrays[feeder.ids],))
    if arrays and set(arrays) <= set(feeder.names):
        return Data(path.name, inputs=_samples([arrays], feeder, batch))
    if arrays and feeder.takes_tokens and all(np.issubdtype(array.dtype, np.integer) for array in arrays.values()):
        return Data(path.name, tokens=tuple(arrays.values()))
    raise OptionError(
        f"data={str(path)!r}: its arrays ({', '.join(arrays) or 'none'}) are not inputs of the model "
        f"({', '.join(feeder.names)})"
    )


def _read_text(path: Path, feeder: Feeder, places: Sequence[Path | None]) -> Data:
    if not feeder.takes_tokens:
        raise OptionError(
            f"data={str(path)!r}: text is for models that take input_ids alone; this one takes "
            f"{', '.join(feeder.names)}: give its inputs as an .npz file"
        )
    tokenizer = find_tokenizer(places)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"data={str(path)!r}: cannot be read as text ({error})") from error
    return Data(f"{path.name} (through {Path(tokenizer.source).name})", tokens=(tokenizer.encode(text),))


def _of_array(array: Array, source: str, feeder: Feeder, batch: int | None) -> Data:
    if feeder.takes_tokens:
        return Data(source, tokens=(array,))
    if len(feeder.names) == 1:
        return Data(source, inputs=_samples([{feeder.names[0]: array}], feeder, batch))
    raise OptionError(
        f"data: one array is not enough for a model with the inputs {', '.join(feeder.names)}: give them by name"
    )


def _of_iterable(items: Iterator[Any], feeder: Feeder, batch: int | None) -> Data:
    first = next(items, None)
    if first is None:
        raise OptionError("data: it is empty")
    every = chain([first], items)
    if isinstance(first, Mapping):
        return Data("inputs by name", inputs=_samples(every, feeder, batch))
    arrays = [np.asarray(item) for item in every]
    if arrays[0].ndim == 0 and feeder.takes_tokens:  # a plain list of token ids
        arrays = [np.array(arrays)]
    if feeder.takes_tokens:
        return Data("arrays of token ids", tokens=tuple(arrays))
    if len(feeder.names) == 1:
        return Data("arrays", inputs=_samples(({feeder.names[0]: array} for array in arrays), feeder, batch))
    raise OptionError(f"data: this model has the inputs {', '.join(feeder.names)}: give dicts with these names")


def _samples(items: Iterable[Inputs], feeder: Feeder, batch: int | None) -> Iterator[Inputs]:
    """Each set of inputs as it is run: taken apart along an additional axis, or cut to batches."""
    for item in items:
        arrays = {str(name): np.asarray(value) for name, value in item.items()}
        if not arrays:
            raise OptionError("data: a set of inputs is empty")
        lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
        if all(feeder.rank(name) == array.ndim - 1 for name, array in arrays.items()) and len(lengths) == 1:
            yield from ({name: array[row] for name, array in arrays.items()} for row in range(lengths.pop()))
        elif batch is not None and len(lengths) == 1:
            for start in range(0, lengths.pop(), batch):
                yield {name: array[start : start + batch] for name, array in arrays.items()}
        else:
            yield arrays
