"""Calls of a model that keeps what it has read, joined into what it would have been given at once.

A decoder with a cache is called with the prompt, then with one token at a time. Calibration starts every sample with an
empty cache, where a single token says little; and the inputs of its layers are the same, token by token, if the whole
sequence is given in one window. So a sequence is kept from one reset of the state to the next, and joined:

    input_ids, inputs_embeds, position_ids, …    one after another, along the axis that is as long as the step
    attention_mask                               the last one, which covers the whole; or joined where it does not
    beam_idx                                     followed: a beam that took over another has that one's past
    encoder_hidden_states and the like           the last one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ov_weight_compression.ir_utils.types import Array

__all__ = ["SEQUENCE_INPUTS", "joined_calls"]

SEQUENCE_INPUTS = ("input_ids", "decoder_input_ids", "inputs_embeds")
"""Inputs whose second axis is the sequence's."""
_BEAMS = "beam_idx"
_MASK = "attention_mask"

Call = Mapping[str, Array]


def joined_calls(calls: Sequence[Call]) -> dict[str, Array] | None:
    """One call for all of a sequence's; None where they do not fit together.

    Args:
        calls: inputs by name, in order; at least one. Their arrays are not changed.
    """
    first = calls[0]
    lead = next((name for name in SEQUENCE_INPUTS if name in first and first[name].ndim >= 2), None)
    if len(calls) == 1 or lead is None:
        return {**first, **_beams(first, first)} if len(calls) == 1 else None
    lengths = [call[lead].shape[1] for call in calls]
    joined: dict[str, Array] = {}
    for name in first:
        if name == _BEAMS:
            continue
        parts = [call[name] for call in calls]
        if name == _MASK and parts[-1].ndim == 2 and parts[-1].shape[1] >= sum(lengths):
            joined[name] = parts[-1]
            continue
        axis = _axis(name, parts, lengths)
        if axis is not None:
            joined[name] = _in_turn(parts, axis, calls)
        elif len({part.shape for part in parts}) == 1:
            joined[name] = parts[-1]
        else:
            given = [part for part in parts if part.size]
            if len(given) != 1:
                return None
            joined[name] = given[0]  # an image's features, given with the prompt alone
    return {name: joined[name] for name in first if name in joined} | _beams(calls[-1], first)


def _beams(last: Call, first: Call) -> dict[str, Array]:
    """Every row its own: nothing is read from the cache."""
    return {_BEAMS: np.arange(last[_BEAMS].size, dtype=last[_BEAMS].dtype)} if _BEAMS in first else {}


def _axis(name: str, parts: Sequence[Array], lengths: Sequence[int]) -> int | None:
    """The axis of an input that is as long as each step; None where there is none."""
    rank = parts[0].ndim
    if name.startswith("encoder") or any(part.ndim != rank for part in parts):
        return None
    usual: tuple[int, ...] = (rank - 1,) if "position" in name else (1, rank - 1)
    others: list[tuple[int, ...]] = [tuple(part.shape) for part in parts]
    for axis in (*usual, *range(rank)):
        rest = {shape[:axis] + shape[axis + 1 :] for shape in others}
        if axis < rank and [shape[axis] for shape in others] == list(lengths) and len(rest) == 1:
            return int(axis)
    return None


def _in_turn(parts: Sequence[Array], axis: int, calls: Sequence[Call]) -> Array:
    """The parts one after another; before each, what the rows have read so far goes where the beams went."""
    batch = calls[0][_BEAMS].size if _BEAMS in calls[0] else 0
    rows = next((place for place in range(parts[0].ndim) if place != axis and parts[0].shape[place] == batch), None)
    read = parts[0]
    for part, call in zip(parts[1:], calls[1:], strict=True):
        if rows is not None and _BEAMS in call:
            read = np.take(read, call[_BEAMS].reshape(-1), axis=rows)
        read = np.concatenate((read, part), axis=axis)
    return read
