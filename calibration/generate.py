"""Data for those who have none: token ids drawn at random or written by the model itself, inputs made of their shapes.

Random ids already show which input channels are large, which is all that a weighted scale search asks. What a model
writes at temperature 1, from a random first token, is distributed as it believes text to be: it serves every algorithm.
Both depend on the seed alone (written text also on the last bits of the model's arithmetic).

Inputs of other models are made from their shapes, always the same ones for the same model: whole numbers below 10, or
token ids; masks are ones; numbers are standard normal. Open axes are filled in: one sample at a time, 32 tokens or
frames, pictures with 3 channels and the first usual size that the model's own shapes agree with. Such inputs show that
a model still works, and how far its outputs moved on noise: they say little about its accuracy on real data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.model_inputs import (
    LanguageModel,
    ModelInputs,
    has_open_axis,
    input_label,
    read_language_model,
    shapes_agree,
)
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.printing import progress_bar
from ov_weight_compression.ir_utils.types import Array

_BLOCK = 256
_HUGE = 1e30

_SEED = 0
_LENGTH = 32
_FEW = 10
_PICTURE_SIZES = (224, 32, 64, 96, 112, 128, 160, 192, 256, 288, 299, 320, 336, 378, 384, 448, 512, 518, 640, 28, 30)
_SEQUENCES = ("input_ids", "attention_mask", "position_ids", "token_type_ids")


def random_tokens(vocabulary: int, windows: int, length: int, seed: int) -> NDArray[np.int64]:
    """Uniformly drawn token ids, `[windows, length]`."""
    return np.random.default_rng(seed).integers(0, vocabulary, (windows, length), dtype=np.int64)


def written_tokens(
    model: ov.Model, language: LanguageModel, windows: int, length: int, seed: int, *, quiet: bool = False
) -> NDArray[np.int64]:
    """Text that the model writes, `[windows, length]`, all windows side by side in one batch.

    The whole model is compiled for this, and its KV cache holds `windows · length` tokens.
    """
    if not language.predicts:
        raise OptionError("dataset='self': the model does not write text (no cache and no output over a vocabulary)")
    stateful = bool(model.get_variables())
    request = ov.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request()
    ports = {input_label(node): port for port, node in enumerate(model.get_parameters())}
    logits = next(
        port
        for port, result in enumerate(model.get_results())
        if len(shape := result.get_input_partial_shape(0)) == 3
        and shape[2].is_static
        and 2 * shape[2].get_length() > language.vocabulary
    )
    rng, parts, size = np.random.default_rng(seed), [], language.batch or windows
    with progress_bar(quiet=quiet) as bar:
        advance = bar.start("Writing calibration text", -(-windows // size) * length)
        for _ in range(-(-windows // size)):
            tokens = rng.integers(0, language.vocabulary, (size, 1), dtype=np.int64)
            if stateful:
                request.reset_state()
            while tokens.shape[1] < length:
                # A model without variables reads everything again.
                ids, past = (tokens[:, -1:], tokens.shape[1] - 1) if stateful else (tokens, 0)
                request.infer({ports[name]: array for name, array in language.inputs(ids, past=past).items()})
                last = np.array(request.get_output_tensor(logits).data[:, -1], np.float32)
                following = _drawn(last[:, : language.vocabulary], rng)
                tokens = np.concatenate([tokens, following[:, None]], axis=1)
                advance(1)
            parts.append(tokens)
    return np.concatenate(parts)[:windows]


def written_windows(model: ov.Model, windows: int, length: int, *, quiet: bool = False) -> NDArray[np.int64] | None:
    """Text that the model writes where it can, in windows as long as it takes; drawn ids where it only reads; None for
    a model that wants more than token ids."""
    language = read_language_model(model)
    if language is None or not language.needs_only_ids:
        return None
    length = language.window_length(length)
    if not language.predicts:
        return random_tokens(language.vocabulary, windows, length, _SEED)
    return written_tokens(model, language, windows, length, _SEED, quiet=quiet)


def _drawn(logits: NDArray[Any], rng: np.random.Generator) -> NDArray[np.int64]:
    """One token id for each row, with the probability that softmax gives it: first a block of ids, then one in it."""
    rows, ids = logits.shape
    logits = np.nan_to_num(logits, nan=0.0, posinf=_HUGE, neginf=-_HUGE)  # a model that overflows writes at random
    shares = np.zeros((rows, -(-ids // _BLOCK) * _BLOCK), np.float32)
    np.exp(logits - logits.max(1, keepdims=True), out=shares[:, :ids])
    blocks = shares.reshape(rows, -1, _BLOCK)
    sums = blocks.sum(2, dtype=np.float64)
    upto = sums.cumsum(1)
    drawn = rng.random(rows) * upto[:, -1]
    every = np.arange(rows)
    block = np.minimum((upto <= drawn[:, None]).sum(1), upto.shape[1] - 1)
    rest = drawn - (upto[every, block] - sums[every, block])
    within = (blocks[every, block].cumsum(1, dtype=np.float64) <= rest[:, None]).sum(1)
    picked: NDArray[np.int64] = np.minimum(block * _BLOCK + np.minimum(within, _BLOCK - 1), ids - 1).astype(np.int64)
    return picked


def fitting_window(model: ov.Model, window: int) -> int:
    """A window that the model's own shapes agree with: the given one, or a half, a quarter … of it."""
    names = [name for name, node in _inputs(model).items() if name in _SEQUENCES and has_open_axis(node, 2, (1,))]
    while window > 2 and not _agrees(model, dict.fromkeys(names, (1, window))):
        window //= 2
    return window


def random_inputs(
    model: ov.Model, inputs: ModelInputs, shapes: Mapping[str, Sequence[int]], samples: int
) -> Iterator[dict[str, Array]]:
    """Sets of random inputs, one after another; `shapes` are those that the caller gave, by name.

    Raises:
        OptionError: `shapes` names no input of the model, or an axis can only be known by the caller.
    """
    wanted: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        name = inputs.find(key)
        if name is None:
            raise OptionError(f"shapes: the model has no input '{key}', only {inputs.listed}")
        wanted[name] = tuple(shape)
    needed = {*wanted, *inputs.missing({inputs.ids} if inputs.language else set())}
    drawn = {name: node for name, node in _inputs(model).items() if name in needed or name == inputs.ids}
    sizes = _sizes(model, drawn, wanted)
    vocabulary = inputs.language.vocabulary if inputs.language else _FEW
    random = np.random.default_rng(_SEED)
    for _ in range(samples):
        yield {
            name: _draw(name, node, sizes[name], vocabulary if name == inputs.ids else _FEW, random)
            for name, node in drawn.items()
        }


def _inputs(model: ov.Model) -> dict[str, ov.Node]:
    return {input_label(node): node for node in model.get_parameters()}


def _draw(name: str, node: ov.Node, size: tuple[int, ...], rows: int, random: np.random.Generator) -> Array:
    kind = node.get_output_element_type(0)
    if kind == ov.Type.boolean or "mask" in name:
        return np.ones(size)
    if name == "position_ids":
        return np.broadcast_to(np.arange(size[-1]), size)
    if name == "beam_idx":
        return np.arange(*size)
    if kind.is_integral():
        return random.integers(0, rows, size)
    return random.standard_normal(size, dtype=np.float32)


def _sizes(
    model: ov.Model, nodes: Mapping[str, ov.Node], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    pictures = [name for name, node in nodes.items() if name not in wanted and has_open_axis(node, 4, (2, 3))]
    if not pictures:
        return {name: wanted.get(name) or _filled(name, node, None) for name, node in nodes.items()}
    for side in _PICTURE_SIZES:
        sizes = {name: wanted.get(name) or _filled(name, node, side) for name, node in nodes.items()}
        if _agrees(model, sizes):
            return sizes
    shape = nodes[pictures[0]].get_output_partial_shape(0)
    raise OptionError(f"shapes: the size of '{pictures[0]}' {shape} cannot be guessed: give it, or real data")


def _filled(name: str, node: ov.Node, side: int | None) -> tuple[int, ...]:
    shape = node.get_output_partial_shape(0)
    if shape.rank.is_dynamic:
        raise OptionError(f"shapes: the number of axes of '{name}' is open: give its shape, or real data")
    rank = shape.rank.get_length()
    usual = (1, 3, side or _LENGTH, side or _LENGTH) if rank == 4 else (1, *[_LENGTH] * (rank - 1))
    return tuple(
        dimension.get_length() if dimension.is_static else max(guess, dimension.get_min_length())
        for dimension, guess in zip(shape, usual, strict=True)
    )


def _agrees(model: ov.Model, sizes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether OpenVINO can work out all shapes of the model from these, by the inputs' labels."""
    numbers = {name: number for number, name in enumerate(_inputs(model))}
    return shapes_agree(model, {numbers[name]: ov.PartialShape(list(size)) for name, size in sizes.items()})
