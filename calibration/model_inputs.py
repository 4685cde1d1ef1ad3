"""From arrays that a caller has to complete inputs of a model, for calibration and for comparisons alike.

An input goes by the name that exporters use where it has several (see `input_label`), and answers to any of its names
and to its number. What follows from token ids (masks, positions, beam indices, empty caches) is made up where it is not
given; so a decoder that also wants `encoder_hidden_states` gets those from the caller and the rest from here.

**A language model** is known by its graph: how to feed it nothing but token ids, and how long a window may be.
Exporters agree on the inputs' names. `input_ids [batch, length]` is the data; everything else follows from it for a
window that starts with an empty cache:

    attention_mask  [batch, length]    ones (over the cache too, but not in Mamba)
    position_ids    [batch, length]    0, 1, 2, …  ([3, batch, length] for models with several position axes)
    token_type_ids  [batch, length]    zeros
    beam_idx        [batch]            0, 1, … batch − 1
    cache_position  [length]           0, 1, 2, …  (Mamba: as many as its convolution has taps)
    past_key_values.*                  empty: zeros where a dimension is dynamic

Two things fix the longest window. A table that is looked up by position (learned embeddings, sines, the cosines of a
rotary embedding): behind its end OpenVINO reads zeros and says nothing. And constants that are cut to the window's
length and cannot be longer than they are (the causal masks of GPT-2, tables that are sliced): there no shape can be
worked out.

Some take `inputs_embeds`, and token ids through the model that embeds those: optimum-intel parts a vision-language
model into one that embeds token ids, one that makes features of pictures, and the language model, which reads the
vectors of both. With the first in front of it, it is a language model like any other: it can be given text, and can
write some.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ov_weight_compression.ir_utils.errors import ModelError, OptionError
from ov_weight_compression.ir_utils.file_io import file_of
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import Array, tensor_values
from ov_weight_compression.patterns.graphs import constant_of

_IDS = ("input_ids", "decoder_input_ids")
_EXPORTED = (*_IDS, "attention_mask", "position_ids", "token_type_ids", "beam_idx", "cache_position")
_PASSING = ("Convert", "Reshape", "Unsqueeze", "Squeeze", "Add", "Clamp", "Maximum")
_OPERATIONS = 4
"""So many of them at most."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model whose data is token ids, and everything else can be made up."""

    ids: str
    """The input that takes the token ids, by its label (see `input_label`)."""
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
    """Of a state space model's convolution."""

    @property
    def needs_only_ids(self) -> bool:
        """Whether all other inputs follow from the token ids: not where it looks at a picture or at an encoder."""
        return all(input_label(node) == self.ids or self.made_up(node) is not None for node in self.parameters)

    def window_length(self, tokens: int) -> int:
        """How long windows are that are to have so many tokens."""
        return self.length or min(tokens, self.positions or tokens)

    def inputs(
        self, ids: NDArray[Any], given: dict[str, NDArray[Any]] | None = None, *, past: int = 0
    ) -> dict[str, NDArray[Any]]:
        """All inputs of the model by their labels, for token ids `[batch, length]`; those `given` are kept.

        `past` is the number of tokens that a stateful model has read already and holds in its cache.
        Raises OptionError where an input is neither given nor follows from the token ids.
        """
        found = dict(given or {})
        for node in self.parameters:
            name = input_label(node)
            if name == self.ids:
                found[name] = ids.astype(node.get_output_element_type(0).to_dtype())
            elif name not in found:
                made = self.made_up(node, ids.shape[0], ids.shape[1], past)
                if made is None:
                    raise OptionError(
                        f"dataset: the model's input '{name}' {node.get_output_partial_shape(0)} does not follow from "
                        "token ids: give dictionaries that hold it, with the keys "
                        f"{', '.join(map(input_label, self.parameters))}"
                    )
                found[name] = made.astype(node.get_output_element_type(0).to_dtype())
        return found

    def made_up(self, node: ov.Node, batch: int = 1, length: int = 1, past: int = 0) -> NDArray[Any] | None:
        """One of the model's other inputs, as it follows from token ids `[batch, length]`; None where it does not."""
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
        return None


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
    past = any(name.startswith("past") for node in parameters for name in input_names(node))
    keeps_past = past or bool(model.get_variables())  # as only a model that writes does
    windows = [  # of the convolution of a state space model
        node.get_output_partial_shape(0)[-1]
        for node in model.get_ordered_ops()
        if node.get_type_name() == "ReadValue" and ".conv" in node.get_attributes()["variable_id"]
    ]
    batch, length = (dim.get_length() if dim.is_static else None for dim in ids.get_output_partial_shape(0))
    return LanguageModel(
        ids=input_label(ids),
        vocabulary=vocabulary,
        positions=_longest_window(model, parameters, ids) if length is None else None,
        length=length,
        batch=batch,
        # Vocabularies are padded to round numbers at one end or the other, so the two need not agree to the last id.
        predicts=any(2 * head > vocabulary for head in heads) and keeps_past,
        parameters=parameters,
        conv_taps=int(windows[0].get_length()) if windows and windows[0].is_static else None,
    )


def input_label(node: ov.Node) -> str:
    """The name to call a model input by: the one that exporters use where its tensor has several, else the first of
    them; its friendly name where the tensor has none."""
    names = sorted(map(str, node.output(0).get_names())) or [str(node.get_friendly_name())]
    return next((name for name in names if name in _EXPORTED), names[0])


def _table(node: ov.Node) -> int | None:
    """Rows of the table that a Gather looks the values of this input up in, less a constant added on the way, behind a
    few operations that keep the values."""
    pending = [(node.output(0), 0, _OPERATIONS)]
    while pending:
        value, offset, depth = pending.pop()
        behind = []
        for port in value.get_target_inputs():
            reader, added = port.get_node(), 0
            if reader.get_type_name() == "Gather" and port.get_index() == 1:
                shape = reader.get_input_partial_shape(0)
                if shape.is_static and len(shape) == 2:
                    return int(shape[0].get_length()) - offset
            elif depth and reader.get_type_name() in _PASSING:
                if reader.get_type_name() == "Add":
                    other = reader.input_value(1 - port.get_index()).get_node()
                    if other.get_type_name() != "Constant" or other.data.size != 1:
                        continue
                    added = int(other.data.reshape(-1)[0])
                behind.append((reader.output(0), offset + added, depth - 1))
        pending += reversed(behind)
    return None


_LONGEST, _SHORTEST = 4096, 2
_KEEPING = frozenset(
    {"Convert", "Reshape", "Unsqueeze", "Squeeze", "Broadcast", "Tile", "Multiply", "Slice", "StridedSlice"}
)
"""Operations on positions that make none of them larger; a Multiply is one by a mask of ones and zeros."""
_SEQUENCES = ("attention_mask", "position_ids", "token_type_ids")
_DEPTH = 16


def input_names(node: ov.Node) -> set[str]:
    """All names that a model input answers to: its friendly name and those of its tensor."""
    return {str(node.get_friendly_name()), *map(str, node.output(0).get_names())}


def _above_length(value: ov.Output, added: int, depth: int) -> int | None:
    """By how much the largest of some positions exceeds the window's length (-1 where they are 0, 1, 2, …); None where
    they are no positions."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Range" and constant_of(node.input_value(1)) is not None:
        return None  # as many as there are experts, heads, …
    if kind == "Range" or (kind == "Parameter" and "position_ids" in input_names(node)):
        return added - 1
    if kind == "CumSum":
        return added - int(bool(node.get_attributes()["exclusive"]))
    if not depth:
        return None
    if kind in ("Add", "Subtract"):
        return _shifted(node, added, depth)
    if kind in _KEEPING:
        others = range(2 if kind == "Multiply" else 1)
        found = (_above_length(node.input_value(port), added, depth - 1) for port in others)
        return next((one for one in found if one is not None), None)
    return None


def _shifted(node: ov.Node, added: int, depth: int) -> int | None:
    sign = 1 if node.get_type_name() == "Add" else -1
    for port in range(2):
        other = node.input_value(1 - port).get_node()
        while other.get_type_name() in ("Convert", "Reshape", "Unsqueeze"):
            other = other.input_value(0).get_node()
        if other.get_type_name() == "Constant" and other.data.size == 1 and (port == 0 or sign == 1):
            shift = int(other.data.reshape(-1)[0])
            return _above_length(node.input_value(port), added + sign * shift, depth - 1)
    if sign == 1:  # positions, and the length of an empty cache
        found = [_above_length(node.input_value(port), added, depth - 1) for port in range(2)]
        return next((one for one in found if one is not None), None)
    return None


def _longest_window(model: ov.Model, parameters: tuple[ov.Node, ...], ids: ov.Node) -> int | None:
    """The most tokens that a window may have, as far as the graph tells: what its tables of positions have, and what
    OpenVINO can work out all shapes with; None where it names no limit. `ids` has an open length."""
    below: int | None = None
    for node in model.get_ordered_ops():  # windows that end at the end of a table that is looked up by position
        if node.get_type_name() != "Gather":
            continue
        axis, shape = node.input_value(2).get_node(), node.get_input_partial_shape(0)
        if axis.get_type_name() != "Constant" or shape.rank.is_dynamic or len(shape) < 2:
            continue
        rows = shape[int(axis.data.reshape(-1)[0])]
        above = _above_length(node.input_value(1), 0, _DEPTH) if rows.is_static and shape.is_static else None
        if above is not None and rows.get_length() - 1 - above > 1:
            window = int(rows.get_length()) - 1 - above
            below = window if below is None else min(below, window)
    inputs = {
        number: node.get_output_partial_shape(0)[0]
        for number, node in enumerate(parameters)
        if node is ids or (set(_SEQUENCES) & input_names(node) and has_open_axis(node, 2, (1,)))
    }

    # The longest that OpenVINO agrees with, if it is the length that shapes disagree about.
    most = _LONGEST if below is None else min(below, _LONGEST)
    fits, fails, tried = _SHORTEST - 1, most + 1, most
    while fails - fits > 1:
        if shapes_agree(model, {number: ov.PartialShape([batch, tried]) for number, batch in inputs.items()}):
            fits = tried
        else:
            fails = tried
        tried = _SHORTEST if fits < _SHORTEST else (fits + fails) // 2
    return below if fits in (_SHORTEST - 1, most) else fits


def shapes_agree(model: ov.Model, shapes: Mapping[int, ov.PartialShape]) -> bool:
    """Whether OpenVINO can work out all shapes of the model where its inputs, by number, have these."""
    trial = model.clone()
    try:
        trial.reshape(dict(shapes))
    except RuntimeError:
        return False
    return True


def has_open_axis(node: ov.Node, rank: int, axes: Sequence[int]) -> bool:
    """Whether an input has so many axes, and one of those named is open."""
    shape = node.get_output_partial_shape(0)
    return bool(shape.rank.is_static and len(shape) == rank and any(shape[axis].is_dynamic for axis in axes))


_VECTORS = "inputs_embeds"
_FILE = "openvino_text_embeddings_model.xml"


@dataclass(frozen=True, eq=False)
class Embedded:
    """A language model that takes token ids."""

    model: ov.Model
    embed: Any
    """The compiled model in front of it."""

    def inputs(self, window: Mapping[str, Array]) -> dict[str, Array]:
        """What the language model itself takes, of what this one does."""
        vectors = self.embed(window[_IDS[0]])[0]
        return {
            _VECTORS if name == _IDS[0] else name: vectors if name == _IDS[0] else own for name, own in window.items()
        }


def with_embeddings(model: ov.Model) -> Embedded | None:
    """The language model with the model of its embeddings in front of it; None where it does not take vectors, or the
    other model does not lie beside its file. The model itself is not changed."""
    labels = [input_label(node) for node in model.get_parameters()]
    home = file_of(model) if _VECTORS in labels else None
    if home is None or not (home.parent / _FILE).is_file():
        return None
    core = ov.Core()
    embedding = core.read_model(home.parent / _FILE)
    if len(embedding.inputs) != 1 or len(embedding.outputs) != 1:
        return None
    embed = core.compile_model(embedding.clone(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    joined = model.clone()
    vectors, ids = joined.get_parameters()[labels.index(_VECTORS)], embedding.get_parameters()[0]
    for target in list(vectors.output(0).get_target_inputs()):
        target.replace_source_output(embedding.get_results()[0].input_value(0))
    ids.output(0).set_names({_IDS[0]})
    joined.add_parameters([ids])
    joined.remove_parameter(vectors)
    joined.validate_nodes_and_infer_types()
    return Embedded(joined, embed)


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
        self.takes_tokens = self.language is not None and self.language.needs_only_ids
        """Whether token ids alone are enough."""

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
            if name not in given and (language is None or language.made_up(node) is None)
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
        values = {}
        for name, array in given.items():
            wanted, shape = self._nodes[name].get_output_element_type(0), self._nodes[name].get_output_partial_shape(0)
            try:
                dtype = np.dtype(wanted.to_dtype())
            except RuntimeError as error:
                told = wanted.to_string()
                raise ModelError(
                    f"input '{name}' of {self.what} is of type {told}, which cannot be fed here"
                ) from error
            with np.errstate(over="ignore", invalid="ignore"):
                own = np.ascontiguousarray(array, dtype=dtype).reshape(array.shape)  # a scalar would become a vector
            # Exporters and examples make masks and ids of ones and zeros that are floats.
            if array.dtype.kind == "f" and dtype.kind in "iub" and not np.array_equal(array, own):
                raise OptionError(
                    f"{self.option}: input '{name}' takes {wanted.to_string()}, and the data is {array.dtype} with "
                    "values that are no such integers"
                )
            if not shape.compatible(ov.PartialShape(list(array.shape))):
                raise OptionError(
                    f"{self.option}: input '{name}' is {list(array.shape)}, but {self.what} takes {shape}"
                )
            values[name] = own
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
