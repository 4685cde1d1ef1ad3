"""A codebook fitted to a weight, or to several: Lloyd's iteration on a histogram of normalised values.

Every group is divided by its largest magnitude, so all values lie in [-1, 1]; a value counts for as much as its error
does in the weight, ``absmax(group)^2`` times its importance. In one dimension k-means needs no samples, only how much
lies where: a histogram of 4096 cells holds any number of rows and can be filled from a stream, in any order of pieces
to the same bits. Where several weights share a table each counts by its relative error, a larger one for more. Then,
with entries ``t_1 < t_2 < ...`` and cells of mass ``h`` at ``c``:

    each cell goes to its nearest entry;    t_k = sum h c / sum h over the cells of k;    repeat.

The start has entries as dense as the cube root of the mass, which is where the iteration would lead for many entries
(Panter and Dite). What is stored are entries in the table's type, so at each step the rounded table is what is judged,
and the best one is kept. The table may be any multiple of [-1, 1]: an 8-bit float has finer steps just below a power
of two than above, so a few multiples are tried.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.quantization.formats import Format, round_to_type, with_codebook

Doubles = npt.NDArray[np.float64]

# Weights that are enough to fit a table of 16 entries, and to spare.
SAMPLE = 1 << 22

_CELLS = 4096
_MASS = 1 << 20  # a whole number of these keeps sums exact, whatever their order
_CENTRES: Doubles = (np.arange(_CELLS, dtype=np.float64) + 0.5) * (2 / _CELLS) - 1
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

    Attributes:
        mass: what the values in each cell count for, f64 [4096].
        counted: how many values have been counted.
    """

    def __init__(self, absmax: float, group: int) -> None:
        self.absmax = absmax or 1.0
        self.group = group
        self.mass: Doubles = np.zeros(_CELLS)
        self.counted = 0

    def add(self, rows: Array, importance: Float32 | None = None) -> None:
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
        self.counted += groups.size

    def share(self) -> Doubles:
        """The mass of a weight among others: relative to its energy, times its values. Zeros for a weight of zeros."""
        energy = float((self.mass * _CENTRES**2).sum())
        return self.mass * (self.counted / energy) if energy > 0 else np.zeros(_CELLS)


def fitted_format(
    format: Format,
    histograms: Iterable[Histogram],
    *,
    count: int = 16,
    codebook_type: str = "f8e4m3",
    start: Sequence[float] | None = None,
) -> Format:
    """The format of one weight, or of several, with a fitted table.

    Args:
        format: the mode's (``adaptive_codebook``).
        histograms: one for each weight that shares the table; all its rows, or a sample (see ``sample_step``).
        count: entries of the table, 2 to 65536. Where rounding makes some of them equal the last one is repeated, so
            that a table's size does not depend on what it is fitted to.
        codebook_type: their stored type, one of ``CODEBOOK_TYPES``.
        start: ``count`` values to begin with, in any multiple; chosen here where None.
    """
    entries, unit = _table(sum((one.share() for one in histograms), np.zeros(_CELLS)), count, codebook_type, start)
    if len(entries) == 1:  # a weight of one value
        entries = np.sort(np.append(entries, 0.0))
    filled = [*entries.tolist(), *[float(entries[-1])] * (count - len(entries))]
    return replace(with_codebook(format, filled, codebook_type), unit=unit)


@lru_cache(maxsize=8)
def stand_in(format: Format, count: int, codebook_type: str) -> Format:
    """A format like those that ``fitted_format`` makes, for decisions that are taken before there is a table."""
    unit = _MULTIPLES[codebook_type][0]
    place = np.linspace(-1, 1, count)
    levels = (place + place**3) / 2 * unit  # denser around zero
    return replace(with_codebook(format, levels.tolist(), codebook_type), unit=unit)


def _table(mass: Doubles, count: int, codebook_type: str, start: Sequence[float] | None) -> tuple[Doubles, float]:
    """Up to ``count`` rising entries as ``codebook_type`` holds them, and the entry that 1 is mapped to."""
    if not mass.any():
        unit = _MULTIPLES[codebook_type][0]
        return np.linspace(-unit, unit, count), unit
    best: Doubles = np.empty(0)
    unit, least = 1.0, np.inf
    if start is None:
        density = np.cumsum(np.cbrt(mass))
        free: Doubles = np.interp((np.arange(count) + 0.5) / count, density / density[-1], _CENTRES)
    else:
        free = np.sort(np.asarray(start, dtype=np.float64))
        free = free / max(np.abs(free).max(), 1e-300)
    for _ in range(_STEPS):
        moved = _centroids(mass, free)
        if np.abs(moved - free).max() < 1e-7:
            break
        free = moved
    for multiple in _MULTIPLES[codebook_type]:
        entries = free
        for _ in range(4):
            stored = round_to_type((entries * multiple).astype(np.float32), codebook_type)
            rounded = np.unique(stored).astype(np.float64) / multiple
            error = _error(mass, rounded)
            if error < least and rounded.any():
                best, unit, least = rounded * multiple, multiple, error
            entries = _centroids(mass, rounded)
    if best.size == 0:  # entries so near to zero that they all become it: what is left to tell apart are the largest
        unit = _MULTIPLES[codebook_type][0]
        pairs = (np.array([-1.0, 0.0]), np.array([0.0, 1.0]))
        best = min(pairs, key=lambda pair: _error(mass, pair)) * unit
    return best, unit


def _centroids(mass: Doubles, entries: Doubles) -> Doubles:
    """Each entry moved to the centre of mass of the cells nearest to it; one without mass stays where it is."""
    owner = np.searchsorted((entries[1:] + entries[:-1]) / 2, _CENTRES)
    total = np.bincount(owner, mass, len(entries))
    moment = np.bincount(owner, mass * _CENTRES, len(entries))
    return np.where(total > 0, moment / np.maximum(total, 1e-300), entries)


def _error(mass: Doubles, entries: Doubles) -> float:
    owner = np.searchsorted((entries[1:] + entries[:-1]) / 2, _CENTRES)
    return float((mass * (_CENTRES - entries[owner]) ** 2).sum())
