"""The factors that a run has chosen, seen from the weights: what scales each of them, and what the graph has to take.

A group's layers multiply their columns by `t`; a producer that absorbs divides its rows by it; everything else that
takes factors (gains, biases, inserted Multiplies) is edited in the graph by `passes.folding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.patterns import Weight

if TYPE_CHECKING:
    from ov_weight_compression.patterns.equalization import ScalingGroup
    from ov_weight_compression.patterns.scale_folding import ProducerAbsorber

__all__ = ["Fold", "Folding", "Scaling"]


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

    group: ScalingGroup
    columns: Float32
    """[in], or [experts, in], t: the layers' columns are multiplied by it, what makes their input is divided by it."""
    cost: float | None
    """Measured cost of rounding with the factors, as a share of the cost without; None where there were no data."""

    @property
    def classes(self) -> Float32:
        """t of each class."""
        factors = np.ones(max(self.group.classes) + 1, dtype=np.float32)
        factors[list(self.group.classes)] = self.columns
        return factors

    @property
    def producer(self) -> ProducerAbsorber | None:
        """The weight whose rows take the factors, where one does."""
        from ov_weight_compression.patterns.scale_folding import ProducerAbsorber

        absorber = self.group.absorber
        return absorber if isinstance(absorber, ProducerAbsorber) else None

    def report(self) -> Scaling:
        """The fold as a line of the report."""
        names, absorber = tuple(weight.name for weight in self.group.weights), self.group.absorber
        if absorber is not None:
            return Scaling(names, "weight" if self.producer else "norm", absorber.name, self.cost)
        size = self.columns.size * int(self.group.input.get_element_type().bitwidth) // 8
        return Scaling(names, "multiply", self.group.multiply, self.cost, bytes=size)


@dataclass(frozen=True, eq=False)
class Folding:
    """All folds of a model."""

    folds: tuple[Fold, ...] = ()
    left: tuple[Scaling, ...] = ()
    """The groups that have none, and why."""

    @cached_property
    def columns(self) -> Mapping[str, Float32]:
        """t of every weight whose columns are multiplied by it, `[in]` or `[experts, in]`, by the weight's name; the
        same array for all weights of a fold."""
        return {weight.name: fold.columns for fold in self.folds for weight in fold.group.weights}

    @cached_property
    def rows(self) -> Mapping[str, Float32]:
        """1 / t of every weight whose rows absorb factors, `[rows]`, by the weight's name."""
        found: dict[str, Float32] = {}
        for fold in self.folds:
            if fold.producer is not None:
                weight = fold.producer.weight
                rows = found.setdefault(weight.name, np.ones(weight.rows, dtype=np.float32))
                rows[list(fold.producer.rows)] /= fold.classes
        return found

    def touches(self, weight: Weight) -> bool:
        """Whether a weight's values change."""
        return weight.name in self.columns or weight.name in self.rows

    def apply(self) -> None:
        """Edit the graph: gains, biases, and Multiplies where nothing absorbs. Weights are somebody else's business."""
        if not self.folds:
            return
        from ov_weight_compression.passes.folding import fold_into_graph

        for fold in self.folds:
            fold_into_graph(fold.group, fold.columns, fold.classes if fold.group.absorber else fold.columns)

    def report(self) -> tuple[Scaling, ...]:
        """Every group as a line of the report: the folds, then what was left."""
        return (*(fold.report() for fold in self.folds), *self.left)

    def without(self, weight: Weight, reason: str) -> Folding:
        """The folds that leave a weight alone."""
        kept, left = [], list(self.left)
        for fold in self.folds:
            scaled = {one.name for one in fold.group.weights}
            if fold.producer:
                scaled.add(fold.producer.weight.name)
            if weight.name in scaled:
                left.append(Scaling(tuple(one.name for one in fold.group.weights), "", "", None, reason))
            else:
                kept.append(fold)
        return Folding(tuple(kept), tuple(left))
