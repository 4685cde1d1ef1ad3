"""What is going to be run: windows of text, or sets of inputs; read from what the caller gave, or made up (see
`calibration.generate`): a report made from such inputs says what it was made from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.data_files import is_text, read_file, recorded_data, rows_of, sort_arrays
from ov_weight_compression.calibration.datasets import Told, readable
from ov_weight_compression.calibration.generate import fitting_window, random_inputs, random_tokens, written_tokens
from ov_weight_compression.calibration.language_model import LanguageModel
from ov_weight_compression.calibration.model_inputs import ModelInputs
from ov_weight_compression.evaluation.comparison import DataFigures
from ov_weight_compression.evaluation.models import Pair
from ov_weight_compression.evaluation.request import CompareRequest
from ov_weight_compression.evaluation.windows import Windows, cut_windows
from ov_weight_compression.ir_utils import option_kinds
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["CompareData", "Data", "InputSets", "Inputs", "open_data", "prepare"]

_WINDOWS = 8
"""Of token ids, where a language model came without data: those that it writes itself, or else random ones."""
_SETS = 16
"""Of random inputs, where any other model did."""
_WRITTEN = "text that the base model wrote itself"
_SEED = 1
"""Not that of calibration: what a model was calibrated on would flatter it."""


CompareData: TypeAlias = (
    "str | PathLike[str] | Array | Mapping[str, Array] | Iterable[Array | Mapping[str, Array]] | None"
)
Inputs: TypeAlias = "Mapping[str, Array]"


@dataclass(frozen=True)
class Data:
    """Either `tokens` or `inputs` is there."""

    source: str
    """Where it came from, in words."""
    tokens: tuple[Array, ...] = ()
    inputs: Iterable[Inputs] | None = None
    synthesised: bool = False


@dataclass(frozen=True, eq=False)
class InputSets:
    """The sets of inputs to run."""

    source: str
    synthesised: bool
    is_text: bool
    """Whether predictions are compared, not outputs."""
    windows: Windows | None
    """Where the data are token ids."""
    ids: str
    """The input of token ids."""
    notes: tuple[str, ...]
    sets: Iterable[Inputs]
    """All of them, to be gone through once."""
    first: tuple[Inputs, ...]
    """Those on which the layers' outputs are compared."""

    def figures(self, count: int) -> DataFigures:
        """What to say of the data, after `count` of them were run."""
        found = self.windows
        if found is None:
            return DataFigures(self.source, self.synthesised, count)
        if not self.is_text:
            return DataFigures(self.source, self.synthesised, count, found.window, found.stride)
        return DataFigures(
            self.source, self.synthesised, count, found.window, found.stride, found.context, found.score_last
        )


def prepare(pair: Pair, data: CompareData, request: CompareRequest) -> InputSets:
    """Read the data, or make it up."""
    inputs = pair.base.inputs
    vocabulary = pair.base.logits.vocabulary if pair.base.logits else None
    if data is None:
        read = _made_up(pair, request, vocabulary)
    else:
        if isinstance(data, (str, PathLike)) and Path(data).is_dir():
            data = recorded_data(Path(data), [pair.base.path])
        read = open_data(data, pair.base.inputs, pair.tokenizer_places(request.tokenizer), request.protocol.batch)
    longest = pair.base.longest_window()
    windows = cut_windows(read.tokens, request, pair.base.usual_window()) if read.tokens else None
    is_text = pair.base.logits is not None and pair.compressed.logits is not None
    if not (is_text and windows) and (request.protocol.save_base or request.protocol.base_logits):
        raise OptionError("save_base, base_logits: only a language model's logits over token ids or text can be kept")
    sets = ({inputs.ids: tokens[None]} for tokens in windows.tokens) if windows else iter(read.inputs or ())
    first = tuple(itertools.islice(sets, request.protocol.layer_samples if request.layers else 0))
    return InputSets(
        source=read.source,
        synthesised=read.synthesised,
        is_text=is_text,
        windows=windows,
        ids=inputs.ids,
        notes=tuple(_remarks(read, windows, longest)),
        sets=itertools.chain(first, sets),
        first=first,
    )


def open_data(data: CompareData, inputs: ModelInputs, places: Sequence[Path | None], batch: int | None) -> Data:
    """Read what the caller gave (anything but None).

    Args:
        data: a file (see `calibration.data_files`), an array, inputs by name, or any number of arrays or inputs.
        inputs: those of the base model.
        places: files and folders in which a tokenizer is looked for.
        batch: rows of a set of inputs to run at once.

    Raises:
        OptionError: the data is missing, of no known kind, or does not fit the model's inputs.
    """
    if isinstance(data, (str, PathLike)):
        return _read_file(option_kinds.path().parse("data", data), inputs, places, batch)
    if isinstance(data, np.ndarray):
        return _sorted(sort_arrays(data, inputs), "an array", inputs, batch)
    if isinstance(data, Mapping):
        return Data("inputs by name", inputs=rows_of(inputs.named(data), inputs, batch))
    data = data if isinstance(data, Iterator) else readable(data, "data")
    if not isinstance(data, Iterable):
        raise OptionError(f"data: {type(data).__name__} is not a file, an array, a dict or an iterable of those")
    items = iter(Told(data, "data"))
    first = next(items, None)
    if first is None:
        raise OptionError("data: it is empty")
    every = itertools.chain([first], items)
    if inputs.takes_tokens and not isinstance(first, (Mapping, tuple)):
        arrays = [inputs.array(item, number) for number, item in enumerate(every, 1)]
        arrays = arrays if arrays[0].ndim else [np.array(arrays)]  # a plain list of token ids
        return Data("arrays of token ids", tokens=tuple(arrays))
    named = (inputs.named(item, number) for number, item in enumerate(every, 1))
    source = "arrays" if not isinstance(first, (Mapping, tuple)) else "inputs by name"
    return Data(source, inputs=(row for item in named for row in rows_of(item, inputs, batch)))


def _read_file(path: Path, inputs: ModelInputs, places: Sequence[Path | None], batch: int | None) -> Data:
    if path.is_file() and is_text(path) and not inputs.takes_tokens:
        raise OptionError(
            f"data={str(path)!r}: text is for models that take input_ids alone; this one takes {inputs.listed}: give "
            "its inputs as an .npz file"
        )
    arrays, source = read_file(path, places)
    return _sorted(sort_arrays(arrays, inputs, f"data={str(path)!r}"), source, inputs, batch)


def _sorted(found: tuple[Array, ...] | dict[str, Array], source: str, inputs: ModelInputs, batch: int | None) -> Data:
    if isinstance(found, tuple):
        return Data(source, tokens=found)
    return Data(source, inputs=rows_of(found, inputs, batch))


def _made_up(pair: Pair, request: CompareRequest, vocabulary: int | None) -> Data:
    model, inputs = pair.base.model, pair.base.inputs
    wanted = request.windows
    usual_count = _SETS if vocabulary is None else _WINDOWS
    if inputs.takes_tokens and not request.protocol.shapes:
        window = request.window or fitting_window(model, pair.base.usual_window())
        language = inputs.language
        written = None if language is None else _written(model, language, wanted or usual_count, window)
        if written is not None:
            return Data(_WRITTEN, tokens=(written,), synthesised=True)
        known = vocabulary or (language.vocabulary if language else 0)
        tokens = random_tokens(known, wanted or usual_count, window, 0)
        return Data("random token ids", tokens=(tokens,), synthesised=True)
    drawn = random_inputs(model, inputs, request.protocol.shapes or {}, wanted or _SETS)
    first = next(drawn)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in first.items())
    return Data(f"random inputs: {shapes}", inputs=itertools.chain([first], drawn), synthesised=True)


def _written(model: ov.Model, language: LanguageModel, windows: int, length: int) -> Array | None:
    """Text that a model writes, `[windows, length]`; None where it cannot."""
    if not language.predicts:
        return None
    for together in dict.fromkeys((windows, 1)):  # a state of fixed shape may hold one text alone
        try:
            runs = range(windows // together)
            texts = [written_tokens(model, language, together, length, _SEED + run, quiet=True) for run in runs]
            return np.concatenate(texts)
        except RuntimeError:  # OpenVINO's
            continue
    return None


def _remarks(read: Data, windows: Windows | None, longest: int | None) -> Iterator[str]:
    if read.source == _WRITTEN:
        yield (
            "The base model wrote the text itself, as it believes text to be: good for comparing ways of compression "
            "with each other; what matters to you is text of your own."
        )
    elif read.synthesised:
        yield "The inputs were made up from the input shapes: this is no measure of accuracy on real data."
    if windows and longest and windows.window > longest:
        yield f"Windows of {windows.window} tokens are longer than the {longest} that the model was made for."
