"""Following a constant's axes through Transpose and Reshape.

A *view* of the constant is what a layer sees: for each of its dimensions, the pieces of the constant's own axes that it
is made of, outermost first. A constant `[8, 6]` starts as

    ((axis 0, 8), (axis 1, 6))

after Reshape to `[8, 2, 3]` the second axis is in two pieces, `(axis 1, 2, stride 3)` and `(axis 1, 3, stride 1)`;
after Reshape to `[48]` one dimension holds both axes. Where a layer reduces over a dimension, its pieces say which of
the constant's axes that is, and whether each of them is there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Piece", "View", "own_view", "pieces_of", "reshape", "transpose"]


class Piece(NamedTuple):
    """`size` positions of one axis of the constant, `stride` positions apart along that axis."""

    axis: int
    size: int
    stride: int


View = tuple[tuple[Piece, ...], ...]


def own_view(shape: Sequence[int]) -> View:
    """The view of a constant that nothing has touched yet."""
    return tuple((Piece(axis, size, 1),) for axis, size in enumerate(shape))


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
