"""A weight that is stored as a chain (codes behind a scale) as the matrix `[rows, columns]` of what it stands for.

The weights of an fp8 checkpoint are read this way when they are compressed: in f32, a piece of rows at a time. Only
where the axes have to be permuted the whole matrix is computed, and kept until every row has been released.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ov_weight_compression.ir_utils.chain_values import ConstantValues, detached
from ov_weight_compression.ir_utils.layout import Layout, Slab
from ov_weight_compression.ir_utils.types import Array, Float32

__all__ = ["ChainMatrix"]


class ChainMatrix:
    """The values at the end of a chain of constants. Its methods may be called from several threads."""

    def __init__(self, last: Any, layout: Layout) -> None:
        self._end, self._layout = detached(last.output(0)), layout
        self._matrix: Float32 | None = None
        self._released = 0
        self._lock = threading.Lock()

    def rows(self, slab: Slab) -> Float32:
        """The rows of a slab, `[n, columns]`."""
        layout = self._layout
        if layout.contiguous:
            values = ConstantValues(self._end, max(1, len(layout.lead)))
            return values.rows(slab.start, slab.stop).reshape(-1, layout.columns)
        with self._lock:
            if self._matrix is None:
                self._matrix = self.all()
            return self._matrix[slab.start : slab.stop]

    def all(self) -> Float32:
        """The whole matrix."""
        return np.asarray(self._layout.to_matrix(ConstantValues(self._end).whole()), dtype=np.float32)

    def pieces(self) -> Iterator[Float32]:
        """All values in the constant's order, as flat arrays."""
        return ConstantValues(self._end).pieces()

    def release(self, slab: Slab) -> None:
        """Rows that will not be asked for again soon."""
        with self._lock:
            self._released += slab.stop - slab.start
            if self._released >= self._layout.rows:
                self._released, self._matrix = 0, None

    def codes(self, slab: Slab) -> Array | None:
        """The bytes of the file that a slab was made of, where they lie together."""
        node = self._end.get_node()
        while node.get_type_name() != "Constant":
            node = node.input_value(0).get_node()
        if not self._layout.contiguous or node.get_output_element_type(0).bitwidth != 8:
            return None
        data: Array = node.get_tensor_view().data.reshape(-1).view(np.uint8)
        return data[slab.start * self._layout.columns : slab.stop * self._layout.columns]
