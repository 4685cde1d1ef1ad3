"""What is going to be run: windows of text, or sets of inputs; read from what the caller gave, or made up (see
`calibration.generate`): a report made from such inputs says what it was made from.

A stream `[n]` of token ids is cut into windows of `window` tokens, one starting every `stride` tokens, whole ones only
(a stream shorter than a window is one window of its own). An array `[windows, length]` is taken as it is. A list of
streams is cut one by one. Each window is run by itself, from an empty cache.

Which positions of a window are scored is said by `context`: its first `context` positions are not. Its default scores
every token once: 0 where windows do not overlap, `window - stride` where they do. llama.cpp's tool scores the second
half of each window, and leaves out the last position: `context=window // 2, score_last=False`.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_weight_compression.calibration.data_files import is_text, read_file, recorded_data, rows_of, sort_arrays
from ov_weight_compression.calibration.datasets import Told, readable
from ov_weight_compression.calibration.generate import fitting_window, random_inputs, random_tokens, written_tokens
from ov_weight_compression.calibration.model_inputs import LanguageModel, ModelInputs
from ov_weight_compression.evaluation.models import DEFAULT_WINDOW, Pair
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import PATH, count, flag, shapes, word
from ov_weight_compression.ir_utils.printing import thousands
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.passes.options import OPTIONS
from ov_weight_compression.patterns import GivenSources, Roles

_KINDS = {
    **{"stride": count(1), "context": count(0), "score_last": flag(), "batch": count(1), "shapes": shapes()},
    **{"layer_samples": count(0), "save_base": PATH, "base_logits": PATH},
    **{"window": count(2), "windows": count(1), "tokenizer": PATH, "device": word(), "as_deployed": flag()},
    **{"layers": flag(), "roles": OPTIONS["roles"].kind, "sources": OPTIONS["sources"].kind},
}


@dataclass(frozen=True)
class ComparisonProtocol:
    """How two models are compared, where that is to be as somebody else did it, or as it was done before.

        compare(base, int4, "text.txt", window=512, protocol=ComparisonProtocol(context=256, score_last=False))

    scores what llama.cpp's tool scores: the second half of each window, without its last position.

    Raises:
        OptionError: a value that cannot be; names it.
    """

    stride: int | None = None
    """Tokens from the start of one window to the next; the window."""
    context: int | None = None
    """Leading positions of each window that are not scored; 0, or `window - stride` where windows overlap."""
    score_last: bool = True
    """Whether the last position of a window, which has no next token, counts for KL and agreement."""
    batch: int | None = None
    """How many rows of given inputs to run at once; all."""
    shapes: Mapping[str, Sequence[int]] | None = None
    """Shapes of made-up inputs, by name."""
    layer_samples: int = 2
    """On how many windows or sets of inputs the layers' outputs are compared; 0 for weights alone."""
    save_base: str | PathLike[str] | None = None
    """Keep the base model's logits in this file."""
    base_logits: str | PathLike[str] | None = None
    """Read them from this file, and do not run the base model on the text again."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None or one.default is not None:  # None may stand where it is the default
                object.__setattr__(self, one.name, _KINDS[one.name].parse(one.name, value))
        if self.save_base and self.base_logits:
            raise OptionError("save_base, base_logits: give one of them, the logits are either written or read")
        if self.save_base and not Path(self.save_base).parent.is_dir():
            raise OptionError(f"save_base={str(self.save_base)!r}: there is no folder {Path(self.save_base).parent}")


@dataclass(frozen=True, kw_only=True)
class CompareRequest(ComparisonProtocol):
    """The protocol and the other arguments of `compare`, whose docstring says what each of them means, but for the
    models and the data."""

    window: int | None = None
    windows: int | None = None
    tokenizer: str | PathLike[str] | None = None
    device: str = "CPU"
    as_deployed: bool = False
    layers: bool = True
    roles: Roles | None = None
    sources: GivenSources | None = None


NO_TOKEN = -1
"""What stands for the next token where there is none."""
_Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows of token ids, and which of their positions are scored."""

    tokens: tuple[_Tokens, ...]
    window: int
    """Length of the longest."""
    stride: int
    context: int
    score_last: bool

    @property
    def positions(self) -> int:
        """Scored positions of all windows."""
        return sum(max(0, len(tokens) - self.context - (not self.score_last)) for tokens in self.tokens)

    @property
    def digest(self) -> str:
        """SHA-256 of the windows, their lengths included."""
        sha = hashlib.sha256()
        for tokens in self.tokens:
            sha.update(len(tokens).to_bytes(8, "little"))
            sha.update(tokens.astype("<i8").tobytes())
        return sha.hexdigest()


def cut_windows(arrays: Iterable[Array], request: CompareRequest, usual: int = DEFAULT_WINDOW) -> Windows:
    """Cut arrays of token ids into windows.

    Args:
        arrays: integer arrays `[n]` or `[windows, length]`.
        request: how they are cut and which positions count; None takes the default that this module describes.
        usual: the window where none was asked for.

    Raises:
        OptionError: nothing is left to score, or an array holds no token ids.
    """
    window = request.window or usual
    stride = request.stride or window
    pieces: list[_Tokens] = []
    for array in arrays:
        if not np.issubdtype(array.dtype, np.integer):
            raise OptionError(f"data: token ids must be whole numbers, this array holds {array.dtype}")
        if array.ndim not in (1, 2):
            raise OptionError(f"data: token ids must be [n] or [windows, length], this array is {list(array.shape)}")
        if array.size and int(array.min()) < 0:
            raise OptionError(f"data: token ids must not be negative, this array holds {int(array.min())}")
        tokens = array.astype(np.int64)
        if tokens.ndim == 1 and len(tokens) >= window:
            pieces += [tokens[start : start + window] for start in range(0, len(tokens) - window + 1, stride)]
        else:
            pieces += [piece for piece in np.atleast_2d(tokens) if len(piece) > 1]
    pieces = pieces[: request.windows]
    context = max(window - stride, 0) if request.context is None else request.context
    found = Windows(tuple(pieces), max(map(len, pieces), default=0), stride, context, request.score_last)
    if not pieces:
        raise OptionError("data: there is no window of at least 2 tokens in it")
    if context >= found.window - 1:
        raise OptionError(f"context={context}: no window of {found.window} tokens has a position left to score")
    return found


@dataclass(frozen=True)
class Batch:
    """The inputs of one run, and which of its positions are scored."""

    inputs: Mapping[str, Array]
    tokens: npt.NDArray[np.int64]
    """`[batch, n]`"""
    chosen: npt.NDArray[np.bool_]
    """`[batch, n]`: which positions are scored."""
    following: npt.NDArray[np.int64]
    """The next token of each scored position, in order; -1 for none."""


LogitsOf = Callable[[Batch], Float32]
"""Logits `[scored positions, vocabulary]` of the next batch."""


def batches_of(sets: Iterable[Mapping[str, Array]], ids: str, context: int, score_last: bool) -> Iterator[Batch]:
    """A batch for each set of inputs, with token ids in `ids`. Where `attention_mask` is 0 nothing is scored, and no
    token is a next one."""
    for inputs in sets:
        if ids not in inputs or np.asarray(inputs[ids]).ndim != 2:
            raise OptionError(f"data: a set of inputs of a language model must hold {ids} [batch, n]")
        tokens = np.asarray(inputs[ids]).astype(np.int64)
        mask = np.asarray(inputs.get("attention_mask", np.ones(tokens.shape))).astype(bool)
        if mask.shape != tokens.shape:
            raise OptionError(f"data: attention_mask is {list(mask.shape)}, input_ids are {list(tokens.shape)}")
        following = np.full(tokens.shape, NO_TOKEN, dtype=np.int64)
        following[:, :-1] = np.where(mask[:, 1:], tokens[:, 1:], NO_TOKEN)
        chosen = mask & ((following != NO_TOKEN) | score_last)
        chosen[:, :context] = False
        yield Batch(inputs, tokens, chosen, following[chosen])


_WINDOWS = 8
"""Of token ids, where a language model came without data: those that it writes itself, or else random ones."""
_SETS = 16
"""Of random inputs, where any other model did."""
_WRITTEN = "text that the base model wrote itself"
_OF_WRITTEN = (
    "The base model wrote the text itself, as it believes text to be: good for comparing ways of compression with each "
    "other; what matters to you is text of your own."
)
_OF_RANDOM = "The inputs were made up from the input shapes: this is no measure of accuracy on real data."
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


@dataclass(frozen=True)
class DataFigures:
    """What both models were run on."""

    source: str
    synthesised: bool
    """Made up from the input shapes: such figures say little about accuracy on real data."""
    samples: int
    """Windows of text, or sets of inputs."""
    window: int | None = None
    """Tokens to a window; None for other models."""
    stride: int | None = None
    context: int | None = None
    """Leading positions of each window that are not scored."""
    score_last: bool | None = None
    """Whether the last position of each window, which has no next token, counts for KL and agreement."""

    @property
    def told(self) -> str:
        """In words: where the data came from, and how much of it."""
        return f"{self.source}, {thousands(self.samples)} " + (
            f"windows of {self.window} tokens" if self.window else "samples"
        )


@dataclass(frozen=True, eq=False)
class InputSets:
    """The sets of inputs to run."""

    data: DataFigures
    """What is said of them; how many they are is known when they have been run."""
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
    places: Sequence[Path | None]
    """Where a tokenizer is looked for: what was given, else the models' folders."""


def prepare(pair: Pair, data: CompareData, request: CompareRequest) -> InputSets:
    """Read the data, or make it up."""
    ids, longest = pair.base.inputs.ids, pair.base.longest_window
    places = [one.path and one.path.parent for one in (pair.base, pair.compressed)]
    places = [Path(request.tokenizer)] if request.tokenizer else places
    if isinstance(data, (str, PathLike)) and (folder := PATH.parse("data", data)).is_dir():
        data = recorded_data(folder, [pair.base.path])
    read = _made_up(pair, request) if data is None else open_data(data, pair.base.inputs, places, request.batch)
    windows = cut_windows(read.tokens, request, pair.base.usual_window) if read.tokens else None
    is_text = pair.base.logits is not None and pair.compressed.logits is not None
    if not (is_text and windows) and (request.save_base or request.base_logits):
        raise OptionError("save_base, base_logits: only a language model's logits over token ids or text can be kept")
    figures = DataFigures(read.source, read.synthesised, 0)
    if windows:
        scored = (windows.context, windows.score_last) if is_text else ()
        figures = DataFigures(read.source, read.synthesised, 0, windows.window, windows.stride, *scored)
    sets = ({ids: tokens[None]} for tokens in windows.tokens) if windows else iter(read.inputs or ())
    first = tuple(itertools.islice(sets, request.layer_samples if request.layers else 0))
    notes = [_OF_WRITTEN if read.source == _WRITTEN else _OF_RANDOM] if read.synthesised else []
    if windows and longest and windows.window > longest:
        notes.append(f"Windows of {windows.window} tokens are longer than the {longest} that the model was made for.")
    return InputSets(figures, is_text, windows, ids, tuple(notes), itertools.chain(first, sets), first, places)


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
    found: tuple[Array, ...] | dict[str, Array] | None = None
    if isinstance(data, (str, PathLike)):
        file: Path = PATH.parse("data", data)
        if file.is_file() and is_text(file) and not inputs.takes_tokens:
            raise OptionError(
                f"data={str(file)!r}: text is for models that take input_ids alone; this one takes {inputs.listed}: "
                "give its inputs as an .npz file"
            )
        read, source = read_file(file, places)
        found = sort_arrays(read, inputs, f"data={str(file)!r}")
    elif isinstance(data, np.ndarray):
        found, source = sort_arrays(data, inputs), "an array"
    elif isinstance(data, Mapping):
        found, source = inputs.named(data), "inputs by name"
    if isinstance(found, tuple):
        return Data(source, tokens=found)
    if found is not None:
        return Data(source, inputs=rows_of(found, inputs, batch))
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


def _made_up(pair: Pair, request: CompareRequest) -> Data:
    model, inputs, language = pair.base.model, pair.base.inputs, pair.base.inputs.language
    vocabulary = pair.base.logits.vocabulary if pair.base.logits else None
    if language is not None and inputs.takes_tokens and not request.shapes:
        count = request.windows or (_SETS if vocabulary is None else _WINDOWS)
        window = request.window or fitting_window(model, pair.base.usual_window)
        written = _written(model, language, count, window)
        if written is not None:
            return Data(_WRITTEN, tokens=(written,), synthesised=True)
        tokens = random_tokens(vocabulary or language.vocabulary, count, window, 0)
        return Data("random token ids", tokens=(tokens,), synthesised=True)
    drawn = random_inputs(model, inputs, request.shapes or {}, request.windows or _SETS)
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
