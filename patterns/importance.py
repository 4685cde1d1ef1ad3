"""What the graph itself says about how large each input channel of a layer is, without any data.

    behind a norm            x_j = γ_j n_j + β_j        n of unit size            NormGain
    behind attention         x_j = Σ a_t V_j h_t        row j of V's weight       RowNorms
    behind gate and up       x_j = act(G_j h) U_j h     both rows                 RowNormProduct
    behind an activation     x_j = act(U_j h)           one row                   RowNorms

Only structure is looked at here: each answer names constants and says which row belongs to which channel. No answer is
given where that is not certain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from ov_weight_compression.patterns.follow import Piece
from ov_weight_compression.patterns.graphs import dimensions
from ov_weight_compression.patterns.norms import NormGain, norm_gain
from ov_weight_compression.patterns.provenance import ROWS, Origins, row_numbers
from ov_weight_compression.patterns.weight import Consumer, Weight


@dataclass(frozen=True)
class RowNorms:
    """Channel j is as large as one row of another weight: `rows()[j]` along that weight's channel axis."""

    weight: Weight
    offset: int
    pieces: tuple[Piece, ...]
    """Outermost first: j is read as digits of their sizes, and its row is the sum of offset and digit · stride."""

    def rows(self) -> list[int]:
        """The row of every channel."""
        return row_numbers(self.offset, self.pieces)


@dataclass(frozen=True)
class RowNormProduct:
    """Channel j is as large as the product of one row each of two weights (which may be the same one)."""

    factors: tuple[RowNorms, RowNorms]


ImportanceSource = NormGain | RowNorms | RowNormProduct


def importance_sources(weights: Iterable[Weight]) -> dict[str, ImportanceSource]:
    """For each MatMul or expert weight whose input the graph says something about, what it says; by the weight's name.

    Args:
        weights: as `find_weights` gives them. A producer that is not among them (an ignored one) is of unknown make.
    """
    weights = list(weights)
    origins, known = Origins(weights), dict[str, ImportanceSource]()
    for weight in weights:
        layers = [consumer for consumer in weight.consumers if consumer.activation is not None]
        if not layers or len(weight.input_axes) != 1:
            continue
        first, *others = (_said_of(layer, weight.columns, origins) for layer in layers)
        if first is not None and all(one == first for one in others):
            known[weight.name] = first
    return known


def _said_of(layer: Consumer, columns: int, origins: Origins) -> ImportanceSource | None:
    """What the graph says of the channels that a layer sums over; one that gathers rows has none."""
    value, sizes = layer.input, None if layer.input is None else dimensions(layer.input)
    if layer.activation is None or value is None or sizes is None or len(layer.activation.reduction) != 1:
        return None
    place = len(sizes) + layer.activation.reduction[0]
    if sizes[place] not in (columns, None):
        return None
    if place == len(sizes) - 1:
        gain = norm_gain(value, columns)
        if gain is not None:
            return gain
    rows: list[RowNorms] = []
    for origin in origins.of_input(value, place, columns) or ():
        pieces = origin.view[place]
        if any(piece.axis != ROWS for piece in pieces) or prod(piece.size for piece in pieces) != columns:
            break  # its rows do not make up the whole of the dimension
        rows.append(RowNorms(origin.weight, origin.offset, pieces))
    if len(rows) == 1:
        return rows[0]
    return RowNormProduct((rows[0], rows[1])) if len(rows) == 2 else None
