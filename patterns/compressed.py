"""Recognising weights that are compressed already, whoever compressed them.

Every tool writes the same chain, with more or fewer links:

    codes ─ Convert ─ [Reshape] ─ [Subtract(zero point)] ─ [Multiply(scale)]+ ─ [Reshape] ─ layer
    table ─ [Convert] ─ Gather(Convert(codes)) ─ [Multiply(scale)] ─ [Reshape] ─ layer

where the zero point and the scale are constants behind any Convert, Reshape or Multiply of constants (two-level scales
are `Convert(Multiply(Convert(scale), scalar))`). The chain counts only if a layer reads its end as a weight: a mask
that is converted and multiplied, a table of indices or a shape does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import openvino as ov

from ov_weight_compression.patterns.chain import (
    FLOAT8_TYPES,
    INDEX_TYPES,
    STORAGE_TYPES,
    Chain,
    extend,
    merged_axis,
    scale_shape,
)
from ov_weight_compression.patterns.follow import Use, follow
from ov_weight_compression.patterns.graphs import Graph, bytes_of, graphs_of
from ov_weight_compression.patterns.roles import Kind, Refusal, Role, Roles, demanding, with_roles
from ov_weight_compression.patterns.views import own_view
from ov_weight_compression.patterns.weight import Consumer

__all__ = ["CompressedWeight", "compressed_in", "find_compressed"]


@dataclass(frozen=True, eq=False)
class CompressedWeight:
    """A weight and the constants it is stored as."""

    name: str
    """Friendly name of the constant that holds the codes."""
    codes: ov.Node
    """The constant of codes, or of indices into `table`."""
    zero_point: ov.Node | None
    scale: ov.Node | None
    """The largest constant among the scales; None where there is none (a cast to fp8)."""
    tensor_scale: ov.Node | None
    """A second scale, of one element for the whole weight."""
    table: ov.Node | None
    """The codebook."""
    chain: tuple[ov.Node, ...]
    """The operations from the codes' first Convert to `last`, in order, without those of scale and zero point."""
    last: ov.Node
    """Its output stands for the float weight; a Convert behind it belongs to the layer."""
    shape: tuple[int, ...]
    """Shape of the float weight, which is that of `last`."""
    code_shape: tuple[int, ...]
    """Shape of the codes where the scale meets them: one dimension more than `shape` where they are grouped."""
    reduction_axes: tuple[int, ...]
    """Of the float weight, as its first consumer sees it."""
    group_axis: int | None
    """The axis of the float weight that groups run along; None for one scale per channel or per tensor."""
    group_size: int
    """-1 for one scale per channel or per tensor."""
    kind: Kind
    consumers: tuple[Consumer, ...]
    body: str = ""

    @property
    def end(self) -> ov.Node:
        """`last`, or, where a scale per block has cut the axes, the Reshape behind it that joins them again."""
        targets = list(self.last.output(0).get_target_inputs())
        if self.group_axis is None and len(targets) == 1 and targets[0].get_index() == 0:
            node = targets[0].get_node()
            shape = node.get_output_partial_shape(0)
            if node.get_type_name() == "Reshape" and shape.is_static and len(shape) < len(self.shape):
                return node
        return self.last

    @property
    def storage(self) -> str:
        """Element type of the codes."""
        return str(self.codes.get_output_element_type(0).to_string())

    @property
    def scale_type(self) -> str | None:
        """Element type of the scale."""
        return None if self.scale is None else str(self.scale.get_output_element_type(0).to_string())

    @property
    def constants(self) -> tuple[ov.Node, ...]:
        """Everything that is stored for this weight: codes, zero point, scales, table."""
        parts = (self.codes, self.zero_point, self.scale, self.tensor_scale, self.table)
        return tuple(part for part in parts if part is not None)

    @property
    def bytes(self) -> int:
        """Bytes of all its constants."""
        return sum(bytes_of(part) for part in self.constants)

    @property
    def elements(self) -> int:
        """Elements of the float weight."""
        return prod(self.shape)

    @property
    def format(self) -> str:
        """What it is stored as, in words: "u4, group 128"."""
        parts = ["codebook of " + self.table.get_output_element_type(0).to_string()] if self.table is not None else []
        return ", ".join([*parts, self.storage, *([f"group {self.group_size}"] if self.group_size > 0 else [])])

    @property
    def is_fp8_source(self) -> bool:
        """Whether this may be a weight as an fp8 checkpoint holds it, waiting to be compressed: eight-bit floats with
        no scale, one scale for all, per channel or per block, but not in groups along the reduction axis, which only
        a compressor makes. A compressed model with one scale per channel looks the same: ask its `rt_info` first."""
        return self.storage in FLOAT8_TYPES and self.group_size == -1 and self.scale_type != "f8e8m0"


def find_compressed(model: ov.Model, roles: Roles | None = None) -> list[CompressedWeight]:
    """Every weight of `model` and of the bodies inside it that is stored compressed, in graph order; `roles` are rows
    for operations that the table of roles does not know."""
    graphs, table = graphs_of(model), with_roles(roles)
    found = [(graph.place(one.consumers[0].node), one) for graph in graphs for one in compressed_in(graph, table)]
    found.sort(key=lambda entry: entry[0])
    return [one for _, one in found]


def compressed_in(graph: Graph, roles: Roles) -> list[CompressedWeight]:
    """The compressed weights of one level of a model."""
    candidates = STORAGE_TYPES | INDEX_TYPES
    found: list[CompressedWeight] = []
    for constant, element_type in graph.constants:
        if element_type in candidates and len(constant.shape) > 0:
            found += _chains(graph, constant, element_type, roles)
    return found


def _chains(graph: Graph, codes: ov.Node, storage: str, roles: Roles) -> Iterator[CompressedWeight]:
    """The chains that start at one constant: one, unless several layers decompress it each for itself."""
    for target in codes.output(0).get_target_inputs():
        node = target.get_node()
        if target.get_index() == 0 and node.get_type_name() == "Convert" and node in graph.position:
            chain = Chain(codes, [node])
            if extend(chain, storage):
                yield from _settle(graph, chain, roles)


def _settle(graph: Graph, chain: Chain, roles: Roles) -> Iterator[CompressedWeight]:
    """The compressed weight, if a layer reads the end of the chain as one."""
    shape = tuple(chain.last.get_output_partial_shape(0).to_shape())
    live = [use for use in follow(chain.last, own_view(shape), roles) if use.node in graph.position]
    live.sort(key=lambda use: (graph.position[use.node], use.port))
    uses: list[tuple[Use, Role]] = [(use, use.role) for use in live if isinstance(use.role, Role)]
    if not uses:
        return
    use, role = uses[0]
    seen = use.view if not isinstance(use.view, Refusal) else ()
    scales = sorted(chain.scales, key=lambda scale: prod(scale.shape), reverse=True)
    axis = merged_axis(chain.code_shape, shape, scale_shape(chain))
    yield CompressedWeight(
        name=chain.codes.get_friendly_name().removesuffix("_nncf_codebook_idxs"),
        codes=chain.codes,
        zero_point=chain.zero_point,
        scale=scales[0] if scales else None,
        tensor_scale=scales[1] if len(scales) > 1 else None,
        table=chain.table,
        chain=tuple(chain.nodes),
        last=chain.last,
        shape=shape,
        code_shape=chain.code_shape,
        reduction_axes=tuple(sorted({piece.axis for dim in role.reduction for piece in seen[dim]})),
        group_axis=axis,
        group_size=-1 if axis is None else chain.code_shape[axis + 1],
        kind=demanding(one.kind for _, one in uses),
        consumers=tuple(Consumer(one.node, one.port, own) for one, own in uses),
        body=graph.path,
    )
