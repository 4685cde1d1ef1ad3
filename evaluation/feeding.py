"""Giving a model everything it wants to have beside the tokens.

Inputs are recognised by the names that exporters give them:

    input_ids           the tokens                    attention_mask   ones
    position_ids        0, 1, 2, … (rank 3: one row per rotary axis)
    token_type_ids      zeros                         beam_idx         0, 1, … per sequence
    past_key_values…    empty caches (a stateless model with a past); of a state-space model, zeros
    cache_position      0, 1, 2, …; for a state-space model, as long as its convolution, which is how it knows a start
    use_cache_branch    false

Integer types are the model's own. A dict of inputs is completed the same way, so a decoder that also wants
`encoder_hidden_states` gets those from the caller and the rest from here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["Feeder", "indexed_rows", "input_name"]

_PAST = ("past_key_values", "past_key", "past.", "cache_params.past")


def input_name(port: Any) -> str:
    """The name by which an input is known: the one that exporters use, where it has several."""
    names = sorted(port.get_names()) or [port.get_node().get_friendly_name()]
    return str(next((name for name in names if name in _FILLERS or name == "input_ids"), names[0]))


def indexed_rows(model: ov.Model, name: str) -> int | None:
    """The rows of the table that an input indexes: the vocabulary behind `input_ids`, the number of positions behind
    `position_ids`. None where the input goes into no table within a few operations."""
    front = [port for port in model.inputs if input_name(port) == name]
    shift = 0
    for _ in range(8):
        targets = [target for port in front for target in port.get_target_inputs()]
        for target in targets:
            node = target.get_node()
            table = node.input_value(0).get_partial_shape() if node.get_type_name() == "Gather" else None
            if target.get_index() == 1 and table is not None and table.rank.get_length() == 2 and table[0].is_static:
                return int(table[0].get_length()) - shift
        shift += sum(_added(target.get_node()) for target in targets)
        front = [target.get_node().output(0) for target in targets if target.get_index() == 0]
    return None


def _added(node: ov.Node) -> int:
    """What an Add of a whole number adds; OPT counts positions from 2."""
    if node.get_type_name() != "Add" or not isinstance(constant := node.input_value(1).get_node(), ov.op.Constant):
        return 0
    return int(constant.data.reshape(-1)[0]) if constant.data.size == 1 else 0


class Feeder:
    """Makes complete inputs for one model."""

    def __init__(self, model: ov.Model, what: str) -> None:
        self._what = what
        self._ports = {input_name(port): port for port in model.inputs}
        self._convolution = _convolution_length(model)

    @property
    def names(self) -> list[str]:
        """The model's inputs."""
        return list(self._ports)

    @property
    def takes_tokens(self) -> bool:
        """Whether token ids alone are enough."""
        return "input_ids" in self._ports and not self.unknown({"input_ids"})

    def rank(self, name: str) -> int | None:
        """Number of axes of an input; None for one that is not there or of no fixed rank."""
        rank = self._ports[name].get_partial_shape().rank if name in self._ports else None
        return int(rank.get_length()) if rank is not None and rank.is_static else None

    def unknown(self, given: set[str]) -> list[str]:
        """Inputs that are neither given nor known how to fill."""
        return [name for name in self._ports if name not in given and self._filler(name) is None]

    def tokens(self, tokens: npt.NDArray[np.int64]) -> dict[str, Array]:
        """All inputs for one sequence of token ids `[n]`."""
        return self.complete({"input_ids": tokens[None]})

    def complete(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Given inputs in the model's own types, with the rest filled in.

        Raises:
            OptionError: an input is missing that cannot be guessed, or one is given that the model does not have.
        """
        strange = [name for name in given if name not in self._ports]
        if strange:
            raise OptionError(f"data: {self._what} has no input {_quoted(strange)}, only {_quoted(self.names)}")
        missing = self.unknown(set(given))
        if missing:
            raise OptionError(f"data: {self._what} also needs {_quoted(missing)}: give them in a dict or an .npz file")
        ids = np.asarray(given["input_ids"]) if "input_ids" in given else None
        return {name: self._value(name, port, given, ids) for name, port in self._ports.items()}

    def _value(self, name: str, port: Any, given: Mapping[str, Any], ids: Array | None) -> Array:
        if name in given:
            value = np.asarray(given[name])
        else:
            filler = self._filler(name)
            if ids is None or ids.ndim != 2 or filler is None:
                raise OptionError(f"data: '{name}' of {self._what} can only be filled in beside input_ids [batch, n]")
            value = filler(self, port, ids)
        shape = port.get_partial_shape()
        if not shape.compatible(ov.PartialShape(list(value.shape))):
            raise OptionError(f"data: '{name}' is {list(value.shape)}, but {self._what} takes {shape}")
        return np.ascontiguousarray(value, dtype=_numpy_type(port, self._what))

    def _filler(self, name: str) -> Callable[[Feeder, Any, Array], Array] | None:
        return _past if name.startswith(_PAST) else _FILLERS.get(name)


def _positions(feeder: Feeder, port: Any, ids: Array) -> Array:
    row = np.arange(ids.shape[1])
    shape = port.get_partial_shape()
    if shape.rank.is_static and shape.rank.get_length() == 3:  # rotary positions of pictures: text has them all equal
        axes = shape[0].get_length() if shape[0].is_static else 3
        return np.broadcast_to(row, (axes, *ids.shape))
    return np.broadcast_to(row, ids.shape) if shape.rank.is_dynamic or shape.rank.get_length() == 2 else row


def _cache_positions(feeder: Feeder, port: Any, ids: Array) -> Array:
    return np.arange(feeder._convolution or ids.shape[1])


def _past(feeder: Feeder, port: Any, ids: Array) -> Array:
    """The first axis that is open is the batch, any other the length of the past, which is nothing yet."""
    sizes: list[int] = []
    batch = ids.shape[0]
    for dimension in port.get_partial_shape():
        if dimension.is_static:
            sizes.append(dimension.get_length())
        else:
            sizes.append(batch)
            batch = 0
    return np.zeros(sizes)


_FILLERS: dict[str, Callable[[Feeder, Any, Array], Array]] = {
    "attention_mask": lambda feeder, port, ids: np.ones(ids.shape),
    "position_ids": _positions,
    "token_type_ids": lambda feeder, port, ids: np.zeros(ids.shape),
    "beam_idx": lambda feeder, port, ids: np.arange(ids.shape[0]),
    "cache_position": _cache_positions,
    "use_cache_branch": lambda feeder, port, ids: np.zeros(1),
}


def _convolution_length(model: ov.Model) -> int | None:
    """The length of a state-space model's convolution: the last axis of the state that keeps its window."""
    states = [(variable.info.variable_id, variable.info.data_shape) for variable in model.get_variables()]
    states += [(input_name(port), port.get_partial_shape()) for port in model.inputs]
    for name, shape in states:
        if "past.conv" in name and shape.rank.is_static and shape[len(shape) - 1].is_static:
            return int(shape[len(shape) - 1].get_length())
    return None


def _numpy_type(port: Any, what: str) -> Any:
    try:
        return np.dtype(port.get_element_type().to_dtype())
    except RuntimeError as error:
        kind = port.get_element_type().get_type_name()
        raise ModelError(f"input '{input_name(port)}' of {what} is of type {kind}, which cannot be fed here") from error


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
