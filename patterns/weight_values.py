"""What the values of each weight of a model are read from: its constant, or what somebody has put in its place.

sources = sources_of(weights)                  # constants and fp8 chains of the graph, as it is now
sources = sources_of(weights, given)           # some of them elsewhere, as in the files of a checkpoint
sources[weight].read(slab)
sources.folded(columns, rows)[weight]          # the same with factors (AWQ)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import openvino as ov

from ov_weight_compression.ir_utils.constants import float_constant
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.file_mappings import FileMappings
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.ir_utils.weight_source import ChainSource, ConstantSource, FoldedSource, WeightSource
from ov_weight_compression.patterns.weight import Weight

__all__ = ["GivenSources", "Sources", "given_sources", "sources_of"]

GivenSources: TypeAlias = Mapping[str, WeightSource] | Callable[[Weight], WeightSource | None]
"""Sources by the names of weights, or a function; a weight that has none there is read from the graph."""


def given_sources(value: Any) -> GivenSources:
    """An option's value, if it may be sources. Raises ValueError where it is something else."""
    if not isinstance(value, Mapping) and not callable(value):
        raise ValueError(value)
    found: GivenSources = value
    return found


@dataclass(frozen=True, eq=False)
class Sources:
    """One source for each weight. Nothing that happens to the graph changes what they read."""

    by_name: Mapping[str, WeightSource]
    given: frozenset[str] = frozenset()
    """Names of the weights whose constants in the graph only keep a place."""

    def __getitem__(self, weight: Weight) -> WeightSource:
        return self.by_name[weight.name]

    def folded(self, columns: Mapping[str, Float32], rows: Mapping[str, Float32]) -> Sources:
        """The same with factors for columns, `[in]` or `[experts, in]`, and rows, by the weight's name."""
        changed = {
            name: FoldedSource(self.by_name[name], columns.get(name), rows.get(name))
            for name in {**columns, **rows}
            if name in self.by_name
        }
        return Sources({**self.by_name, **changed}, self.given)

    def unfolded(self, name: str, matrix: Array) -> Array:
        """What a matrix `[rows, columns]` of values like a weight's stands for without its factors."""
        source = self.by_name[name]
        return source.unfolded(matrix) if isinstance(source, FoldedSource) else matrix

    def constant(self, weight: Weight) -> ov.Node:
        """A weight's values as a Constant of the shape and type that it has in the graph."""
        source = self.by_name[weight.name]
        values = source.layout.from_matrix(source.read_all())
        return float_constant(values, weight.constant.get_output_element_type(0))


def sources_of(weights: Iterable[Weight], given: GivenSources | None = None) -> Sources:
    """Sources for all of `weights`.

    Raises:
        OptionError: a source that was given is of another shape, or of a weight that the model does not have.
    """
    weights, mappings = list(weights), FileMappings()
    found: dict[str, WeightSource] = {}
    if given is not None:
        found = _given(weights, given)
    own = frozenset(found)
    for weight in weights:
        if weight.name not in found:
            node: Any = weight.source
            found[weight.name] = (
                ConstantSource(node, weight.layout, mappings, weight.element_type)
                if node.get_type_name() == "Constant"
                else ChainSource(node, weight.layout, mappings)
            )
    return Sources(found, own)


def _given(weights: list[Weight], given: GivenSources) -> dict[str, WeightSource]:
    asked = {weight.name: given.get(weight.name) if isinstance(given, Mapping) else given(weight) for weight in weights}
    found = {name: source for name, source in asked.items() if source is not None}
    if isinstance(given, Mapping) and len(found) < len(given):
        stranger = next(name for name in given if name not in found)
        raise OptionError(f"sources: {shown(stranger)} is no weight of the model; names are those of constants")
    for weight in weights:
        source = found.get(weight.name)
        if source is not None and source.layout != weight.layout:
            raise OptionError(
                f"sources: {shown(weight.name)} has the shape {list(weight.layout.shape)}, reduced over "
                f"{list(weight.layout.reduced)}; its source has {list(source.layout.shape)} over "
                f"{list(source.layout.reduced)}"
            )
    return found
