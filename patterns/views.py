"""Following a constant's axes through Transpose and Reshape.

A *view* of the constant is what a layer sees: for each of its dimensions, the pieces of the constant's own axes that it
is made of, outermost first. A constant `[8, 6]` starts as

    ((axis 0, 8), (axis 1, 6))

after Reshape to `[8, 2, 3]` the second axis is in two pieces, `(axis 1, 2, stride 3)` and `(axis 1, 3, stride 1)`;
after Reshape to `[48]` one dimension holds both axes. Where a layer reduces over a dimension, its pieces say which of
the constant's axes that is, and whether each of them is there as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = [
    "Piece",
    "View",
    "cut",
    "pieces_of",
    "repeat",
    "reshape",
    "reshape_partly",
    "transpose",
    "whole_axis",
]


class Piece(NamedTuple):
    """`size` positions of one axis of the constant, `stride` positions apart along that axis."""

    axis: int
    size: int
    stride: int


View = tuple[tuple[Piece, ...], ...]


def transpose(view: View, order: Sequence[int]) -> View:
    """The view behind a Transpose by `order`."""
    return tuple(view[axis] for axis in order)


def pieces_of(view: View, dimensions: Iterable[int]) -> list[Piece]:
    """The pieces of some dimensions, in order, neighbours that belong together joined into one."""
    joined: list[Piece] = []
    for dimension in dimensions:
        for piece in view[dimension]:
            last = joined[-1] if joined else None
            if last is not None and last.axis == piece.axis and last.stride == piece.stride * piece.size:
                joined[-1] = Piece(piece.axis, last.size * piece.size, piece.stride)
            else:
                joined.append(piece)
    return joined


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """The view behind a Reshape to `shape`, or None where the new dimensions cut across the axes.

    Axes of one element belong to no dimension in particular and are dropped.
    """
    pieces = [piece for piece in pieces_of(view, range(len(view))) if piece.size != 1]
    result: list[tuple[Piece, ...]] = []
    for wanted in shape:
        dimension: list[Piece] = []
        while wanted > 1:
            if not pieces:
                return None
            axis, size, stride = pieces[0]
            if wanted % size == 0:
                dimension.append(pieces.pop(0))
                wanted //= size
            elif size % wanted == 0:
                inner = size // wanted
                dimension.append(Piece(axis, wanted, stride * inner))
                pieces[0] = Piece(axis, inner, stride)
                wanted = 1
            else:
                return None
        result.append(tuple(dimension))
    return tuple(result) if not pieces else None


def whole_axis(axis: int, size: int | None) -> tuple[Piece, ...]:
    """The one piece of a dimension that is a whole axis; none where the size is one or unknown."""
    return (Piece(axis, size, 1),) if size is not None and size != 1 else ()


def reshape_partly(view: View, before: Sequence[int | None], after: Sequence[int | None]) -> View | None:
    """The view behind a Reshape where some sizes are known only at run time (None, with no pieces of their own).

    Unknown dimensions are taken to correspond to each other in order, where what lies between them has equal sizes.
    Where they do not, only what follows the last of them can be tracked.
    """
    old, new = _runs(before), _runs(after)
    if len(old) == len(new) and all(_product(before, a) == _product(after, b) for a, b in zip(old, new, strict=True)):
        runs = list(zip(old, new, strict=True))
    elif _product(before, old[-1]) == _product(after, new[-1]):
        runs = [(old[-1], new[-1])]
        if any(view[dim] for dim in range(old[-1].start)):
            return None
    else:
        return None
    result: list[tuple[Piece, ...]] = [()] * len(after)
    for source, target in runs:
        if any(math.prod(piece.size for piece in view[dim]) != before[dim] for dim in source):
            return None
        part = reshape(view[source.start : source.stop], [after[dim] or 1 for dim in target])
        if part is None:
            return None
        result[target.start : target.stop] = part
    return tuple(result)


def repeat(view: View, before: Sequence[int | None], after: Sequence[int | None], axis: int) -> View | None:
    """The view behind a Broadcast or a Tile: repetitions are pieces of `axis` with stride 0."""
    missing = len(after) - len(before)
    if missing < 0:
        return None
    result: list[tuple[Piece, ...]] = []
    for place, size in enumerate(after):
        old = before[place - missing] if place >= missing else 1
        pieces = view[place - missing] if place >= missing else ()
        if size is None or old is None or size == old:
            result.append(pieces)
        elif size % old == 0:
            result.append((Piece(axis, size // old, 0), *pieces))
        else:
            return None
    return tuple(result)


def cut(view: View, dimension: int, start: int, length: int, step: int) -> tuple[View, dict[int, int]] | None:
    """The view of `length` positions of a dimension, and how far each axis has moved; None where pieces would break."""
    pieces = view[dimension]
    inner = math.prod(piece.size for piece in pieces[1:])
    if not pieces or (inner > 1 and (step != 1 or start % inner or length % inner)) or step < 1:
        return None
    axis, _, stride = pieces[0]
    first = (Piece(axis, length // inner, stride * step),) if length != inner else ()
    return (*view[:dimension], (*first, *pieces[1:]), *view[dimension + 1 :]), {axis: start // inner * stride}


def _product(sizes: Sequence[int | None], run: range) -> int:
    """The number of positions in a run of known dimensions."""
    return math.prod(sizes[dim] or 1 for dim in run)


def _runs(sizes: Sequence[int | None]) -> list[range]:
    """The runs of known dimensions before, between and after the unknown ones."""
    ends = [-1, *(dim for dim, size in enumerate(sizes) if size is None), len(sizes)]
    return [range(left + 1, right) for left, right in pairwise(ends)]
