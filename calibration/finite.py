"""What counts as a number when data are reduced: finite, and small enough for its square to be summed in f32.

A sample that holds anything else is refused when it is read, with its number and its input. A sample may also be fine
and overflow inside the model; the layers behind that point then do not see it, and the report names them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ov_weight_compression.ir_utils.errors import OptionError

__all__ = ["LARGEST", "check_sample", "unfit"]

LARGEST = 2.0**50
"""1.1e15: the squares of a hundred million such values still have a sum in f32."""
_ROOT = 1.8e19
"""The square of a larger value is infinity in f32."""


def unfit(x: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Which rows of `x [..., in]` hold a value that does not count, `[...]`; None where none does."""
    if x.size == 0 or _fits(x, LARGEST):
        return None
    found: NDArray[np.bool_] = ~np.all(np.abs(x) <= LARGEST, axis=-1)  # NaN is not
    return found


def check_sample(number: int, name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Refuse an input of a sample that is no data.

    Masks may hold -infinity and the like: that is how they take something out of a sum.

    Args:
        number: of the sample, from 1.
        name: of the model's input.
        array: of any type.
        dtype: that it will be given to the model as.

    Raises:
        OptionError: it holds NaN, infinity, or a value that is too large.
    """
    if array.dtype.kind != "f" or dtype.kind != "f" or array.size == 0 or _fits(array, _ROOT):
        return
    flat = array.reshape(-1)
    wrong = np.isnan(flat) if "mask" in name else ~(np.abs(flat) <= _ROOT)
    if not wrong.any():
        return
    first = float(flat[int(np.argmax(wrong))])
    told = {"nan": "NaN", "inf": "infinity", "-inf": "-infinity"}.get(str(first), f"{first:g}")
    more = "" if np.isfinite(first) else f" ({int(wrong.sum())} of {array.size} values are not finite or too large)"
    limit = ", whose square overflows" if np.isfinite(first) else ""
    raise OptionError(
        f"dataset: sample {number}, input '{name}': it holds {told}{more}{limit}; mend the sample or leave it out"
    )


def _fits(x: NDArray[Any], limit: float) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(x.max() <= limit and x.min() >= -limit)
