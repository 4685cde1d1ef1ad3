"""Which rows of which weight the channels of a value are, and how that changes when the value is rearranged.

The functions take and return tuples of origins, one for each factor of the value; None is a value of unknown make, and
stays None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import openvino as ov

from ov_weight_compression.patterns.graphs import dimensions
from ov_weight_compression.patterns.layout import Piece, View, cut, whole
from ov_weight_compression.patterns.weight import Weight

__all__ = ["ROWS", "Origin", "counts_rows", "each", "narrowed", "replaced", "same_for_all", "widened"]

ROWS = 0
"""The axis of pieces that count rows of the weight; other axes are of no interest but are tracked."""


@dataclass(frozen=True, eq=False)
class Origin:
    """One weight whose rows are the channels of a value: row `offset + Σ digit · stride` over the pieces."""

    weight: Weight
    offset: int
    view: View
    """For every dimension of the value the pieces on axis 0 count rows; others count anything else."""


def each(found: tuple[Origin, ...] | None, change: Callable[[View], View | None]) -> tuple[Origin, ...] | None:
    """Every origin with its view changed; None where that fails for one of them."""
    if found is None:
        return None
    views = [change(origin.view) for origin in found]
    if any(view is None for view in views):
        return None
    return tuple(replace(origin, view=view) for origin, view in zip(found, views, strict=True) if view is not None)


def widened(found: tuple[Origin, ...] | None, node: ov.Node) -> tuple[Origin, ...] | None:
    """Origins beside another operand, which may have more dimensions but must not repeat any."""
    sizes = dimensions(node.output(0))
    if sizes is None:
        return None

    def widen(view: View) -> View | None:
        padded = ((),) * (len(sizes) - len(view)) + view
        known = zip(padded, sizes, strict=True)
        return padded if all(not dim or prod(piece.size for piece in dim) == size for dim, size in known) else None

    return each(found, widen)


def narrowed(
    found: tuple[Origin, ...] | None, place: int, start: int, length: int, step: int
) -> tuple[Origin, ...] | None:
    """Origins of some positions of one dimension."""
    if found is None:
        return None
    result: list[Origin] = []
    for origin in found:
        if not counts_rows(origin.view[place]):
            result.append(replace(origin, view=replaced(origin.view, place, [length])))
            continue
        part = cut(origin.view, place, start, length, step)
        if part is None:
            return None
        view, moved = part
        result.append(replace(origin, view=view, offset=origin.offset + moved.get(ROWS, 0)))
    return tuple(result)


def replaced(view: View, place: int, sizes: Sequence[int | None]) -> View:
    """A view with other dimensions in the place of one, which count nothing that has been counted before."""
    fresh = 1 + max((piece.axis for dimension in view for piece in dimension), default=ROWS)
    return (*view[:place], *(whole(fresh + n, size) for n, size in enumerate(sizes)), *view[place + 1 :])


def counts_rows(dimension: Sequence[Piece]) -> bool:
    return any(piece.axis == ROWS and piece.stride for piece in dimension)


def same_for_all(value: ov.Output, found: Sequence[Origin]) -> bool:
    """Whether a factor has one value for all channels: its size is one wherever they run."""
    sizes = dimensions(value)
    if sizes is None:
        return False
    for origin in found:
        for back, dimension in enumerate(reversed(origin.view), 1):
            if counts_rows(dimension) and back <= len(sizes) and sizes[-back] != 1:
                return False
    return True
