"""The float model back from a compressed one, whoever compressed it.

    codes ─ Convert ─ [Subtract] ─ Multiply ─ [Reshape] ─▸ layer      →      constant ─ [Convert] ─▸ layer

The constants are postponed, like those of compression: nothing is computed here, `ov.save_model` and `compile_model`
ask for one weight at a time, and the package's own `save_model` writes several at once, in pieces.

The values are what OpenVINO computes from the chain in f32, rounded once to the constant's type. What compression has
rounded away is not in the file any more and does not come back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import openvino as ov
from openvino.passes import ModelPass

from ov_weight_compression.ir_utils.chain_values import ConstantValues
from ov_weight_compression.ir_utils.constants import FileMappings
from ov_weight_compression.ir_utils.deferral import FileSink, active_deferral
from ov_weight_compression.ir_utils.dequantization import replace_constant
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.jobs import Job, Task
from ov_weight_compression.ir_utils.kinds import Kind, check_model, choice, flag
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.postponed import postponed_constant
from ov_weight_compression.ir_utils.recipe import drop_recipe
from ov_weight_compression.ir_utils.types import Array, element_type
from ov_weight_compression.patterns import CompressedWeight, find_compressed
from ov_weight_compression.patterns.graphs import is_postponed

__all__ = ["DecompressWeights", "Decompressed", "apply_weight_decompression"]

_DTYPES: dict[str, type] = {"f16": np.float16, "f32": np.float32}
_DTYPE = Kind("'f16' or 'f32', or None for the type of each chain", choice(list(_DTYPES)).read, "str")
_F16_MAX = 65504.0
_LARGEST = {"nf4": 1.0, "f4e2m1": 6.0, "f8e4m3": 448.0, "f8e5m2": 57344.0}
"""The largest magnitude of a code; integers of n bits are taken to reach 2ⁿ."""


@dataclass(frozen=True)
class Decompressed:
    """One weight that is a float constant again."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """Of the constant: `f16` or `f32`."""
    bytes_before: int
    """Codes, zero points, scales and table."""
    bytes_after: int


class DecompressWeights(ModelPass):
    """Make every compressed weight of a model a float constant: a pass for `openvino.passes.Manager`, or to call by
    itself. A model without compressed weights is left as it is.

    Args:
        dtype: `"f16"` or `"f32"`; by default the type that each weight's own chain computes in, f16 for most. With
            `"f16"` a weight whose values might lie beyond its range (65504) becomes f32 all the same.
        lazy: False computes everything now and inserts plain constants.

    Attributes:
        weights: what has become of each compressed weight, after the pass has run.

    Raises:
        OptionError: another dtype.
    """

    def __init__(self, dtype: str | None = None, lazy: bool = True) -> None:
        super().__init__()
        self.dtype: str | None = None if dtype is None else _DTYPE.parse("dtype", dtype)
        self.lazy: bool = flag().parse("lazy", lazy)
        self.weights: tuple[Decompressed, ...] = ()

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        found = find_compressed(model)
        mappings = FileMappings()
        pipeline = Pipeline()
        replaced = [_FloatWeight(one, self._type_of(one), mappings, pipeline) for one in found]
        constants = [one.constant(self.lazy) for one in replaced]
        for one, constant in zip(found, constants, strict=True):
            constant.set_friendly_name(one.name)
            replace_constant(one.end, constant, one.name)
        self.weights = tuple(one.row() for one in replaced)
        if found:
            drop_recipe(model)
        return bool(found)

    def _type_of(self, weight: CompressedWeight) -> str:
        own = str(weight.last.get_output_element_type(0).to_string())
        if self.dtype != "f16" or own == "f16":
            return self.dtype or ("f16" if own == "f16" else "f32")
        return "f16" if _bound(weight) <= _F16_MAX else "f32"


def apply_weight_decompression(model: ov.Model, dtype: str | None = None, lazy: bool = True) -> ov.Model:
    """Make the compressed weights of a model float constants, in place, and return it; see `DecompressWeights`.

    Raises:
        OptionError: not a model, or another dtype.
        WorkError: a weight could not be computed (with `lazy=False`; otherwise when saving or compiling does it).
    """
    check_model(model)
    DecompressWeights(dtype, lazy).run_on_model(model)
    return model


class _FloatWeight:
    """One weight's float constant to be. Implements `ir_utils.deferral.DeferredWeight`."""

    identity = None

    def __init__(self, weight: CompressedWeight, dtype: str, mappings: FileMappings, pipeline: Pipeline) -> None:
        self.name, self.pipeline = weight.name, pipeline
        self._weight, self._dtype, self._mappings = weight, dtype, mappings
        self._kind = element_type(dtype)
        self._shape = tuple(int(size) for size in weight.end.shape)
        self._bytes = weight.elements * self._kind.size

    def constant(self, lazy: bool) -> Any:
        """A postponed constant, or a plain one."""
        shape = ov.Shape(list(self._shape))
        if lazy:
            return postponed_constant(self._kind, shape, self._make)
        return ov.op.Constant(self._whole(), shared_memory=True)

    def row(self) -> Decompressed:
        return Decompressed(self.name, self._shape, self._dtype, self._weight.bytes, self._bytes)

    def job(self, sinks: Mapping[str, FileSink]) -> Job:
        """What computes the values and writes them in pieces."""
        return _FloatJob(self, sinks["values"])

    def write(self, sink: FileSink) -> None:
        """Compute the values and write them in pieces."""
        place = 0
        for piece in self._pieces():
            sink.write(place, piece)
            place += piece.nbytes

    def _make(self) -> ov.Tensor:
        deferral = active_deferral()
        return self._whole() if deferral is None else deferral.stub(self, "values", self._kind, self._shape)

    def _whole(self) -> ov.Tensor:
        tensor = ov.Tensor(self._kind, ov.Shape(list(self._shape)))
        flat, place = tensor.data.reshape(-1), 0
        for piece in self._pieces():
            flat[place : place + piece.size] = piece
            place += piece.size
        return tensor

    def _pieces(self) -> Iterable[Array]:
        """The values in order, in the constant's type; what was read of the file is given back at the end."""
        try:
            for piece in self._checked(ConstantValues(self._weight.end.output(0)).pieces()):
                yield piece.astype(_DTYPES[self._dtype], copy=False)
        except WorkError:
            raise
        except RuntimeError as error:
            raise WorkError(f"{self.name}: cannot be decompressed: {error}") from error
        for part in self._weight.constants:
            if not is_postponed(part):
                self._mappings.drop(part.get_tensor_view().data)

    def _checked(self, pieces: Iterator[Array]) -> Iterator[Array]:
        """The pieces, each after a look at whether the file still has them."""
        read = [part.get_tensor_view().data for part in self._weight.constants if not is_postponed(part)]
        while True:
            for part in read:
                self._mappings.check(part)
            try:
                yield next(pieces)
            except StopIteration:
                return


@dataclass(frozen=True)
class _FloatJob:
    """One weight's values on their way into a file."""

    weight: _FloatWeight
    sink: FileSink
    nbytes: int = 0

    @property
    def name(self) -> str:
        return self.weight.name

    def begin(self) -> tuple[Sequence[Task], Callable[[], dict[str, Any]]]:
        return [partial(self.weight.write, self.sink)], dict


def _bound(weight: CompressedWeight) -> float:
    """What no value of a weight exceeds in magnitude, from its scales, zero points and table alone."""
    if weight.table is not None:
        largest = _absmax(weight.table)
    else:
        largest = _LARGEST.get(weight.storage, float(1 << weight.codes.get_output_element_type(0).bitwidth))
    if weight.zero_point is not None:
        largest += _absmax(weight.zero_point)
    return largest * prod(_absmax(scale) for scale in (weight.scale, weight.tensor_scale) if scale is not None)


def _absmax(constant: Any) -> float:
    return max(float(np.abs(piece).max(initial=0.0)) for piece in ConstantValues(constant.output(0)).pieces())
