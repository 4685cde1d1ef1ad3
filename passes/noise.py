"""The 8-bit noise of a weight, streamed over its rows: what the sensitivity metrics start from."""

from __future__ import annotations

from collections.abc import Iterator

from ov_weight_compression.ir_utils.constants import ConstantReader
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.quantization.sensitivity import WeightNoise, weight_noise

__all__ = ["noise_of"]

_PIECE_ELEMENTS = 1 << 19
_EPSILON = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-52}
"""Machine epsilon by bytes of an element."""


def noise_of(reader: ConstantReader) -> WeightNoise:
    """The noise of one weight, whatever its size, in a bounded amount of memory."""
    return weight_noise(_pieces(reader), _EPSILON[reader.element_bytes])


def _pieces(reader: ConstantReader) -> Iterator[Array]:
    for slab in reader.layout.slabs(max(1, _PIECE_ELEMENTS // max(1, reader.layout.columns))):
        yield reader.read(slab)
        reader.release(slab)
