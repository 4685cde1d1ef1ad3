"""Recognising what is compressed already, whoever compressed it: weights by their chains, models by what they say.

Every tool writes the same chain, with more or fewer links:

    codes ─ Convert ─ [Reshape] ─ [Subtract(zero point)] ─ [Multiply(scale)]+ ─ [Reshape] ─ layer
    table ─ [Convert] ─ Gather(Convert(codes)) ─ [Multiply(scale)] ─ [Reshape] ─ layer

where the zero point and the scale are constants behind any Convert, Reshape or Multiply of constants (two-level scales
are `Convert(Multiply(Convert(scale), scalar))`). The chain counts only if a layer reads its end as a weight: a mask
that is converted and multiplied, a table of indices or a shape does not. On the way an end that several operations
read stops everything but the layer itself.

**What a model says** about how it was made: sections of its rt_info, which its .xml keeps.

    weight_compression   this package's options, with versions
    nncf                 NNCF's; its own section `weight_compression` inside
    optimum              versions of what exported it
    runtime_options      what OpenVINO is to do with it at inference

What this package compresses has a section `nncf` as well, with NNCF's keys and spellings: other tools look there for
the group size, or for whether a model is compressed already. Its `version` says who wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import openvino as ov

from ov_weight_compression.ir_utils.types import sizes_of
from ov_weight_compression.patterns.graphs import Graph, bytes_of, graphs_of, is_postponed
from ov_weight_compression.patterns.roles import ROLES, Consumer, Kind, Refusal, Role, Roles, follow

_INTEGER_TYPES = frozenset({"u1", "u2", "u3", "u4", "u6", "u8", "i4", "i8"})
_FLOAT8_TYPES = frozenset({"f8e4m3", "f8e5m2"})
_STORAGE_TYPES = _INTEGER_TYPES | _FLOAT8_TYPES | {"nf4", "f4e2m1"}
_INDEX_TYPES = frozenset({"u1", "u2", "u3", "u4", "u6", "u8", "u16", "i32"})
_DEPTH = 5
"""Of the operations between a chain and one of its constants."""


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

    storage: str = field(init=False)
    """Element type of the codes."""
    scale_type: str | None = field(init=False)
    """Element type of the scale."""
    constants: tuple[ov.Node, ...] = field(init=False)
    """Everything that is stored for this weight: codes, zero point, scales, table."""
    elements: int = field(init=False)
    """Of the float weight."""
    bytes: int = field(init=False)
    """Of all its constants."""
    format: str = field(init=False)
    """What it is stored as, in words: "u4, group 128"."""
    is_fp8_source: bool = field(init=False)
    """Whether this may be a weight as an fp8 checkpoint holds it, waiting to be compressed: eight-bit floats with no
    scale, one scale for all, per channel or per block, but not in groups along the reduction axis, which only a
    compressor makes. A compressed model with one scale per channel looks the same: ask its `rt_info` first."""

    def __post_init__(self) -> None:
        stored = (self.codes, self.zero_point, self.scale, self.tensor_scale, self.table)
        constants = tuple(part for part in stored if part is not None)
        storage, scale_type, table_type = (
            None if part is None else str(part.get_output_element_type(0).to_string())
            for part in (self.codes, self.scale, self.table)
        )
        words = [f"codebook of {table_type}"] if table_type else []
        words += [str(storage), *([f"group {self.group_size}"] if self.group_size > 0 else [])]
        follows = {
            "storage": storage,
            "scale_type": scale_type,
            "constants": constants,
            "elements": prod(self.shape),
            "bytes": sum(map(bytes_of, constants)),
            "format": ", ".join(words),
            "is_fp8_source": storage in _FLOAT8_TYPES and self.group_size == -1 and scale_type != "f8e8m0",
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)

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

    def links_to(self, consumer: Consumer) -> list[ov.Node]:
        """The operations between `last` and one of its layers, in order."""
        found: list[ov.Node] = []
        node = consumer.node.input_value(consumer.port).get_node()
        while node != self.last:
            found.append(node)
            node = node.input_value(0).get_node()
        return found[::-1]


def find_compressed(model: ov.Model, roles: Roles | None = None) -> list[CompressedWeight]:
    """Every weight of `model` and of the bodies inside it that is stored compressed, in graph order; `roles` are rows
    for operations that the table of roles does not know."""
    graphs, table = graphs_of(model), {**ROLES, **(roles or {})}
    found = [(graph.position[one.consumers[0].node], one) for graph in graphs for one in compressed_in(graph, table)]
    found.sort(key=lambda entry: entry[0])
    return [one for _, one in found]


def compressed_in(graph: Graph, roles: Roles) -> list[CompressedWeight]:
    """The compressed weights of one level of a model."""
    found = []
    starts = [  # one for each constant of codes, unless several layers decompress them each for itself
        (codes, storage, target.get_node())
        for codes, storage in graph.constants
        if storage in _STORAGE_TYPES | _INDEX_TYPES and len(codes.shape)
        for target in codes.output(0).get_target_inputs()
        if target.get_index() == 0 and target.get_node().get_type_name() == "Convert"
    ]
    for codes, storage, convert in starts:
        chain = _chain_of(codes, storage, convert) if convert in graph.position else None
        if chain is None:
            continue
        last = chain.nodes[-1]
        read = [(use, use.role) for use in follow(graph, last, roles) if isinstance(use.role, Role)]
        if not read or isinstance(view := read[0][0].view, Refusal):
            continue  # no layer reads the end of the chain as a weight
        kinds = {role.kind for _, role in read}
        reduction = {piece.axis for dimension in read[0][1].reduction for piece in view[dimension]}
        found.append(
            CompressedWeight(
                name=codes.get_friendly_name().removesuffix("_nncf_codebook_idxs"),
                codes=codes,
                zero_point=chain.zero_point,
                scale=chain.scales[0] if chain.scales else None,
                tensor_scale=chain.scales[1] if len(chain.scales) > 1 else None,
                table=chain.table,
                chain=chain.nodes,
                last=last,
                shape=sizes_of(last.get_output_shape(0)),
                code_shape=chain.code_shape,
                reduction_axes=tuple(sorted(reduction)),
                group_axis=chain.group_axis,
                group_size=-1 if chain.group_axis is None else chain.code_shape[chain.group_axis + 1],
                kind=next(kind for kind in reversed(Kind) if kind in kinds),
                consumers=tuple(Consumer(use.node, use.port, use.node.get_friendly_name(), role) for use, role in read),
                body=graph.path,
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class _Chain:
    """The links between codes and a layer."""

    nodes: tuple[ov.Node, ...]
    """From the first Convert on."""
    zero_point: ov.Node | None
    scales: tuple[ov.Node, ...]
    """The largest first."""
    table: ov.Node | None
    code_shape: tuple[int, ...]
    """Where the scale meets the codes."""
    group_axis: int | None


def _chain_of(codes: ov.Node, storage: str, convert: ov.Node) -> _Chain | None:
    """The chain behind the first Convert, link by link; None where it decompresses nothing."""
    nodes = [convert]
    nodes += _reader(nodes[-1], "Convert")
    table = zero_point = None
    scales: tuple[ov.Node, ...] = ()
    for gather in _reader(nodes[-1], "Gather", port=1):
        tables = _constants(gather.input_value(0)) or ()
        if len(tables) == 1 and len(tables[0].shape) == 1 and len(codes.shape) >= 2:
            table = tables[0]
            nodes.append(gather)
    if table is None:
        if storage not in _STORAGE_TYPES:
            return None
        nodes += _reader(nodes[-1], "Reshape")
    code_shape = sizes_of(nodes[-1].get_output_shape(0))
    for subtract in _reader(nodes[-1], "Subtract") if table is None else ():
        points = _constants(subtract.input_value(1)) or ()
        if len(points) == 1:
            zero_point = points[0]
            nodes.append(subtract)
    for _ in range(2):
        for port in (0, 1):
            for multiply in _reader(nodes[-1], "Multiply", port):
                factors = _constants(multiply.input_value(1 - port))
                same = prod(sizes_of(multiply.get_output_shape(0))) == prod(code_shape)
                if factors is not None and same and len(scales) + len(factors) <= 2:
                    scales += factors
                    nodes.append(multiply)
    if table is None and not scales and storage in _INTEGER_TYPES:
        return None
    scales = tuple(sorted(scales, key=lambda scale: prod(sizes_of(scale.shape)), reverse=True))
    # The Reshape that merges groups back joins a dimension that the scale covers with the one before.
    scale_shape = sizes_of(scales[0].shape) if scales else ()
    scale_shape = (1,) * (len(code_shape) - len(scale_shape)) + scale_shape
    for reshape in _reader(nodes[-1], "Reshape"):
        if _merged_axis(code_shape, sizes_of(reshape.get_output_shape(0)), scale_shape) is not None:
            nodes.append(reshape)
    axis = _merged_axis(code_shape, sizes_of(nodes[-1].get_output_shape(0)), scale_shape)
    return _Chain(tuple(nodes), zero_point, scales, table, code_shape, axis)


def _reader(node: ov.Node, kind: str, port: int = 0) -> list[ov.Node]:
    """The only operation that reads a node, if it is of this type, reads it there and has a known shape."""
    targets = list(node.output(0).get_target_inputs())
    found = [target.get_node() for target in targets if target.get_index() == port]
    fits = len(targets) == len(found) == 1 and found[0].get_type_name() == kind
    return found if fits and found[0].get_output_partial_shape(0).is_static else []


def _constants(value: ov.Output, depth: int = _DEPTH) -> tuple[ov.Node, ...] | None:
    """The constants that a tensor is made of, or None where it is not made of constants alone."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant" or is_postponed(node):
        return (node,)
    if depth and kind in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
        return _constants(node.input_value(0), depth - 1)
    if depth and kind == "Multiply":
        left, right = (_constants(node.input_value(port), depth - 1) for port in (0, 1))
        return None if left is None or right is None else left + right
    return None


def _merged_axis(codes: tuple[int, ...], weight: tuple[int, ...], scale: tuple[int, ...]) -> int | None:
    """The axis of the weight that two dimensions of the codes, groups and places within one, were merged to; the first
    of them where groups run across several, as in a table of `[rows, heads, size]`.

    Nobody writes groups of one weight: `[n, 1, m]` with a scale for each of the `n` is a row in one group.
    """
    across = len(weight) - len(codes) + 2
    if across < 1:
        return None
    for axis in range(len(codes) - 1):
        if scale[axis] != codes[axis] or scale[axis + 1] != 1 or codes[axis + 1] == 1:
            continue
        joined, group = weight[axis : axis + across], codes[axis + 1]
        same = weight[:axis] == codes[:axis] and weight[axis + across :] == codes[axis + 2 :]
        # Groups of as many elements as a row of these axes has are none: those are a scale per channel.
        cuts = across == 1 or group not in [prod(joined[place:]) for place in range(across)]
        if same and prod(joined) == codes[axis] * group and cuts:
            return axis
    return None


OWN_SECTION = "weight_compression"
_NNCF = "nncf"
_VERSION = "version"
_WRITER = "ov-weight-compression"
_SECTIONS = (OWN_SECTION, _NNCF, "optimum", "runtime_options")


def read_metadata(model: Any) -> dict[str, Any]:
    """The sections that are there, as plain JSON types; without that of NNCF where it repeats the package's own."""
    info = model.get_rt_info()
    sections = {section: _plain(info[section]) for section in _SECTIONS if section in info}
    if OWN_SECTION in sections and _is_ours(sections.get(_NNCF)):
        del sections[_NNCF]
    return sections


def write_metadata(model: Any, own: dict[str, str], nncf: dict[str, Any], version: str) -> None:
    """Write into a model how it was made: the package's section, and NNCF's with its words."""
    for key, value in own.items():
        model.set_rt_info(value, [OWN_SECTION, key])
    for key, value in nncf.items():
        model.set_rt_info(value, [_NNCF, OWN_SECTION, key])
    if not model.has_rt_info([_NNCF, _VERSION]):
        model.set_rt_info(f"{_WRITER} {version}", [_NNCF, _VERSION])


def is_compressed(model: Any) -> bool:
    """Whether a compressor says that it has been here: this package, or NNCF."""
    return any(model.has_rt_info(path) for path in ([OWN_SECTION], [_NNCF, OWN_SECTION]))


def drop_metadata(model: Any) -> None:
    """Remove what no longer holds once the weights are floats again: both sections on compression."""
    info = model.get_rt_info()
    if OWN_SECTION in info:
        del info[OWN_SECTION]
    nncf = _plain(info[_NNCF]) if _NNCF in info else None
    if isinstance(nncf, dict) and OWN_SECTION in nncf:
        del info[_NNCF]
        for key, value in nncf.items():
            if key != OWN_SECTION and not (key == _VERSION and _is_ours(nncf)):
                model.set_rt_info(value, [_NNCF, key])


def _is_ours(section: Any) -> bool:
    """Whether a section `nncf` is this package's."""
    return isinstance(section, dict) and str(section.get(_VERSION, "")).startswith(_WRITER)


def _plain(value: Any) -> Any:
    if isinstance(value, ov.OVAny):
        value = value.value
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value if isinstance(value, (str, int, float, bool)) else str(value)
