"""A checkpoint's own codes in place of a model's float weights.

    constant ─ [Convert] ─▸ layer      →      codes ─ Convert ─ [Subtract] ─ Multiply ─ [Reshape] ─▸ layer

The chain is the one that compression makes, and its constants are postponed like compression's: codes are read from the
checkpoint and repacked while the model is saved. Where a CPU would misread codes in groups as large as the
checkpoint's, they are cut into groups that it reads, or the chain is one that it expands; both are said in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.checkpoints.channel_order import bring_into_order
from ov_weight_compression.checkpoints.layouts.quantised_weight import (
    QuantisedWeight,
    finer,
)
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.weight_source import Slab
from ov_weight_compression.ir_utils.worker_pool import Pipeline
from ov_weight_compression.passes.device_rules import misread_on_cpu, refused_on_cpu
from ov_weight_compression.passes.option_values import Devices
from ov_weight_compression.passes.plan import Plan, PlannedWeight
from ov_weight_compression.passes.report import Report, make_report
from ov_weight_compression.passes.rewrite import as_stored, rewrite
from ov_weight_compression.patterns import Kind, Weight, find_weights
from ov_weight_compression.quantization.formats import Encoded

_SMALLEST_GROUP = 16
"""Smaller groups are not cut: their scales would take half as many bytes as the codes."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """A quantised weight's rows as a job asks for them."""

    weight: QuantisedWeight

    @property
    def tensor_scale(self) -> np.float32 | None:
        return self.weight.tensor_scale

    def rows(self, slab: Slab) -> Encoded:
        """Those of a slab."""
        return self.weight.rows(slab.start, slab.stop)


def insert_codes(model: Any, found: Mapping[Any, QuantisedWeight], devices: Devices = (), lazy: bool = True) -> Report:
    """Put quantised weights into the graph, in place.

    Args:
        model: changed in place; not at all where an error is raised.
        found: by the Constant that each of them is to take the place of, whose values do not matter.
        devices: where the model will run; by default anywhere, CPUs included.
        lazy: False computes everything now.

    Returns:
        What became of each weight, its `reason` what the checkpoint had.

    Raises:
        ModelError: a constant is no layer's weight, or its shape is not that of the quantised weight; names both.
        WorkError: a weight cannot be read (with `lazy=False`; otherwise when the model is saved).
    """
    weights = {weight.source: weight for weight in find_weights(model)[0]}
    for constant, quantised in found.items():
        _check(constant, weights.get(constant), quantised)
    pairs = [(weight, found[constant]) for constant, weight in weights.items() if constant in found]
    pairs, edits = bring_into_order(pairs)
    fitted = [_fitted(weight, quantised, devices) for weight, quantised in pairs]
    plan = as_stored(Plan(tuple(fitted)))
    recipe = {"mode": "checkpoint"} | ({"device": ",".join(one.value for one in devices)} if devices else {})
    report = make_report(plan, recipe, devices)
    rewrite(plan, Pipeline(), lazy)
    for edit in edits:
        edit()
    return report


def turned_in_place(constant: Any) -> Any | None:
    """Put a Constant `[…, out, in]`, whose values do not matter, in place of one `[…, in, out]`, and tell MatMuls so;
    None, and nothing is changed, where something else reads it.

    Codes lie along the input channels, so theirs is the other shape.
    """
    edges, values = [], [constant.output(0)]
    for value in values:
        for target in value.get_target_inputs():
            node: Any = target.get_node()
            if node.get_type_name() == "Convert":
                values.append(node.output(0))
            elif node.get_type_name() == "MatMul" and target.get_index() == 1:
                edges.append(node)
            else:
                return None
    kind, shape = constant.get_output_element_type(0), list(constant.get_output_shape(0))
    shape[-2:] = shape[:-3:-1]
    turned = ov.op.Constant(ov.Tensor(kind, ov.Shape(shape)), shared_memory=True)
    turned.set_friendly_name(constant.get_friendly_name())
    constant.output(0).replace(turned.output(0))
    for value in values[1:]:
        value.get_node().validate_and_infer_types()
    for layer in edges:
        layer.set_attribute("transpose_b", not layer.get_attributes()["transpose_b"])
        layer.validate_and_infer_types()
    return turned


def _check(constant: Any, weight: Weight | None, quantised: QuantisedWeight) -> None:
    if weight is None:
        raise ModelError(
            f"{quantised.name}: the graph uses '{constant.get_friendly_name()}' otherwise than as a layer's weight, so "
            "the checkpoint's codes cannot stand there"
        )
    inputs_in_order = tuple(weight.input_axes) == tuple(weight.reduction_axes)
    if (weight.rows, weight.columns) != (quantised.row_count, quantised.columns) or not inputs_in_order:
        raise ModelError(
            f"{quantised.name}: has {quantised.row_count} rows of {quantised.columns}, the graph's '{weight.name}' has "
            f"{weight.rows} of {weight.columns} (shape {list(weight.shape)})"
        )


def _fitted(weight: Weight, quantised: QuantisedWeight, devices: Devices) -> PlannedWeight:
    """How a weight is stored: as it is, unless a CPU would misread that."""
    format = quantised.spec.format
    problem = misread_on_cpu(devices, weight, format, quantised.spec.group_size)
    if problem is not None and not format.fixed_group:
        smaller = quantised.group & -quantised.group
        if smaller >= _SMALLEST_GROUP and misread_on_cpu(devices, weight, format, smaller) is None:
            quantised, problem = finer(quantised, smaller), None
    problem = (
        problem
        or refused_on_cpu(devices, weight, format, quantised.spec.group_size)
        or _gather_problem(weight, quantised)
    )
    if problem is not None:
        note = f"{problem}, so it is stored in a way that they expand"
        quantised = replace(quantised, notes=(*quantised.notes, note))
    return PlannedWeight(
        weight=weight,
        spec=quantised.spec,
        absmax=quantised.absmax,
        reason=quantised.described,
        kept_from_codes=problem is not None,
        exact=True,
        stored=_Rows(quantised),
    )


def _gather_problem(weight: Weight, quantised: QuantisedWeight) -> str | None:
    """A table in groups must have its scales in f16, or a CPU does not compile it."""
    gathered = any(consumer.role.kind is Kind.GATHER for consumer in weight.consumers)
    if gathered and quantised.spec.group_size != -1 and quantised.spec.scale_type == "f32":
        return "CPUs refuse an embedding in groups with scales in f32"
    return None
