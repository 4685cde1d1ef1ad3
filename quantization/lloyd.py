"""A codebook fitted to one weight: Lloyd's iteration on a histogram of its normalised values.

Every group is divided by its largest magnitude, so all values lie in [-1, 1]; a value counts for as much as its error
does in the weight, ``absmax(group)^2`` times its importance. In one dimension k-means needs no samples, only how much
lies
where: a histogram of 4096 cells holds any number of rows and can be filled from a stream, in any order of pieces to the
same bits. Then, with entries ``t_1 < t_2 < ...`` and cells of mass ``h`` at ``c``:

    each cell goes to its nearest entry;    t_k = sum h c / sum h over the cells of k;    repeat.

The start has entries as dense as the cube root of the mass, which is where the iteration would lead for many entries
(Panter and Dite). What is stored are entries in the table's type, so at each step the rounded table is what is judged,
and the best one is kept. The table may be any multiple of [-1, 1]: an 8-bit float has finer steps just below a power
of two than above, so a few multiples are tried.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.quantization.formats import Format, with_table
from ov_weight_compression.quantization.formats.codebooks import round_to_type

__all__ = ["SAMPLE", "Histogram", "fitted_format", "sample_step"]

Doubles = npt.NDArray[np.float64]

# Weights that are enough to fit a table of 16 entries, and to spare.
SAMPLE = 1 << 22

_CELLS = 4096
_MASS = 1 << 20  # a whole number of these keeps sums exact, whatever their order
_STEPS = 60
_MULTIPLES = {"f8e4m3": tuple(1 + k / 8 for k in range(8)), "f16": (1.0,), "f32": (1.0,), "i8": (127.0,)}


def sample_step(rows: int, width: int) -> int:
    """Every how many rows of a ``[rows, width]`` weight to look at, so that about ``SAMPLE`` weights are seen."""
    return max(1, rows * width // SAMPLE)


class Histogram:
    """How much of a weight lies where in [-1, 1].

    Args:
        absmax: the weight's largest magnitude (of the whole weight, so that pieces agree about what counts how much).
        group: weights in a group.
    """

    def __init__(self, absmax: float, group: int) -> None:
        self.absmax = absmax or 1.0
        self.group = group
        self.mass: Doubles = np.zeros(_CELLS)

    def add(self, rows: npt.NDArray[Any], importance: npt.NDArray[np.float32] | None = None) -> None:
        """Count ``rows`` [n, in] of the weight, each channel as often as ``importance`` [in] (0 .. 1) says."""
        groups = rows.astype(np.float64).reshape(-1, self.group)
        largest = np.abs(groups).max(axis=1, keepdims=True)
        counts = (largest / self.absmax) ** 2 * _MASS
        if importance is None:
            weights = np.broadcast_to(counts, groups.shape)
        else:
            per_group = importance.reshape(-1, self.group)
            weights = counts * np.tile(per_group, (len(groups) // len(per_group), 1))
        cells = ((groups / np.maximum(largest, 1e-300) + 1) * (_CELLS / 2)).astype(np.int64)
        np.minimum(cells, _CELLS - 1, out=cells)
        self.mass += np.bincount(cells.reshape(-1), np.rint(weights).reshape(-1), _CELLS)

    def table(self, count: int, table_type: str) -> tuple[Doubles, float]:
        """The fitted table: ``count`` rising entries as ``table_type`` holds them, and the entry that 1 is mapped
        to."""
        centres: Doubles = (np.arange(_CELLS, dtype=np.float64) + 0.5) * (2 / _CELLS) - 1
        used = self.mass > 0
        if not used.any():
            return np.linspace(-1, 1, count), 1.0
        best: Doubles = np.empty(0)
        unit, least = 1.0, np.inf
        free = _lloyd(centres, self.mass, _start(centres, self.mass, count))
        for multiple in _MULTIPLES[table_type]:
            entries = free
            for _ in range(4):
                stored = round_to_type((entries * multiple).astype(np.float32), table_type)
                rounded = np.unique(stored).astype(np.float64) / multiple
                error = _error(centres, self.mass, rounded)
                if error < least and rounded.any():
                    best, unit, least = rounded * multiple, multiple, error
                entries = _centroids(centres, self.mass, rounded)
        return best, unit


def fitted_format(
    row: Format,
    pieces: Iterable[npt.NDArray[Any]],
    absmax: float,
    group: int,
    *,
    count: int = 16,
    table_type: str = "f8e4m3",
    importance: npt.NDArray[np.float32] | None = None,
) -> Format:
    """The format of one weight with a table of its own.

    Args:
        row: the mode's row (``adaptive_codebook``).
        pieces: rows of the weight, [n, in] each, all of them or a sample (see ``sample_step``).
        absmax: the weight's largest magnitude.
        group: weights in a group, ``in`` for one group a row.
        count: entries of the table, 2 to 65536; fewer come back where rounding makes some of them equal.
        table_type: their stored type, one of ``TABLE_TYPES``.
        importance: [in], what an error in each input channel weighs; None for all alike.
    """
    histogram = Histogram(absmax, group)
    if importance is not None:
        largest = float(importance.max(initial=0.0))
        importance = (importance / largest).astype(np.float32) if largest > 0 else None
    for piece in pieces:
        histogram.add(piece, importance)
    entries, unit = histogram.table(count, table_type)
    return replace(with_table(row, entries.tolist(), table_type), unit=unit)


def _start(centres: Doubles, mass: Doubles, count: int) -> Doubles:
    density = np.cumsum(np.cbrt(mass))
    density /= density[-1]
    return np.interp((np.arange(count) + 0.5) / count, density, centres)


def _lloyd(centres: Doubles, mass: Doubles, entries: Doubles) -> Doubles:
    for _ in range(_STEPS):
        moved = _centroids(centres, mass, entries)
        if np.abs(moved - entries).max() < 1e-7:
            break
        entries = moved
    return entries


def _centroids(centres: Doubles, mass: Doubles, entries: Doubles) -> Doubles:
    """Each entry moved to the centre of mass of the cells nearest to it; one without mass stays where it is."""
    owner = np.searchsorted((entries[1:] + entries[:-1]) / 2, centres)
    total = np.bincount(owner, mass, len(entries))
    moment = np.bincount(owner, mass * centres, len(entries))
    return np.where(total > 0, moment / np.maximum(total, 1e-300), entries)


def _error(centres: Doubles, mass: Doubles, entries: Doubles) -> float:
    owner = np.searchsorted((entries[1:] + entries[:-1]) / 2, centres)
    return float((mass * (centres - entries[owner]) ** 2).sum())
