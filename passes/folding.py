"""Scale the input channels of layers, and fold the inverse into what makes their input: the model computes the same.

    x ─ Multiply(γ) ─▸ layers(W)                becomes   x ─ Multiply(γ / t) ─▸ layers(W · diag t)
    x ─ MatMul(P) ─ linear … ─▸ layers(W)       becomes   x ─ MatMul(diag(1/t) P) ─ linear … ─▸ layers(W · diag t)
    x ─▸ layers(W)                              becomes   x ─ Multiply(1 / t) ─▸ layers(W · diag t)

`ScaleFolding` does all of it for factors that a caller has. Within compression weights are multiplied while they are
read, and `fold_into_graph` does the rest: gains, biases, and Multiplies where nothing takes the factors. New constants
have the type and the name of those they replace; one that others read too stays for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import ModelPass

from ov_weight_compression.ir_utils.constants import float_values
from ov_weight_compression.ir_utils.dequantization import replace_constant
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import Array, Float32, element_type
from ov_weight_compression.patterns import Roles, find_weights, parse_roles, sources_of
from ov_weight_compression.patterns.equalization import ScalingGroup, scaling_groups
from ov_weight_compression.patterns.scale_folding import NormAbsorber, Operand, ProducerAbsorber

__all__ = ["ScaleFolding", "fold_into_graph", "rounded_to"]

_DECOMPRESSION_MARK = "decompression_0"
_WIDE = {"f32": np.float32, "f64": np.float64}


class ScaleFolding(ModelPass):
    """Scale the input channels of a float model's layers by factors that a caller has, in place.

    A pass for `openvino.passes.Manager`; AWQ within compression chooses factors of its own and needs no such pass. The
    weights that change become constants in memory, rounded to the type that they had.

        equalize = lambda group: 1 / numpy.sqrt(activations[group.weights[0].name])
        manager.register_pass(ScaleFolding(equalize))

    Args:
        factors: t of a group's input channels, f32 `[in]`, or `[experts, in]` for experts side by side, positive; None
            leaves the group as it is. Channels of one class (`group.classes`) must have the same. See
            `patterns.equalization` for groups.
        insert: insert a Multiply, executed at run time, where nothing before the layers can take the factors; without
            it such groups are not asked for.
        roles: what operations of your own make of their weights, as `WeightCompression` takes it.

    Attributes:
        folded: the groups that were scaled, in graph order.

    Raises:
        OptionError: factors of another shape, not positive, or different within a class.
    """

    def __init__(
        self,
        factors: Callable[[ScalingGroup], Array | None],
        *,
        insert: bool = False,
        roles: Roles | None = None,
    ) -> None:
        super().__init__()
        self._factors, self._insert = factors, insert
        self._roles = None if roles is None else parse_roles(roles)
        self.folded: tuple[ScalingGroup, ...] = ()

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        weights, _ = find_weights(model, roles=self._roles)
        wanted = [group for group in scaling_groups(model, weights) if group.absorber is not None or self._insert]
        found = [(group, self._factors(group)) for group in wanted]
        folds = [(group, _checked(group, factors)) for group, factors in found if factors is not None]
        columns = {weight.name: factors for group, factors in folds for weight in group.weights}
        rows: dict[str, Float32] = {}
        for group, factors in folds:
            if isinstance(group.absorber, ProducerAbsorber):
                producer = group.absorber.weight
                own = rows.setdefault(producer.name, np.ones(producer.rows, dtype=np.float32))
                own[list(group.absorber.rows)] /= of_classes(group, factors)
        sources = sources_of(weights).folded(columns, rows)
        touched = [weight for weight in weights if weight.name in columns or weight.name in rows]
        constants = [sources.constant(weight) for weight in touched]
        for weight, constant in zip(touched, constants, strict=True):
            constant.set_friendly_name(weight.stored_name)
            replace_constant(weight.constant, constant, weight.stored_name)
        for group, factors in folds:
            fold_into_graph(group, factors, of_classes(group, factors) if group.absorber else factors)
        model.validate_nodes_and_infer_types()
        self.folded = tuple(group for group, _ in folds)
        return bool(folds)


def of_classes(group: ScalingGroup, factors: Float32) -> Float32:
    """t of each class of a group's channels, from that of each channel."""
    found = np.ones(max(group.classes) + 1, dtype=np.float32)
    found[list(group.classes)] = factors
    return found


def _checked(group: ScalingGroup, given: Array) -> Float32:
    """A caller's factors for a group."""
    factors = np.asarray(given, dtype=np.float32)
    shapes = [[group.columns], [group.experts, group.columns]][: 1 if group.experts == 1 else 2]
    first = f"factors for the group of {shown(group.weights[0].name)}"
    if list(factors.shape) not in shapes:
        raise OptionError(f"{first}: must have the shape {shapes[-1]}, got {list(factors.shape)}")
    if not np.all((factors > 0) & np.isfinite(factors)):
        raise OptionError(f"{first}: must be positive and finite")
    if group.experts == 1 and not np.array_equal(of_classes(group, factors)[list(group.classes)], factors):
        raise OptionError(f"{first}: channels of one class must have the same factor, since one row makes them")
    return factors


def rounded_to(values: Array, kind: str) -> Float32:
    """Values as a constant of a floating-point type holds them."""
    if kind in _WIDE:
        return values.astype(np.float32)
    if kind == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    tensor = ov.op.Constant(element_type(kind), ov.Shape(list(values.shape)), values.astype(np.float32).reshape(-1))
    return float_values(tensor)


def fold_into_graph(group: ScalingGroup, factors: Float32, classes: Float32) -> tuple[str, ...]:
    """Divide the group's input by its factors, except for what rows of a producer take.

    Args:
        group: the group; its layers' weights are somebody else's business.
        factors: [in], t of every channel; [experts, in] where nothing absorbs and experts read each their own.
        classes: t of every class.

    Returns:
        The names of the Multiplies that were inserted.
    """
    absorber = group.absorber
    if absorber is None:
        return _insert(group, factors)
    if isinstance(absorber, NormAbsorber):
        operands = [absorber.gain, *([absorber.bias] if absorber.bias else [])]
    else:
        operands = list(absorber.biases)
    for operand in operands:
        _divide(operand, classes)
    return ()


def _divide(operand: Operand, classes: Float32) -> None:
    """Give the operation that reads a constant another one, with every value divided by its class's factor."""
    constant = operand.constant
    place = np.asarray(operand.classes)
    factors = np.where(place >= 0, classes[place], np.float32(1)).astype(np.float32)
    node, port = operand.reader
    source = node.input_value(port)
    shape = tuple(int(size) for size in source.get_partial_shape().to_shape())
    values = (float_values(constant).reshape(-1) / factors).reshape(shape)
    new = _constant(values, constant.get_output_element_type(0))
    new.set_friendly_name(constant.get_friendly_name())
    if source.get_element_type() != constant.get_output_element_type(0):
        new = ops.convert(new, source.get_element_type())
        new.set_friendly_name(source.get_node().get_friendly_name())
        new.get_rt_info()[_DECOMPRESSION_MARK] = ""
    node.input(port).replace_source_output(new.output(0))


def _insert(group: ScalingGroup, factors: Float32) -> tuple[str, ...]:
    """A Multiply by 1 / t in front of the group's layers, one for each tensor that they read."""
    inserted: dict[ov.Output, Any] = {}
    for layer, port in group.layers:
        source = layer.input_value(port)
        if source not in inserted:
            rank = int(source.get_partial_shape().rank.get_length())
            lead = [1] * (rank - 1) if factors.ndim == 1 else [*[1] * (rank - 3), len(factors), 1]
            inverse = _constant((1 / factors).reshape([*lead, factors.shape[-1]]), source.get_element_type())
            scaled = ops.multiply(source, inverse)
            scaled.set_friendly_name(f"{layer.get_friendly_name()}/smoothing")
            inverse.set_friendly_name(f"{layer.get_friendly_name()}/smoothing/factors")
            inserted[source] = scaled
        layer.input(port).replace_source_output(inserted[source].output(0))
    return tuple(node.get_friendly_name() for node in inserted.values())


def _constant(values: Array, kind: ov.Type) -> Any:
    if kind == ov.Type.bf16:
        return ov.op.Constant(kind, ov.Shape(list(values.shape)), values.astype(np.float32).reshape(-1))
    return ops.constant(np.ascontiguousarray(values, dtype=kind.to_dtype()))
