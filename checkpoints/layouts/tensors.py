"""What a layout asks of the tensors of a checkpoint, and the look at their types and sizes before any is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.types import Array, bf16_to_f32

__all__ = ["RawTensor", "Tensors", "checked", "float_array", "required"]


class RawTensor(Protocol):
    """One tensor of a checkpoint."""

    @property
    def dtype(self) -> str:
        """Its type, in safetensors' word: `F16`, `BF16`, `I32`, `F8_E4M3` …"""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def values(self) -> Array:
        """Its elements, read-only; types that numpy lacks as their bits (bf16 uint16, 8-bit floats uint8). Called when
        they are wanted, and not kept: each call may map a file."""
        ...


Tensors: TypeAlias = Mapping[str, RawTensor]


def required(tensors: Tensors, name: str) -> RawTensor:
    """A tensor by its name.

    Raises:
        ModelError: the checkpoint has none of that name.
    """
    try:
        return tensors[name]
    except KeyError:
        raise ModelError(f"{name}: the checkpoint has no such tensor, and its layer cannot be read without") from None


def checked(tensors: Tensors, name: str, dtypes: tuple[str, ...], shape: tuple[int | None, ...]) -> RawTensor:
    """A tensor of one of these types and of this shape (None: any size).

    Raises:
        ModelError: there is none, or it is another; names it, what it is and what it must be.
    """
    tensor = required(tensors, name)
    if tensor.dtype not in dtypes:
        raise ModelError(f"{name}: is {tensor.dtype}, must be {' or '.join(dtypes)}")
    same = len(tensor.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not same:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelError(f"{name}: has shape {list(tensor.shape)}, must be [{wanted}]")
    return tensor


def float_array(tensor: RawTensor, name: str) -> Array:
    """The values of a tensor of floats: f16 as it is, bf16 and f32 as f32.

    Raises:
        ModelError: it is of another type.
    """
    values = tensor.values()
    if tensor.dtype == "BF16":
        return bf16_to_f32(values)
    if tensor.dtype not in ("F16", "F32"):
        raise ModelError(f"{name}: is {tensor.dtype}, must be F16, BF16 or F32")
    return values
