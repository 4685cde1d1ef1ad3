"""Names for the types that every room passes around."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import openvino as ov

__all__ = ["F16_MAX", "Array", "Float32", "element_type"]

Array: TypeAlias = npt.NDArray[Any]
Float32: TypeAlias = npt.NDArray[np.float32]

F16_MAX = 65504.0
"""The largest number that f16 holds."""


def element_type(name: str) -> ov.Type:
    """OpenVINO's element type of that name ("u4"). `ov.Type(name)` would read it as numpy's, where u4 has 4 bytes."""
    kind: ov.Type = getattr(ov.Type, name)
    return kind


# The bindings fill their table of numpy's types when an array is first asked for, under a lock at which two threads
# that come at once wait for each other forever. While this module is imported there is one.
_ = ov.op.Constant(ov.Type.f16, ov.Shape([1]), [0.0]).data
