"""Whether a model computes on the CPU what numpy makes of its stored constants, and what is not the package's doing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from tests.fuzz.stored import FOLDED, operations_of, values_of
from tests.running import EXACT

Array = np.ndarray[Any, np.dtype[Any]]
_FLOATS = ("f32", "f16", "bf16", "f64")
_TOLERANCE = 1e-3
_BF16 = 2.0**-7
_ROUNDINGS = 4
_ROUNDED = 4.0
"""How often more a compiled model may be off than one whose weights are rounded to f16: plugins fold chains in f16."""


def core() -> ov.Core:
    if not hasattr(core, "core"):
        core.core = ov.Core()  # type: ignore[attr-defined]
    return core.core  # type: ignore[attr-defined, no-any-return]


def run(model: ov.Model, feeds: Sequence[Any], config: Mapping[str, Any] = EXACT) -> list[Array]:
    request = core().compile_model(model, "CPU", dict(config)).create_infer_request()
    results = request.infer(dict(enumerate(feeds)))
    return [_numbers(request.get_tensor(port)) for port in results]


def _numbers(tensor: ov.Tensor) -> Array:
    """A tensor's values; OpenVINO hands the bits of bf16 out as those of f16."""
    values = np.array(tensor.data)
    if tensor.get_element_type() != ov.Type.bf16:
        return values
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def misread(model: ov.Model, outputs: Sequence[Array], feeds: Sequence[Any]) -> str:
    """Where outputs are not what numpy's weights give, by more than rounding explains."""
    try:
        expected = run(_referenced(model), feeds)
        undefined = undefined_outputs(model)
        near, tolerance = expected, _BF16 if _computes_in_bf16(model) else _TOLERANCE
        for number, (new, wanted) in enumerate(zip(outputs, expected, strict=True)):
            if new.dtype.kind != "f" or new.shape != wanted.shape or number in undefined:
                continue
            if not np.isfinite(wanted).all() or not np.isfinite(new).all():
                continue
            largest = float(np.abs(wanted).max(initial=0.0))
            error = _largest_error(new, wanted)
            if error <= tolerance * largest + 1e-30:
                continue
            if near is expected:
                near = run(_referenced(model, 1), feeds)
            if not error <= _ROUNDED * _largest_error(near[number], wanted) + tolerance * largest:
                if _changes(model, feeds, number):  # what the floats give is what was in the memory
                    continue
                return f"output {number}: off by {error:.3g} of {largest:.3g} ({error / (largest or 1.0):.2%})"
    except RuntimeError:  # the floats themselves are what the CPU does not take
        return ""
    return ""


def misread_by_default(saved: ov.Model, exact: Sequence[Array], feeds: Sequence[Any]) -> Iterator[str]:
    """As users run it: in bf16 where the CPU has that, activations quantised. Compared with the float model run so."""
    found, floats = run(saved, feeds, {}), [run(_referenced(saved), feeds, {})]
    undefined = undefined_outputs(saved)
    for number, (new, wanted) in enumerate(zip(found, exact, strict=True)):
        finite = np.isfinite(wanted).all() and np.isfinite(floats[0][number]).all()
        if new.dtype.kind != "f" or number in undefined or not finite:
            continue
        largest, error = float(np.abs(wanted).max(initial=0.0)), _largest_error(new, wanted)
        if error <= _ROUNDED * _largest_error(floats[0][number], wanted) + 0.05 * largest + 1e-30:
            continue
        if len(floats) == 1:  # one rounding may come out well by chance where sums cancel, others do not
            floats += [run(_referenced(saved, seed, True), feeds, {}) for seed in range(1, _ROUNDINGS + 1)]
            floats.append(run(_with_activations_in_8_bits(_referenced(saved)), feeds))
        if not error <= _ROUNDED * max(_largest_error(one[number], wanted) for one in floats) + 0.05 * largest:
            yield f"output {number}: off by {error / largest:.2%}"


def _with_activations_in_8_bits(model: ov.Model) -> ov.Model:
    """What MatMuls multiply constants with is rounded, as CPUs do it: to 255 levels in groups of 32, or in a row."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_a"]:
            continue
        value, shape = node.input_value(0), node.get_input_partial_shape(0)
        weight = node.input_value(1).get_node()
        source = weight.input_value(0).get_node() if weight.get_type_name() == "Convert" else weight
        static = shape.rank.is_static and len(shape) > 1 and shape[len(shape) - 1].is_static
        if source.get_type_name() != "Constant" or not static:
            continue
        columns = shape[len(shape) - 1].get_length()
        kept = [0] * (len(shape) - 1)
        cut = op.reshape(op.convert(value, "f32"), np.array([*kept, -1, 32 if columns % 32 == 0 else columns]), True)
        step = op.divide(op.reduce_max(op.abs(cut), np.array([-1]), True), np.float32(127))
        step = op.maximum(step, np.float32(1e-30))
        rounded = op.multiply(op.round(op.divide(cut, step), "half_to_even"), step)
        back = op.convert(op.reshape(rounded, np.array([*kept, columns]), True), value.get_element_type().to_string())
        node.input(0).replace_source_output(back.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _largest_error(found: Array, wanted: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))


def undefined_outputs(model: ov.Model) -> set[int]:
    """Outputs that depend on a sum over nothing: the CPU plugin leaves what was in the memory there (seen of MatMuls of
    no columns, which are not always zeros)."""
    empty: dict[ov.Node, bool] = {}
    for node in model.get_ordered_ops():
        shapes = [value.get_partial_shape() for value in node.input_values()]
        sums = node.get_type_name() == "MatMul" and any(
            shape.is_static and 0 in list(shape.to_shape()) for shape in shapes
        )
        empty[node] = sums or any(empty[value.get_node()] for value in node.input_values())
    return {number for number, output in enumerate(model.outputs) if empty[output.get_node()]}


def _computes_in_bf16(model: ov.Model) -> bool:
    """Whether some layer's outputs are rounded to bf16: an order of adding that differs is a step of that then."""
    kinds = ("MatMul", "Convolution", "Gather", "Add")
    layers = [node for node in operations_of(model) if node.get_type_name() in kinds]
    return any(node.get_output_element_type(0) == ov.Type.bf16 for node in layers)


def _changes(model: ov.Model, feeds: Sequence[Any], number: int) -> bool:
    """Whether the floats alone do not give an output twice: seen of an If with infinities in a branch not taken."""
    runs = [run(_referenced(model), feeds)[number] for _ in range(6)]
    return any(not np.array_equal(runs[0], other, equal_nan=True) for other in runs[1:])


def _referenced(saved: ov.Model, rounding: int = 0, in_bf16: bool = False) -> ov.Model:
    """The model with every chain of constants replaced with its values by numpy; rounded, in ways that differ with the
    number, where one is given."""
    model = saved.clone()
    known: dict[ov.Node, Array | None] = {}
    bf16 = in_bf16 or any(
        node.get_output_size() and node.get_output_element_type(0) == ov.Type.bf16 for node in operations_of(model)
    )
    for node in list(operations_of(model)):
        if node.get_type_name() not in FOLDED or node.get_output_element_type(0).to_string() not in _FLOATS:
            continue
        values = values_of(node, known)
        targets = list(node.output(0).get_target_inputs())
        inside = [one for one in targets if one.get_node().get_type_name() in FOLDED]
        if values is None or len(inside) == len(targets) > 0:
            continue
        plain = _coarse(values, bf16, rounding) if rounding else values
        constant: ov.Node = op.constant(np.ascontiguousarray(plain, dtype=np.float32))
        if node.get_output_element_type(0) != ov.Type.f32:
            constant = op.convert(constant, node.get_output_element_type(0).to_string())
        for target in targets:
            if values_of(target.get_node(), known) is None:
                target.replace_source_output(constant.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _coarse(values: Array, bf16: bool, rounding: int) -> Array:
    """Off by as much as a plugin may round that folds a chain in the type that the graph says, in either direction."""
    signs = np.random.default_rng(rounding).choice(np.array([-1, 1], np.float32), values.shape)
    return values + signs * np.maximum(np.abs(values) * np.float32(2**-8 if bf16 else 2**-11), np.float32(2**-25))
