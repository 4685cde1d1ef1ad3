"""Giving a model everything it wants to have beside the tokens or the inputs that a caller gave.

What follows from token ids (masks, positions, beam indices, empty caches) is known to `calibration.language`; here it
is completed with what the caller gave, under the names that inputs have in the model, and brought to the model's types.
So a decoder that also wants `encoder_hidden_states` gets those from the caller and the rest from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_weight_compression.calibration.language import read_language_model
from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["FOLLOWING", "Feeder", "input_name"]

FOLLOWING = ("attention_mask", "position_ids", "token_type_ids", "beam_idx", "cache_position")
"""Inputs that follow from token ids; so do those whose name begins with `past`."""
_KNOWN = ("input_ids", "decoder_input_ids", *FOLLOWING)


def input_name(port: Any) -> str:
    """The name by which an input is known: the one that exporters use, where it has several."""
    names = sorted(port.get_names()) or [port.get_node().get_friendly_name()]
    return str(next((name for name in names if name in _KNOWN), names[0]))


class Feeder:
    """Makes complete inputs for one model; inputs go by the names of `input_name`."""

    def __init__(self, model: ov.Model, what: str) -> None:
        self._what = what
        self._ports = {input_name(port): port for port in model.inputs}
        self.language = read_language_model(model)
        self._friendly = {port.get_node().get_friendly_name(): name for name, port in self._ports.items()}
        self.ids = self._friendly[self.language.ids] if self.language else "input_ids"
        """The input of token ids."""

    @property
    def names(self) -> list[str]:
        """The model's inputs, in its own order."""
        return list(self._ports)

    @property
    def takes_tokens(self) -> bool:
        """Whether token ids alone are enough."""
        return self.language is not None and not self.unknown({self.ids})

    def rank(self, name: str) -> int | None:
        """Number of axes of an input; None for one that is not there or of no fixed rank."""
        rank = self._ports[name].get_partial_shape().rank if name in self._ports else None
        return int(rank.get_length()) if rank is not None and rank.is_static else None

    def unknown(self, given: set[str]) -> list[str]:
        """Inputs that are neither given nor follow from token ids."""
        missing = [name for name in self._ports if name not in given]
        if self.language is None or self.ids not in given:
            return missing
        return [name for name in missing if name not in FOLLOWING and not name.startswith("past")]

    def tokens(self, tokens: npt.NDArray[np.int64]) -> dict[str, Array]:
        """What stands for one sequence of token ids `[n]`, to be completed."""
        return {self.ids: tokens[None]}

    def complete(self, given: Mapping[str, Any]) -> dict[str, Array]:
        """Given inputs in the model's own types, with the rest filled in, in the model's order.

        Raises:
            OptionError: an input is missing that does not follow from others, one is given that the model does not
                have, or one is of another shape.
        """
        strange = [name for name in given if name not in self._ports]
        if strange:
            raise OptionError(f"data: {self._what} has no input {_quoted(strange)}, only {_quoted(self.names)}")
        missing = self.unknown(set(given))
        if missing:
            raise OptionError(f"data: {self._what} also needs {_quoted(missing)}: give them in a dict or an .npz file")
        values = {name: np.asarray(value) for name, value in given.items()}
        if self.language is not None and self.ids in values and len(values) < len(self._ports):
            ids = values[self.ids]
            if ids.ndim != 2:
                raise OptionError(f"data: '{self.ids}' is {list(ids.shape)}, but {self._what} takes [batch, n]")
            friendly = {own: values[name] for own, name in self._friendly.items() if name in values}
            made = self.language.inputs(ids, friendly)
            values.update({self._friendly[own]: value for own, value in made.items() if own not in friendly})
        return {name: self._fit(name, port, values[name]) for name, port in self._ports.items()}

    def _fit(self, name: str, port: Any, value: Array) -> Array:
        shape = port.get_partial_shape()
        if not shape.compatible(ov.PartialShape(list(value.shape))):
            raise OptionError(f"data: '{name}' is {list(value.shape)}, but {self._what} takes {shape}")
        try:
            kind = np.dtype(port.get_element_type().to_dtype())
        except RuntimeError as error:
            told = port.get_element_type().to_string()
            raise ModelError(f"input '{name}' of {self._what} is of type {told}, which cannot be fed here") from error
        return np.ascontiguousarray(value, dtype=kind)


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
