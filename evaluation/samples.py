"""What is going to be run: windows of text, or sets of inputs; read from what the caller gave, or made up.

Inputs for a model that came without data are made from its input shapes, always the same ones for the same model. Token
ids are drawn evenly from the vocabulary, other whole numbers below 10; masks are ones; numbers are standard normal.
Open axes are filled in: one sample at a time, 32 tokens or frames, pictures with 3 channels and the first usual size
that the model's own shapes agree with. `shapes` overrides any of it. Such inputs show that a model still works, and how
far its outputs moved on noise: they say little about its accuracy on real data, and a report made from them says what
it was made from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.generate import random_tokens
from ov_weight_compression.evaluation.comparison import DataFigures
from ov_weight_compression.evaluation.data import Data, Inputs, Source, read_data
from ov_weight_compression.evaluation.models import Feeder, Pair, input_name
from ov_weight_compression.evaluation.request import CompareRequest
from ov_weight_compression.evaluation.windows import Windows, cut_windows
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["SAMPLES", "Samples", "fitting_window", "prepare", "random_inputs"]

_SYNTHETIC_WINDOWS = 8


@dataclass(frozen=True, eq=False)
class Samples:
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


def prepare(pair: Pair, data: Source, request: CompareRequest) -> Samples:
    """Read the data, or make it up."""
    feeder = pair.base.feeder
    vocabulary = pair.base.logits.vocabulary if pair.base.logits else None
    if data is None:
        read = _made_up(pair, request, vocabulary)
    else:
        read = read_data(data, pair.base.feeder, pair.tokenizer_places(request.tokenizer), request.protocol.batch)
    longest = pair.base.longest_window()
    windows = cut_windows(read.tokens, request.cut, pair.base.usual_window()) if read.tokens else None
    is_text = pair.base.logits is not None and pair.compressed.logits is not None
    if not (is_text and windows) and (request.protocol.save_base or request.protocol.base_logits):
        raise OptionError("save_base, base_logits: only a language model's logits over token ids or text can be kept")
    sets = (feeder.tokens(tokens) for tokens in windows.tokens) if windows else iter(read.inputs or ())
    first = tuple(itertools.islice(sets, request.protocol.layer_samples if request.layers else 0))
    return Samples(
        source=read.source,
        synthesised=read.synthesised,
        is_text=is_text,
        windows=windows,
        ids=feeder.ids,
        notes=tuple(_remarks(read, windows, longest)),
        sets=itertools.chain(first, sets),
        first=first,
    )


def _made_up(pair: Pair, request: CompareRequest, vocabulary: int | None) -> Data:
    model, feeder = pair.base.model, pair.base.feeder
    wanted = request.windows
    usual_count = SAMPLES if vocabulary is None else _SYNTHETIC_WINDOWS
    if feeder.takes_tokens and not request.protocol.shapes:
        window = request.window or fitting_window(model, pair.base.usual_window())
        known = vocabulary or (feeder.language.vocabulary if feeder.language else 0)
        tokens = random_tokens(known, wanted or usual_count, window, _SEED)
        return Data("random token ids", tokens=(tokens,), synthesised=True)
    inputs = random_inputs(model, feeder, request.protocol.shapes, wanted or SAMPLES)
    first = next(inputs)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in first.items())
    return Data(f"random inputs: {shapes}", inputs=itertools.chain([first], inputs), synthesised=True)


def _remarks(read: Data, windows: Windows | None, longest: int | None) -> Iterator[str]:
    if read.synthesised:
        yield "The inputs were made up from the input shapes: this is no measure of accuracy on real data."
    if windows and longest and windows.window > longest:
        yield f"Windows of {windows.window} tokens are longer than the {longest} that the model was made for."


SAMPLES = 16
_SEED = 0
_LENGTH = 32
_FEW = 10
_PICTURE_SIZES = (224, 32, 64, 96, 112, 128, 160, 192, 256, 288, 299, 320, 336, 378, 384, 448, 512, 518, 640, 28, 30)
_SEQUENCES = ("input_ids", "attention_mask", "position_ids", "token_type_ids")


def fitting_window(model: ov.Model, window: int) -> int:
    """A window that the model's own shapes agree with: the given one, or a half, a quarter … of it."""
    ports = {input_name(port): port for port in model.inputs if input_name(port) in _SEQUENCES}
    while window > 2 and not _agrees(model, {name: (1, window) for name, port in ports.items() if _is_open(port)}):
        window //= 2
    return window


def _is_open(port: Any) -> bool:
    shape = port.get_partial_shape()
    return bool(shape.rank.is_static and shape.rank.get_length() == 2 and shape[1].is_dynamic)


def random_inputs(
    model: ov.Model, feeder: Feeder, shapes: Mapping[str, Sequence[int]] | None, samples: int
) -> Iterator[dict[str, Array]]:
    """Sets of random inputs, one after another.

    Raises:
        OptionError: `shapes` names no input of the model, or an axis can only be known by the caller.
    """
    wanted = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    strange = [name for name in wanted if name not in feeder.names]
    if strange:
        raise OptionError(f"shapes: the model has no input '{strange[0]}', only {', '.join(feeder.names)}")
    ports = {input_name(port): port for port in model.inputs}
    needed = {*wanted, *feeder.unknown({feeder.ids} if feeder.language else set())}
    drawn = {name: port for name, port in ports.items() if name in needed or name == feeder.ids}
    sizes = _sizes(model, drawn, wanted)
    rows = {name: feeder.language.vocabulary if feeder.language and name == feeder.ids else _FEW for name in drawn}
    random = np.random.default_rng(_SEED)
    for _ in range(samples):
        yield {name: _draw(name, port, sizes[name], rows[name], random) for name, port in drawn.items()}


def _draw(name: str, port: Any, size: tuple[int, ...], rows: int, random: np.random.Generator) -> Array:
    kind = port.get_element_type()
    if kind == ov.Type.boolean or "mask" in name:
        return np.ones(size)
    if name == "position_ids":
        return np.broadcast_to(np.arange(size[-1]), size)
    if name == "beam_idx":
        return np.arange(*size)
    if kind.is_integral():
        return random.integers(0, rows, size)
    return random.standard_normal(size, dtype=np.float32)


def _sizes(model: ov.Model, ports: dict[str, Any], wanted: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    pictures = [name for name, port in ports.items() if name not in wanted and _is_open_picture(port)]
    if not pictures:
        return {name: wanted.get(name) or _filled(name, port, None) for name, port in ports.items()}
    for side in _PICTURE_SIZES:
        sizes = {name: wanted.get(name) or _filled(name, port, side) for name, port in ports.items()}
        if _agrees(model, sizes):
            return sizes
    shape = ports[pictures[0]].get_partial_shape()
    raise OptionError(f"shapes: the size of '{pictures[0]}' {shape} cannot be guessed: give it, or real data")


def _is_open_picture(port: Any) -> bool:
    shape = port.get_partial_shape()
    return bool(shape.rank.is_static and shape.rank.get_length() == 4 and (shape[2].is_dynamic or shape[3].is_dynamic))


def _filled(name: str, port: Any, side: int | None) -> tuple[int, ...]:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise OptionError(f"shapes: the number of axes of '{name}' is open: give its shape, or real data")
    rank = shape.rank.get_length()
    usual = (1, 3, side or _LENGTH, side or _LENGTH) if rank == 4 else (1, *[_LENGTH] * (rank - 1))
    return tuple(
        dimension.get_length() if dimension.is_static else max(guess, dimension.get_min_length())
        for dimension, guess in zip(shape, usual, strict=True)
    )


def _agrees(model: ov.Model, sizes: dict[str, tuple[int, ...]]) -> bool:
    """Whether OpenVINO can work out all shapes of the model from these."""
    trial = model.clone()
    named = {input_name(port): port for port in trial.inputs}
    try:
        trial.reshape({named[name]: ov.PartialShape(list(size)) for name, size in sizes.items()})
    except RuntimeError:
        return False
    return True
