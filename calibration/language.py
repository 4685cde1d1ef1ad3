"""What calibration needs to know of a language model, read from its graph: how to feed it nothing but token ids.

Exporters agree on the inputs' names. `input_ids [batch, length]` is the data; everything else follows from it for a
window that starts with an empty cache:

    attention_mask  [batch, length]    ones (over the cache too, but not in Mamba)
    position_ids    [batch, length]    0, 1, 2, …  ([3, batch, length] for models with several position axes)
    token_type_ids  [batch, length]    zeros
    beam_idx        [batch]            0, 1, … batch − 1
    cache_position  [length]           0, 1, 2, …  (Mamba: as many as its convolution has taps)
    past_key_values.*                  empty: zeros where a dimension is dynamic
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.positions import input_names, longest_window
from ov_weight_compression.ir_utils.errors import OptionError

__all__ = ["LanguageModel", "input_label", "input_names", "read_language_model"]

_IDS = ("input_ids", "decoder_input_ids")
_PASSING = ("Convert", "Reshape", "Unsqueeze", "Squeeze", "Add", "Clamp", "Maximum")


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model whose data is token ids, and everything else can be made up."""

    ids: str
    """Friendly name of the input that takes the token ids."""
    vocabulary: int
    """Number of token ids that the model knows."""
    positions: int | None
    """Longest window that its positions allow, as far as the graph tells; None where it names no limit."""
    length: int | None
    """The window length that the input's shape prescribes, None where any will do."""
    batch: int | None
    """The batch size that the input's shape prescribes, None where any will do."""
    predicts: bool
    """It has an output `[batch, length, vocabulary]`: it can write text itself."""
    parameters: tuple[ov.Node, ...]
    conv_taps: int | None

    @property
    def needs_only_ids(self) -> bool:
        """Whether all other inputs follow from the token ids: not where it looks at a picture or at an encoder."""
        try:
            self.inputs(np.zeros((self.batch or 1, 1), np.int64))
        except OptionError:
            return False
        return True

    def inputs(
        self, ids: NDArray[Any], given: dict[str, NDArray[Any]] | None = None, *, past: int = 0
    ) -> dict[str, NDArray[Any]]:
        """All inputs of the model by friendly name, for token ids `[batch, length]`; those `given` are kept.

        `past` is the number of tokens that a stateful model has read already and holds in its cache.
        Raises OptionError where an input is neither given nor follows from the token ids.
        """
        found = dict(given or {})
        for node in self.parameters:
            name = node.get_friendly_name()
            if name == self.ids:
                found[name] = ids.astype(_dtype(node))
            elif name not in found:
                found[name] = self._made_up(node, ids.shape[0], ids.shape[1], past).astype(_dtype(node))
        return found

    def _made_up(self, node: ov.Node, batch: int, length: int, past: int) -> NDArray[Any]:
        names = input_names(node)
        shape = node.get_output_partial_shape(0)
        if "attention_mask" in names and len(shape) == 2:
            return np.ones((batch, length if self.conv_taps is not None else past + length))
        if "position_ids" in names and len(shape) in (2, 3):
            lead = [dim.get_length() if dim.is_static else 1 for dim in list(shape)[:-2]]
            return np.broadcast_to(np.arange(past, past + length), (*lead, batch, length))
        if "token_type_ids" in names:
            return np.zeros((batch, length))
        if "beam_idx" in names:
            return np.arange(batch)
        if "cache_position" in names:
            if self.conv_taps is not None:
                return np.arange(self.conv_taps) if not past else np.array([self.conv_taps])
            return np.arange(past, past + length)
        if any(name.startswith("past") for name in names):
            sizes = [dim.get_length() if dim.is_static else 0 for dim in shape]
            return np.zeros([batch, *sizes[1:]])
        raise OptionError(
            f"dataset: the model's input '{input_label(node)}' {shape} does not follow from token ids: "
            f"give dictionaries that hold it, with the keys {', '.join(map(input_label, self.parameters))}"
        )


def read_language_model(model: ov.Model) -> LanguageModel | None:
    """Look for the input of token ids and the size of its vocabulary; None where the model has none."""
    parameters = tuple(model.get_parameters())
    ids = next((node for node in parameters if set(_IDS) & input_names(node)), None)
    if ids is None:
        integers = [p for p in parameters if p.get_output_element_type(0).to_string() in ("i64", "i32")]
        ids = integers[0] if len(integers) == 1 == len(parameters) and _table(integers[0]) else None
    if ids is None or len(ids.get_output_partial_shape(0)) != 2:
        return None
    table = _table(ids)
    heads = [
        int(shape[2].get_length())
        for shape in (result.get_input_partial_shape(0) for result in model.get_results())
        if shape.rank.is_static and len(shape) == 3 and shape[2].is_static
    ]
    vocabulary = table or max(heads, default=0)
    if not vocabulary:
        return None
    batch, length = (dim.get_length() if dim.is_static else None for dim in ids.get_output_partial_shape(0))
    return LanguageModel(
        ids=str(ids.get_friendly_name()),
        vocabulary=vocabulary,
        positions=longest_window(model, parameters, ids) if length is None else None,
        length=length,
        batch=batch,
        # Vocabularies are padded to round numbers at one end or the other, so the two need not agree to the last id.
        predicts=any(2 * head > vocabulary for head in heads) and _looks_back(model, parameters),
        parameters=parameters,
        conv_taps=_conv_taps(model),
    )


def input_label(node: ov.Node) -> str:
    """The name to call a model input by: the first of its tensor's, else its friendly name."""
    return min(map(str, node.output(0).get_names()), default=str(node.get_friendly_name()))


def _dtype(node: ov.Node) -> np.dtype[Any]:
    dtype: np.dtype[Any] = np.dtype(node.get_output_element_type(0).to_dtype())
    return dtype


def _looks_back(model: ov.Model, parameters: tuple[ov.Node, ...]) -> bool:
    """Whether the model keeps what it has read, as only a model that writes does: a cache, in variables or inputs."""
    past = any(name.startswith("past") for node in parameters for name in input_names(node))
    return past or bool(model.get_variables())


def _table(node: ov.Node) -> int | None:
    """Rows of the table that a Gather looks the values of this input up in, less a constant added on the way."""
    for gather, offset in _gathers(node.output(0), 0, 4):
        shape = gather.get_input_partial_shape(0)
        if shape.is_static and len(shape) == 2:
            return int(shape[0].get_length()) - offset
    return None


def _gathers(value: ov.Output, offset: int, depth: int) -> Iterator[tuple[ov.Node, int]]:
    """The Gathers that use a tensor as their indices, behind a few operations that keep the values."""
    for port in value.get_target_inputs():
        node = port.get_node()
        if node.get_type_name() == "Gather" and port.get_index() == 1:
            yield node, offset
        elif depth and node.get_type_name() in _PASSING:
            added = 0
            if node.get_type_name() == "Add":
                other = node.input_value(1 - port.get_index()).get_node()
                if other.get_type_name() != "Constant" or other.data.size != 1:
                    continue
                added = int(other.data.reshape(-1)[0])
            yield from _gathers(node.output(0), offset + added, depth - 1)


def _conv_taps(model: ov.Model) -> int | None:
    """Taps of a state space model's convolution: the last dimension of the state that holds its window."""
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue" and ".conv" in node.get_attributes()["variable_id"]:
            last = node.get_output_partial_shape(0)[-1]
            return int(last.get_length()) if last.is_static else None
    return None
