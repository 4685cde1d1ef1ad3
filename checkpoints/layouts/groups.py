"""Which input channels of a layer share a scale, when that is not simply every g in a row.

A checkpoint says for each input channel the group it belongs to (`g_idx`), or implies it. A chain in the graph knows
only groups of one size, side by side. What brings one to the other, without a change of value:

    order   channels sorted by group: codes[:, order] has each group in one piece, and the layer's input has to be
            brought into the same order
    size    the greatest size that divides every group; a group of several such pieces repeats its scale
    pick    the checkpoint's group that each piece belongs to
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array

__all__ = ["Grouping", "grouping_of", "plain_grouping"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Grouping:
    """How the input channels of a layer are grouped."""

    columns: int
    size: int
    """Channels of a group, in the order below."""
    pick: Integers
    """[columns / size], the checkpoint's group of each."""
    order: Integers | None = None
    """[columns], the channel at each place; None where they keep their places."""

    def spread(self, parameters: Array) -> Array:
        """[rows, the checkpoint's groups] → [rows, columns / size]."""
        same = self.pick.size == parameters.shape[1] and np.array_equal(self.pick, np.arange(self.pick.size))
        return parameters if same else parameters[:, self.pick]

    def ordered(self, codes: Array) -> Array:
        """[rows, columns] in the order of the groups."""
        return codes if self.order is None else np.take(codes, self.order, axis=1)


def plain_grouping(columns: int, size: int, count: int, name: str) -> Grouping:
    """Every `size` channels in a row are a group, the last perhaps a smaller one; -1 is all of them. Where that does
    not make `count` groups, the layer has a size of its own, which divides its channels.

    Raises:
        ModelError: so many groups there cannot be; `name` is that of the tensor that has them.
    """
    size = columns if size <= 0 else size
    if -(-columns // size) != count:
        if not count or columns % count:
            raise ModelError(f"{name}: {count} groups do not fit {columns} input channels")
        size = columns // count
    return grouping_of(np.arange(columns) // size, name, count)


def grouping_of(index: Array, name: str, count: int) -> Grouping:
    """The grouping that an index of groups says, `[columns]`; groups counted from the end where negative.

    Raises:
        ModelError: it names a group that is not among the `count` there are; `name` is the tensor's.
    """
    groups: Integers = np.asarray(index, dtype=np.int64)
    groups = np.where(groups < 0, groups + count, groups)
    if groups.size and not 0 <= int(groups.min()) <= int(groups.max()) < count:
        raise ModelError(f"{name}: names group {int(index.max())}, of {count}")
    order: Integers | None = None
    if (np.diff(groups) < 0).any():
        order = np.argsort(groups, kind="stable")
        groups = groups[order]
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.diff(starts, append=groups.size)
    size = int(np.gcd.reduce(sizes)) if sizes.size else 1
    return Grouping(groups.size, size, groups[::size], order)
