"""How many positions a language model has, read from its graph: the longest window that fits.

Two things fix it. A table that is looked up by position (learned embeddings, sines, the cosines of a rotary embedding):
behind its end OpenVINO reads zeros and says nothing. And constants that are cut to the window's length and cannot be
longer than they are (the causal masks of GPT-2, tables that are sliced): there no shape can be worked out.
"""

from __future__ import annotations

from collections.abc import Iterator

import openvino as ov

from ov_weight_compression.patterns.graphs import constant_of

__all__ = ["input_names", "longest_window"]

_LONGEST, _SHORTEST = 4096, 2
_KEEPING = frozenset(
    {"Convert", "Reshape", "Unsqueeze", "Squeeze", "Broadcast", "Tile", "Multiply", "Slice", "StridedSlice"}
)
"""Operations on positions that make none of them larger; a Multiply is one by a mask of ones and zeros."""
_SEQUENCES = ("attention_mask", "position_ids", "token_type_ids")
_DEPTH = 16


def longest_window(model: ov.Model, parameters: tuple[ov.Node, ...], ids: ov.Node) -> int | None:
    """The most tokens that a window may have, as far as the graph tells; None where it names no limit.

    Args:
        model: not changed.
        parameters: its inputs.
        ids: the one for token ids, `[batch, length]` with an open length.
    """
    tables = min(_tables(model), default=None)
    shapes = _agreeing(model, parameters, ids, tables)
    return min((limit for limit in (tables, shapes) if limit is not None), default=None)


def input_names(node: ov.Node) -> set[str]:
    """All names that a model input answers to: its friendly name and those of its tensor."""
    return {str(node.get_friendly_name()), *map(str, node.output(0).get_names())}


def _tables(model: ov.Model) -> Iterator[int]:
    """The windows that end at the end of a table that is looked up by position."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        axis, shape = node.input_value(2).get_node(), node.get_input_partial_shape(0)
        if axis.get_type_name() != "Constant" or shape.rank.is_dynamic or len(shape) < 2:
            continue
        rows = shape[int(axis.data.reshape(-1)[0])]
        above = _above_length(node.input_value(1), 0, _DEPTH) if rows.is_static and shape.is_static else None
        if above is not None and rows.get_length() - 1 - above > 1:
            yield int(rows.get_length()) - 1 - above


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


def _agreeing(model: ov.Model, parameters: tuple[ov.Node, ...], ids: ov.Node, below: int | None) -> int | None:
    """The longest window with which OpenVINO can work out all shapes, at most `below`; None where thousands of tokens
    fit."""
    inputs = {
        number: node.get_output_partial_shape(0)[0]
        for number, node in enumerate(parameters)
        if node is ids or (set(_SEQUENCES) & input_names(node) and _is_open(node))
    }

    def agrees(length: int) -> bool:
        trial = model.clone()
        try:
            trial.reshape({number: ov.PartialShape([batch, length]) for number, batch in inputs.items()})
        except RuntimeError:
            return False
        return True

    most = _LONGEST if below is None else min(below, _LONGEST)
    if agrees(most):
        return below
    if not agrees(_SHORTEST):
        return None  # it is not the length that the shapes disagree about
    fits, fails = _SHORTEST, most
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if agrees(middle) else (fits, middle)
    return fits


def _is_open(node: ov.Node) -> bool:
    """Whether an input is `[batch, length]` with an open length."""
    shape = node.get_output_partial_shape(0)
    return bool(shape.rank.is_static and len(shape) == 2 and shape[1].is_dynamic)
