"""What is asked of single constants."""

from __future__ import annotations

import openvino as ov
import pytest
from openvino.utils import make_postponed_constant

from ov_weight_compression.patterns.graphs import bytes_of


class Maker:
    """Nobody asks for the tensor."""

    def __call__(self) -> ov.Tensor:
        raise AssertionError("computed")


@pytest.mark.parametrize("kind", ["u3", "u4", "u6", "f16"])
@pytest.mark.parametrize("shape", [[10], [3, 3], [8, 8]])
def test_a_postponed_constant_takes_what_its_tensor_will(kind: str, shape: list[int]) -> None:
    """Codes of 3 and 6 bits lie in blocks of three bytes, the last of them whole."""
    element_type = getattr(ov.Type, kind)
    postponed = make_postponed_constant(element_type, ov.Shape(shape), Maker())
    assert bytes_of(postponed) == ov.Tensor(element_type, ov.Shape(shape)).byte_size
