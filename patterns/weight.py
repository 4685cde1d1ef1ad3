"""What the search of a graph hands to everybody else: weights that can be compressed, what their values are read from,
and constants that cannot.

Both are frozen dataclasses, and a refusal is data: a `Skip` with a reason in plain words, never an exception.

Axes are always those of the constant itself, whatever Transpose lies between it and the layer that uses it. (Where all
that reads a constant reads it through the same Reshape, the Reshape stands for the constant, and its axes count.) Each
axis has one name:

    reduction   the layer sums over it, or reads it as one row: a scale, or a group of codes, runs along it
    channel     the layer's output channels, or the rows of an embedding
    batch       independent copies of a layer side by side: experts, groups of a convolution

Seen as numbers a weight is the matrix `[rows, columns]`: its `layout` moves the reduction axes last, everything before
them is flattened to rows. Its values are read from its constant, or from what somebody has put in its place:

    sources = sources_of(weights)                  # constants and fp8 chains of the graph, as it is now
    sources = sources_of(weights, given)           # some of them elsewhere, as in the files of a checkpoint
    sources[weight].read(slab)
    sources.folded(columns, rows)[weight]          # the same with factors (AWQ)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import openvino as ov

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.file_io import FileMappings
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import FLOAT_TYPES, Array, Float32, float_constant
from ov_weight_compression.ir_utils.weight_source import ChainSource, ConstantSource, FoldedSource, Layout, WeightSource
from ov_weight_compression.patterns.roles import Consumer, Kind


@dataclass(frozen=True, eq=False)
class Weight:
    """One constant that can be compressed, and everything that the later stages need to know about its place."""

    name: str
    """The constant's friendly name; where a model uses it twice, the later one gets a suffix, `#2` and so on."""
    constant: ov.Node
    """The Constant, or the operation whose output stands for the weight: of an fp8 source, and behind a Reshape (see
    `parts`)."""
    kind: Kind
    """The most demanding of the consumers' kinds: CONVOLUTION, then GATHER, EXPERTS, MATMUL."""
    consumers: tuple[Consumer, ...]
    """The layers that use it as a weight, in graph order; at least one."""
    shape: tuple[int, ...]
    element_type: str
    """One of `FLOAT_TYPES`; of an fp8 source that of its codes."""
    reduction_axes: tuple[int, ...]
    """Ascending, at least one."""
    channel_axes: tuple[int, ...]
    batch_axes: tuple[int, ...]
    input_axes: tuple[int, ...]
    """The reduction axes in the order in which the layer's input channels run; differs from `reduction_axes` only
    where a Transpose sits between (kernels of a TensorFlow convolution)."""
    is_embedding: bool = False
    """A Gather reads it. Without `all_layers` NNCF keeps every such table in the backup mode, not only the first."""
    is_last_layer: bool = False
    """The last MatMul of the graph, kept in the backup mode without `all_layers`; never a weight that an embedding
    shares, nor any weight at all where the graph's last layer is ignored."""
    fragile: str = ""
    """Why few bits in it would cost more than in others (see `find.fragile_layers`): empty, or what it decides."""
    other_uses: tuple[str, ...] = ()
    """Names of operations that are not layers and read the same constant (an Add, a Result): they will read the
    decompressed values."""
    body: str = ""
    """Where it lies: empty in the model itself, else the path of operations whose bodies lead to it."""
    parts: tuple[ov.Node, ...] = ()
    """Where `constant` is no Constant: the constants that the weight is stored as; of an fp8 source the codes first."""

    layout: Layout = field(init=False, repr=False)
    """How it is seen as a matrix `[rows, columns]`."""
    groupable: bool = field(init=False)
    """Whether groups of its columns can share a scale: not in kernels, nor where its reduction axes lie apart."""
    rows: int = field(init=False)
    columns: int = field(init=False)
    """What one scale per channel covers."""
    elements: int = field(init=False)
    bytes: int = field(init=False)
    """Of the constant, or of its parts, as they were found."""
    source: ov.Node = field(init=False)
    """What its values are read from: its one float Constant, in whatever shape, or the end of an fp8 source."""
    stored_name: str = field(init=False)
    """Friendly name of the constant that holds its values or codes; not unique, unlike `name`."""
    backup_reason: str | None = field(init=False)
    """Why it gets the backup mode unless `all_layers` is given; None where it does not."""

    def __post_init__(self) -> None:
        layout, parts = Layout(self.shape, self.reduction_axes), self.parts or (self.constant,)
        follows = {
            "layout": layout,
            "groupable": layout.groupable and self.kind is not Kind.CONVOLUTION,
            "rows": layout.rows,
            "columns": layout.columns,
            "elements": layout.rows * layout.columns,
            "bytes": sum(int(part.get_byte_size()) for part in parts),
            "source": parts[0] if self.element_type in FLOAT_TYPES else self.constant,
            "stored_name": str(parts[0].get_friendly_name()),
            "backup_reason": "embedding" if self.is_embedding else "last layer" if self.is_last_layer else None,
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)

    def skipped(self, reason: str) -> Skip:
        """It, left alone after all."""
        return Skip(self.name, self.consumers[0].name, self.shape, self.element_type, reason, self.bytes)


@dataclass(frozen=True)
class Skip:
    """A constant that is left as it is, and why."""

    name: str
    consumer: str
    """Friendly name of the first operation that reads it; empty where nothing does."""
    shape: tuple[int, ...]
    element_type: str
    reason: str
    bytes: int


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

    def unfolded(self, weight: Weight, matrix: Array) -> Array:
        """What a matrix `[rows, columns]` of values like a weight's stands for without its factors, in the shape that
        the weight has in the graph."""
        source = self.by_name[weight.name]
        return source.layout.from_matrix(source.unfolded(matrix) if isinstance(source, FoldedSource) else matrix)

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
