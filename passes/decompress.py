"""The float model back from a compressed one, whoever compressed it.

    codes ─ Convert ─ [Subtract] ─ Multiply ─ [Reshape] ─▸ layer      →      constant ─ [Convert] ─▸ layer

The constants are postponed, like those of compression: nothing is computed here, `ov.save_model` and `compile_model`
ask for one weight at a time, and the package's own `save_model` writes several at once, in pieces.

The values are what OpenVINO computes from the chain in f32, rounded once to the constant's type. What compression has
rounded away is not in the file any more and does not come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Any

import openvino as ov
from openvino.passes import ModelPass

from ov_weight_compression.ir_utils.dequantization import replace_constant
from ov_weight_compression.ir_utils.file_io import FileMappings
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight
from ov_weight_compression.ir_utils.option_kinds import OptionKind, check_model, choice, flag
from ov_weight_compression.ir_utils.types import F16_MAX
from ov_weight_compression.ir_utils.weight_source import FloatValues, source_at
from ov_weight_compression.ir_utils.worker_pool import Pipeline
from ov_weight_compression.patterns import CompressedWeight, Roles, find_compressed, parse_roles
from ov_weight_compression.patterns.compressed import drop_metadata
from ov_weight_compression.patterns.graphs import graphs_of

_DTYPE = OptionKind("'f16' or 'f32', or None for the type of each chain", choice(("f16", "f32")).read, "str")
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
        roles: what operations of your own make of their weights, as `WeightCompression` takes it.

    Attributes:
        weights: what has become of each compressed weight, after the pass has run.

    Raises:
        OptionError: another dtype.
    """

    def __init__(self, dtype: str | None = None, lazy: bool = True, *, roles: Roles | None = None) -> None:
        super().__init__()
        self.dtype: str | None = None if dtype is None else _DTYPE.parse("dtype", dtype)
        self.lazy: bool = flag().parse("lazy", lazy)
        self.roles: Roles | None = None if roles is None else parse_roles(roles)
        self.weights: tuple[Decompressed, ...] = ()

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        found = find_compressed(model, self.roles)
        mappings = FileMappings()
        pipeline = Pipeline()
        replaced = [FloatValues(one.name, source_at(one.end, mappings), self._type_of(one)) for one in found]
        lazy = [LazyWeight(pipeline, one) for one in replaced]
        # OpenVINO 2026.4 runs a body that reads constants alone while it compiles the model, and reads postponed
        # constants in it from memory that is not theirs.
        computed = {graph.path for graph in graphs_of(model) if graph.path and not graph.varying}
        constants = [
            new.constant("values")
            if self.lazy and one.body not in computed
            else ov.op.Constant(new.computed("values"), shared_memory=True)
            for one, new in zip(found, lazy, strict=True)
        ]
        if not self.lazy:
            pipeline.stop()
        for one, constant in zip(found, constants, strict=True):
            constant.set_friendly_name(one.name)
            replace_constant(one.end, constant, one.name)
        self.weights = tuple(
            Decompressed(one.name, new.parts["values"].shape, new.parts["values"].type, one.bytes, new.nbytes)
            for one, new in zip(found, replaced, strict=True)
        )
        if found:
            drop_metadata(model)
        return bool(found)

    def _type_of(self, weight: CompressedWeight) -> str:
        own = str(weight.last.get_output_element_type(0).to_string())
        if self.dtype != "f16" or own == "f16":
            return self.dtype or ("f16" if own == "f16" else "f32")
        return "f16" if _bound(weight) <= F16_MAX else "f32"


def apply_weight_decompression(
    model: ov.Model, dtype: str | None = None, lazy: bool = True, *, roles: Roles | None = None
) -> ov.Model:
    """Make the compressed weights of a model float constants, in place, and return it; see `DecompressWeights`.

    Args:
        model: any model, whoever compressed it.
        dtype: `"f16"` or `"f32"`; by default what each weight's own chain computes in.
        lazy: False computes everything now and inserts plain constants.
        roles: what operations of your own make of their weights, as `WeightCompression` takes it.

    Raises:
        OptionError: not a model, or another dtype.
        WorkError: a weight could not be computed (with `lazy=False`; otherwise when saving or compiling does it).
    """
    check_model(model)
    DecompressWeights(dtype, lazy, roles=roles).run_on_model(model)
    return model


def _bound(weight: CompressedWeight) -> float:
    """What no value of a weight exceeds in magnitude, from its scales, zero points and table alone."""
    if weight.table is not None:
        largest = _absmax(weight.table)
    else:
        largest = _LARGEST.get(weight.storage, float(1 << weight.codes.get_output_element_type(0).bitwidth))
    if weight.zero_point is not None:
        largest += _absmax(weight.zero_point)
    return largest * prod(_absmax(scale) for scale in (weight.scale, weight.tensor_scale) if scale is not None)


def _absmax(constant: ov.Node) -> float:
    found = source_at(constant).scan()
    return inf if found.bad else found.absmax
