"""Data as files and as bare arrays, read in one way for calibration and for comparisons.

    .npy             an array
    .npz             arrays by name
    a folder         recorded samples, an .npz each (see `recorded`)
    any other file   text in UTF-8, through the tokenizer that lies beside the model (see `tokenizer`): token ids

What an array is depends on the model. Token ids, where that takes nothing else; the one input of a model that takes
something else; arrays with the names of inputs are those inputs. Arrays of inputs that have one axis more than the
model's input hold samples along their first axis; with `batch`, arrays are cut along their first axis instead, so many
rows at a time.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ov_weight_compression.calibration.model_inputs import ModelInputs
from ov_weight_compression.calibration.recorded import load_arrays
from ov_weight_compression.calibration.tokenizer import find_tokenizer
from ov_weight_compression.ir_utils import option_kinds
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["Arrays", "is_text", "read_file", "rows_of", "sort_arrays"]

Arrays = Array | Mapping[str, Array]
"""One array, or several by name."""


def is_text(path: Path) -> bool:
    """Whether a file is read as text."""
    return path.suffix not in (".npy", ".npz")


def read_file(file: object, places: Sequence[Path | None], most: int | None = None) -> tuple[Arrays, str]:
    """What a file holds, and what to call it.

    Args:
        file: a path.
        places: files and folders in which a tokenizer for text is looked for.
        most: bytes of a text that are read; all.

    Raises:
        OptionError: there is no such file, it is damaged, holds nothing or something else; or text without a tokenizer.
        ModelError: the tokenizer is damaged.
        MissingExtraError: the tokenizer needs a package that is not installed.
    """
    path: Path = option_kinds.path().parse("data", file)
    if not path.is_file():
        raise OptionError(f"data={str(path)!r}: there is no such file")
    if not is_text(path):
        return load_arrays(path), path.name
    text = _read_text(path, most)
    tokenizer = find_tokenizer(places)
    return tokenizer.encode(text), f"{path.name} (through {Path(tokenizer.source).name})"


def _read_text(path: Path, most: int | None) -> str:
    try:
        with path.open("rb") as file:
            read = file.read(-1 if most is None else most)
            text = codecs.getincrementaldecoder("utf-8")().decode(read, final=not file.read(1))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"data={str(path)!r}: cannot be read as text ({error})") from error
    if not text.strip():
        raise OptionError(f"data={str(path)!r}: the file holds no text")
    return text


def sort_arrays(arrays: Arrays, inputs: ModelInputs, where: str = "") -> tuple[Array, ...] | dict[str, Array]:
    """What arrays are to a model: arrays of token ids, or inputs by name.

    Args:
        arrays: see the module.
        inputs: those of the model.
        where: what to say of the arrays' place in errors; the option.

    Raises:
        OptionError: they are neither.
    """
    where = where or inputs.option
    if not isinstance(arrays, Mapping):
        if inputs.takes_tokens:
            return (arrays,)
        if len(inputs.names) == 1:
            return {inputs.names[0]: arrays}
        raise OptionError(
            f"{where}: one array is not enough for a model with the inputs {inputs.listed}: give dictionaries "
            "or an .npz file with these names"
        )
    if not arrays:
        raise OptionError(f"{where}: there is no array in it")
    found = {inputs.find(name): array for name, array in arrays.items()}
    if set(found) == {inputs.ids} and inputs.takes_tokens and found[inputs.ids].ndim <= 2:
        return (found[inputs.ids],)
    if None not in found:
        return inputs.named(arrays)
    if inputs.takes_tokens and all(np.issubdtype(array.dtype, np.integer) for array in arrays.values()):
        return tuple(arrays.values())
    raise OptionError(
        f"{where}: its arrays ({', '.join(map(str, arrays))}) are not inputs of the model ({inputs.listed})"
    )


def rows_of(arrays: Mapping[str, Array], inputs: ModelInputs, batch: int | None) -> Iterator[dict[str, Array]]:
    """Inputs by name as they are run: taken apart along an additional axis, or cut into batches.

    Raises:
        OptionError: they cannot be cut, as they have not the same number of rows.
    """
    if not arrays:
        raise OptionError(f"{inputs.option}: a set of inputs is empty")
    sizes = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    same = len(set(sizes.values())) == 1
    if same and all(inputs.rank(name) == array.ndim - 1 for name, array in arrays.items()):
        for row in range(next(iter(sizes.values()))):
            yield {name: array[row] for name, array in arrays.items()}
    elif batch is None:
        yield dict(arrays)
    elif not same or 0 in sizes.values():
        told = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise OptionError(f"{inputs.option}: its arrays disagree about the number of rows, or have none: {told}")
    else:
        for start in range(0, next(iter(sizes.values())), batch):
            yield {name: array[start : start + batch] for name, array in arrays.items()}
