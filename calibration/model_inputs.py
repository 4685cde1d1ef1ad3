"""From arrays that a caller has to complete inputs of a model, for calibration and for comparisons alike.

An input goes by the name that exporters use where it has several (see `input_label`), and answers to any of its names
and to its number. What follows from token ids (masks, positions, beam indices, empty caches) is made up where it is not
given; so a decoder that also wants `encoder_hidden_states` gets those from the caller and the rest from here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.calibration.language_model import input_label, input_names, read_language_model
from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import Array, tensor_values

_RESET_STATE = "nncf_reset_state"
"""A key that NNCF looks for in a sample of a stateful model: whether to reset the state before it."""


class ModelInputs:
    """A model's inputs, read from its graph once, and what a caller's arrays are to them.

    Args:
        model: not changed.
        option: the name of the option that the arrays come from, for errors.
        what: what to call the model in errors.
    """

    def __init__(self, model: ov.Model, option: str = "data", what: str = "the model") -> None:
        self.option, self.what = option, what
        self._nodes = {input_label(node): node for node in model.get_parameters()}
        self.names = list(self._nodes)
        """The model's inputs, in its own order."""
        self.language = read_language_model(model)
        self.ids = self.language.ids if self.language else "input_ids"
        """The input of token ids."""

    @property
    def takes_tokens(self) -> bool:
        """Whether token ids alone are enough."""
        return self.language is not None and not self.missing({self.ids})

    def rank(self, name: str) -> int | None:
        """Number of axes of an input; None for one that is not there or of no fixed rank."""
        rank = self._nodes[name].get_output_partial_shape(0).rank if name in self._nodes else None
        return int(rank.get_length()) if rank is not None and rank.is_static else None

    def find(self, key: object) -> str | None:
        """The input that a key stands for: one of its names, or its number; None where there is none."""
        if isinstance(key, int):
            return self.names[key] if 0 <= key < len(self._nodes) else None
        return next((name for name, node in self._nodes.items() if key in input_names(node)), None)

    def missing(self, given: Collection[str]) -> list[str]:
        """Inputs that are neither given nor follow from token ids."""
        language = self.language if self.ids in given else None
        return [
            name
            for name, node in self._nodes.items()
            if name not in given and (language is None or not language.follows(node))
        ]

    def named(self, item: Any, number: int = 1) -> dict[str, Array]:
        """The arrays of sample `number` by the inputs' own names.

        Args:
            item: a dictionary by any names or numbers, arrays in the order of the inputs, or one array. Arrays are
                numpy's, torch's or OpenVINO's tensors, or lists.
            number: of the sample, for errors.

        Raises:
            OptionError: it is none of these, or names an input that the model does not have.
        """
        if not isinstance(item, Mapping):
            values = item if isinstance(item, (tuple, list)) else (item,)
            if len(values) > len(self._nodes):
                raise OptionError(f"{self.option}: {len(values)} arrays for {len(self._nodes)} inputs: {self.listed}")
            item = dict(enumerate(values))
        found: dict[str, Array] = {}
        for key, value in item.items():
            if key == _RESET_STATE:
                if not value:
                    raise OptionError(
                        f"{self.option}: {_RESET_STATE}={value!r} asks for a state that is kept between samples; here "
                        "every sample starts with an empty one: leave the key out, or join the samples that belong "
                        "together"
                    )
                continue
            name = self.find(key)
            if name is None:
                raise OptionError(f"{self.option}: {self.what} has no input {shown(key)}: its inputs are {self.listed}")
            found[name] = self.array(value, number, name)
        return found

    def complete(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by the inputs' own names in the model's types, with the rest filled in, in the model's order.

        Raises:
            OptionError: an input is missing that does not follow from others, or is of another shape or type.
            ModelError: an input is of a type that numpy does not have.
        """
        strange = [name for name in given if name not in self._nodes]
        if strange:
            raise OptionError(f"{self.option}: {self.what} has no input '{strange[0]}': its inputs are {self.listed}")
        missing = self.missing(given)
        if missing:
            raise OptionError(
                f"{self.option}: {self.what} also needs {', '.join(map(repr, missing))}: give dictionaries or an .npz "
                f"file with the keys {self.listed}"
            )
        values = {name: self._fitted(name, array) for name, array in given.items()}
        if self.language is not None and self.ids in values and len(values) < len(self._nodes):
            values = self.language.inputs(values[self.ids], values)
        return {name: values[name] for name in self._nodes}

    @property
    def listed(self) -> str:
        """The names of all inputs, for a message."""
        return ", ".join(self._nodes)

    def array(self, value: Any, number: int = 1, name: str = "") -> Array:
        """Whatever holds numbers as an array; OptionError where it does not."""
        try:
            array = tensor_values(value) if isinstance(value, ov.Tensor) else np.asarray(value)
        except Exception:
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "biuf" and array.dtype.itemsize != 2:
            place = f"sample {number}" + (f", input '{name}'" if name else "")
            raise OptionError(f"{self.option}: {place}: expected an array of numbers, got {shown(value)}")
        return array

    def _fitted(self, name: str, array: Array) -> Array:
        node = self._nodes[name]
        wanted, shape = node.get_output_element_type(0), node.get_output_partial_shape(0)
        try:
            dtype = np.dtype(wanted.to_dtype())
        except RuntimeError as error:
            told = wanted.to_string()
            raise ModelError(f"input '{name}' of {self.what} is of type {told}, which cannot be fed here") from error
        if array.dtype.kind == "f" and dtype.kind in "iub" and not _whole(array, dtype):
            raise OptionError(
                f"{self.option}: input '{name}' takes {wanted.to_string()}, and the data is {array.dtype} with values "
                "that are no such integers"
            )
        if not shape.compatible(ov.PartialShape(list(array.shape))):
            raise OptionError(f"{self.option}: input '{name}' is {list(array.shape)}, but {self.what} takes {shape}")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)  # a scalar would become a vector


def _whole(array: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether floats are integers of a type: exporters and examples make masks and ids of ones and zeros."""
    with np.errstate(invalid="ignore"):
        return np.array_equal(array, array.astype(dtype))
