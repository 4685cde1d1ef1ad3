"""Scale the input channels of layers, and fold the inverse into what makes their input: the model computes the same.

    x ─ Multiply(γ) ─▸ layers(W)                becomes   x ─ Multiply(γ / t) ─▸ layers(W · diag t)
    x ─ MatMul(P) ─ linear … ─▸ layers(W)       becomes   x ─ MatMul(diag(1/t) P) ─ linear … ─▸ layers(W · diag t)
    x ─▸ layers(W)                              becomes   x ─ Multiply(1 / t) ─▸ layers(W · diag t)

`ScaleFolding` does all of it for factors that a caller has. Within compression `Folding` says what scales each weight,
which is multiplied while it is read, and edits the rest of the graph: gains, biases, and Multiplies where nothing takes
the factors. New constants have the type and the name of those they replace; one that others read too stays for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.passes import ModelPass

from ov_weight_compression.ir_utils.dequantization import replace_constant
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import count, flag, shown
from ov_weight_compression.ir_utils.types import Array, Float32, element_type, float_constant, float_values
from ov_weight_compression.patterns import Roles, Weight, find_weights, parse_roles, sources_of
from ov_weight_compression.patterns.equalization import EqualizationGroup, equalization_groups
from ov_weight_compression.patterns.fold_targets import GainTarget, Operand, RowsTarget

_DECOMPRESSION_MARK = "decompression_0"


@dataclass(frozen=True)
class Scaling:
    """One line of the report: layers whose input was scaled, or why it was not."""

    weights: tuple[str, ...]
    into: str
    """What took the factors: "norm", "weight", "multiply" (inserted, executed at run time), or "" for nothing."""
    name: str
    """The norm's gain, the weight, or the first of the inserted Multiplies."""
    cost: float | None
    """Measured cost of rounding with the factors, as a share of the cost without; None where there were no data."""
    reason: str = ""
    """Why nothing was scaled."""
    bytes: int = 0
    """Of the constants of inserted Multiplies."""


@dataclass(frozen=True, eq=False)
class Fold:
    """One group's factors."""

    group: EqualizationGroup
    columns: Float32
    """[in], or [experts, in], t: the layers' columns are multiplied by it, what makes their input is divided by it."""
    cost: float | None
    """Measured cost of rounding with the factors, as a share of the cost without; None where there were no data."""

    @property
    def classes(self) -> Float32:
        """t of each class; of each expert's in turn where experts have factors of their own."""
        if self.columns.ndim == 2:
            return self.columns.reshape(-1)
        return _of_classes(self.group, self.columns)

    @property
    def producer(self) -> RowsTarget | None:
        """The weight whose rows take the factors, where one does."""
        target = self.group.target
        return target if isinstance(target, RowsTarget) else None

    def apply(self) -> None:
        """Edit the graph: gains, biases, or Multiplies where nothing takes the factors; weights are somebody else's."""
        target = self.group.target
        if target is None:
            _insert(self.group, self.columns)
            return
        if isinstance(target, GainTarget):
            operands = [target.gain, *([target.bias] if target.bias else [])]
        else:
            operands = list(target.biases)
        classes = self.classes
        for operand in operands:
            _divide(operand, classes)

    def report(self) -> Scaling:
        """The fold as a line of the report."""
        names, target = self.group.names, self.group.target
        if target is not None:
            return Scaling(names, "weight" if self.producer else "norm", target.name, self.cost)
        size = self.columns.size * int(self.group.input.get_element_type().bitwidth) // 8
        return Scaling(names, "multiply", self.group.multiply, self.cost, bytes=size)


@dataclass(frozen=True, eq=False)
class Folding:
    """All folds of a model, and the factors that follow from them: see `of`."""

    folds: tuple[Fold, ...] = ()
    left: tuple[Scaling, ...] = ()
    """The groups that have none, and why."""
    columns: Mapping[str, Float32] = field(default_factory=dict)
    """t of every weight whose columns are multiplied by it, `[in]` or `[experts, in]`, by the weight's name; the same
    array for all weights of a fold."""
    rows: Mapping[str, Float32] = field(default_factory=dict)
    """1 / t of every weight whose rows take factors, `[rows]`, by the weight's name."""

    @staticmethod
    def of(folds: tuple[Fold, ...], left: tuple[Scaling, ...] = ()) -> Folding:
        """The folds with their factors by weight."""
        rows: dict[str, Float32] = {}
        for fold in folds:
            if fold.producer is not None:
                weight = fold.producer.weight
                own = rows.setdefault(weight.name, np.ones(weight.rows, dtype=np.float32))
                own[list(fold.producer.rows)] /= fold.classes
        columns = {weight.name: fold.columns for fold in folds for weight in fold.group.weights}
        return Folding(folds, left, columns, rows)

    def touches(self, weight: Weight) -> bool:
        """Whether a weight's values change."""
        return weight.name in self.columns or weight.name in self.rows

    def without(self, weight: Weight, reason: str) -> Folding:
        """The folds that leave a weight alone."""
        kept, left = [], list(self.left)
        for fold in self.folds:
            scaled = set(fold.group.names)
            if fold.producer:
                scaled.add(fold.producer.weight.name)
            if weight.name in scaled:
                left.append(Scaling(fold.group.names, "", "", None, reason))
            else:
                kept.append(fold)
        return Folding.of(tuple(kept), tuple(left))


class ScaleFolding(ModelPass):
    """Scale the input channels of a float model's layers, in place; the model computes the same.

    A pass for `openvino.passes.Manager`; AWQ within compression does the same by itself and needs no such pass. The
    weights that change become constants in memory, rounded to the type that they had.

        equalize = lambda group: 1 / numpy.sqrt(activations[group.weights[0].name])
        manager.register_pass(ScaleFolding(equalize))

    Args:
        factors: t of a group's input channels, f32 `[in]`, or `[experts, in]` for experts side by side, positive; None
            leaves the group as it is. Channels of one class (`group.classes`) must have the same. See
            `patterns.equalization` for groups. By default those that AWQ takes without data: columns far below the
            usual size are lifted to it.
        group_size: for the default: what the weights will be stored in groups of.
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
        factors: Callable[[EqualizationGroup], Array | None] | None = None,
        *,
        group_size: int = 128,
        insert: bool = False,
        roles: Roles | None = None,
    ) -> None:
        super().__init__()
        self._factors, self._insert = factors, flag().parse("insert", insert)
        self._group_size: int = count(1).parse("group_size", group_size)
        self._roles = None if roles is None else parse_roles(roles)
        self.folded: tuple[EqualizationGroup, ...] = ()

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        weights, _ = find_weights(model, roles=self._roles)
        wanted = [group for group in equalization_groups(model, weights) if group.target is not None or self._insert]
        sources, factors = sources_of(weights), self._factors
        if factors is None:
            from ov_weight_compression.passes.awq import factors_without_data

            found = [(group, factors_without_data(group, sources, self._group_size)) for group in wanted]
        else:
            found = [(group, factors(group)) for group in wanted]
        folding = Folding.of(tuple(Fold(group, _checked(group, own), None) for group, own in found if own is not None))
        sources = sources.folded(folding.columns, folding.rows)
        touched = [weight for weight in weights if folding.touches(weight)]
        constants = [sources.constant(weight) for weight in touched]
        for weight, constant in zip(touched, constants, strict=True):
            constant.set_friendly_name(weight.stored_name)
            replace_constant(weight.constant, constant, weight.stored_name)
        for fold in folding.folds:
            fold.apply()
        model.validate_nodes_and_infer_types()
        self.folded = tuple(fold.group for fold in folding.folds)
        return bool(folding.folds)


def _of_classes(group: EqualizationGroup, factors: Float32) -> Float32:
    """t of each class of a group's channels, from that of each channel."""
    found = np.ones(max(group.classes) + 1, dtype=np.float32)
    found[list(group.classes)] = factors
    return found


def _checked(group: EqualizationGroup, given: Array) -> Float32:
    """A caller's factors for a group."""
    factors = np.asarray(given, dtype=np.float32)
    shapes = [[group.columns], [group.experts, group.columns]][: 1 if group.experts == 1 else 2]
    first = f"factors for the group of {shown(group.weights[0].name)}"
    if list(factors.shape) not in shapes:
        raise OptionError(f"{first}: must have the shape {shapes[-1]}, got {list(factors.shape)}")
    if not np.all((factors > 0) & np.isfinite(factors)):
        raise OptionError(f"{first}: must be positive and finite")
    if group.experts == 1 and not np.array_equal(_of_classes(group, factors)[list(group.classes)], factors):
        raise OptionError(f"{first}: channels of one class must have the same factor, since one row makes them")
    return factors


def rounded_to(values: Array, kind: str) -> Float32:
    """Values as a constant of a floating-point type holds them."""
    if kind in ("f32", "f64"):
        return values.astype(np.float32)
    with np.errstate(over="ignore"):
        return float_values(float_constant(values, element_type(kind)))


def _divide(operand: Operand, classes: Float32) -> None:
    """Give the operation that reads a constant another one, with every value divided by its class's factor."""
    constant = operand.constant
    place = np.asarray(operand.classes)
    factors = np.where(place >= 0, classes[place], np.float32(1)).astype(np.float32)
    node, port = operand.reader
    source = node.input_value(port)
    shape = tuple(int(size) for size in source.get_partial_shape().to_shape())
    values = (float_values(constant).reshape(-1) / factors).reshape(shape)
    new = float_constant(values, constant.get_output_element_type(0))
    new.set_friendly_name(constant.get_friendly_name())
    if source.get_element_type() != constant.get_output_element_type(0):
        new = ops.convert(new, source.get_element_type())
        new.set_friendly_name(source.get_node().get_friendly_name())
        new.get_rt_info()[_DECOMPRESSION_MARK] = ""
    node.input(port).replace_source_output(new.output(0))


def _insert(group: EqualizationGroup, factors: Float32) -> None:
    """A Multiply by 1 / t in front of the group's layers, one for each tensor that they read."""
    inserted: dict[ov.Output, Any] = {}
    for layer, port in group.layers:
        source = layer.input_value(port)
        if source not in inserted:
            rank = int(source.get_partial_shape().rank.get_length())
            lead = [1] * (rank - 1) if factors.ndim == 1 else [*[1] * (rank - 3), len(factors), 1]
            inverse = float_constant((1 / factors).reshape([*lead, factors.shape[-1]]), source.get_element_type())
            scaled = ops.multiply(source, inverse)
            scaled.set_friendly_name(f"{layer.get_friendly_name()}/smoothing")
            inverse.set_friendly_name(f"{layer.get_friendly_name()}/smoothing/factors")
            inserted[source] = scaled
        layer.input(port).replace_source_output(inserted[source].output(0))
