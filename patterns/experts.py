"""Experts side by side: which layers make up one block, and which blocks OpenVINO runs on gathered experts alone.

Of a mixture each token needs a few experts. Exporters write the block with every expert computing every token,

    x ─ [Reshape] ─ Tile ─ Reshape ─┬─ MatMul gate ─ Swish ─┐
                                    └─ MatMul up ───────────┴ Multiply ─ MatMul down ─ Reshape ─ Multiply ─ ReduceSum
    router: TopK ─▸ ScatterElementsUpdate ─ Transpose ─ Reshape ─ [Unsqueeze] ───────────────────┘

    or with gate and up in one, and biases:  MatMul ─ Add ─┬ Slice ─ Clamp ─ Add ──────┐
                                                           └ Slice ─ Minimum ─ Swish ──┴ Multiply ─ MatMul ─ Add ─ …

and plugins turn exactly that into GatherMatmul, which reads the chosen experts' codes and no others. One operation more
or one reader more on the way and every expert is computed, from expanded weights. What is matched was read from
OpenVINO 2026.4 (transformations/common_optimizations/convert_tiled_moe_block_to_gather_matmuls.cpp) and measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import openvino as ov

from ov_weight_compression.patterns.graphs import constant_of
from ov_weight_compression.patterns.roles import Kind
from ov_weight_compression.patterns.weight import Weight

_BETWEEN = frozenset(
    {
        *("Add", "Subtract", "Multiply", "Divide", "Clamp", "Minimum", "Maximum", "Convert", "Reshape", "Transpose"),
        *("Swish", "Gelu", "Relu", "Sigmoid", "Tanh", "Slice", "StridedSlice", "Split", "VariadicSplit"),
    }
)
"""What lies between the layers of one expert."""
_AFTER = ("MatMul", "Add", "Slice", "Clamp", "Minimum", "Swish", "Gelu", "Multiply", "Reshape")
_STEPS = 10


def expert_blocks(weights: Iterable[Weight]) -> list[tuple[Weight, ...]]:
    """The weights of experts side by side that plugins run together, on those that are chosen: of layers that compute
    one after the other or from one input. Where no plugin does, each layer runs by itself, and is in no block."""
    experts = [weight for weight in weights if weight.kind is Kind.EXPERTS]
    owner = {layer.node: place for place, weight in enumerate(experts) for layer in weight.consumers}
    first = list(range(len(experts)))  # the least place of each one's block, once it is settled
    for place, weight in enumerate(experts):
        for layer in weight.consumers:
            for other in _before(layer.input, owner):
                least, last = sorted((first[place], first[owner[other]]))
                first = [least if one == last else one for one in first]
    blocks = [
        tuple(one for one, own in zip(experts, first, strict=True) if own == least) for least in sorted(set(first))
    ]
    return [block for block in blocks if any(tiled_block_of(use.node) for weight in block for use in weight.consumers)]


def _before(value: ov.Output | None, owner: dict[ov.Node, int]) -> Iterator[ov.Node]:
    """The layers of experts whose outputs make up a tensor, and those that read the same one."""
    if value is None:
        return
    yield from (target.get_node() for target in value.get_target_inputs() if target.get_node() in owner)
    waiting, seen = [value.get_node()], set()
    while waiting:
        node = waiting.pop()
        if node in owner:
            yield node
        elif node.get_type_name() in _BETWEEN and node not in seen:
            seen.add(node)
            waiting += [source.get_node() for source in node.input_values()]


@dataclass(frozen=True, eq=False)
class TiledBlock:
    """A block that is run on gathered experts."""

    layers: tuple[ov.Node, ...]
    """Its MatMuls, the one that makes its output last."""
    end: ov.Node
    """The ReduceSum."""
    tokens: ov.Output
    """What is tiled."""
    router: ov.Node
    """The ScatterElementsUpdate that spreads the chosen experts' weights."""


def tiled_block_of(layer: ov.Node) -> TiledBlock | None:
    """The tiled block that a MatMul belongs to; None where it is in none, or in one that is not matched."""
    node = layer
    for _ in range(_STEPS):
        targets = [target.get_node() for target in node.output(0).get_target_inputs()]
        following = next((one for one in targets if one.get_type_name() in (*_AFTER, "ReduceSum")), None)
        if following is None:
            return None
        if following.get_type_name() == "ReduceSum":
            block = _block(following)
            return block if block is not None and layer in block.layers else None
        node = following
    return None


def block_operations(block: TiledBlock) -> set[ov.Node]:
    """The operations of a block, from its Reshape or Tile and its router's spread weights to its end, without those
    that make weights and shapes."""
    reshaped = block.tokens.get_node().get_type_name() == "Reshape"
    first = [block.tokens.get_node()] if reshaped else [one.get_node() for one in block.tokens.get_target_inputs()]
    edge, found, waiting = {block.router, *first}, set(), [block.end]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if node not in edge:
            ports = 2 if node.get_type_name() in ("Add", "Multiply", "Minimum") else 1
            waiting += [value.get_node() for value in node.input_values()[:ports] if constant_of(value) is None]
    return found


def _block(end: ov.Node) -> TiledBlock | None:
    weighted = _made(end.input_value(0), "Multiply")
    readers = [target.get_node().get_type_name() for target in end.output(0).get_target_inputs()]
    if end.get_attributes()["keep_dims"] or len(readers) - readers.count("Result") > 1:
        return None
    if weighted is None or not _readers(weighted, 1):
        return None
    for port in (0, 1):
        apart, router = _made(weighted.input_value(port), "Reshape"), _router(weighted.input_value(1 - port))
        if apart is not None and router is not None and _readers(apart, 1):
            found = _three_layers(apart.input_value(0)) or _two_layers(apart.input_value(0))
            if found is not None:
                return TiledBlock(found[0], end, found[1], router)
    return None


_Experts = tuple[tuple[ov.Node, ...], ov.Output]
"""The MatMuls, and what is tiled."""


def _three_layers(value: ov.Output) -> _Experts | None:
    """Gate, up and down without biases."""
    down = _layer(value)
    product = None if down is None else _made(down.input_value(0), "Multiply")
    if down is None or product is None or not _readers(product, 1):
        return None
    for port in (0, 1):
        activated, up = product.input_value(port).get_node(), _layer(product.input_value(1 - port))
        alone = activated.get_type_name() in ("Swish", "Gelu") and activated.get_input_size() == 1
        gate = _layer(activated.input_value(0)) if alone and _readers(activated, 1) else None
        if gate is None or up is None or gate.input_value(0) != up.input_value(0):
            continue
        tokens = _tiled(gate.input_value(0), readers=2)
        if tokens is not None:
            return (gate, up, down), tokens
    return None


def _two_layers(value: ov.Output) -> _Experts | None:
    """Gate and up in one, and down, each with a bias."""
    down = _biased(value, readers=1)
    product = None if down is None else _made(down.input_value(0), "Multiply")
    if down is None or product is None or not _readers(product, 1):
        return None
    for port in (0, 1):
        up = _through(product.input_value(port), ("Add", "Clamp", "Slice"))
        gate = _through(product.input_value(1 - port), ("Swish", "Minimum", "Slice"))
        if up is None or gate is None or up != gate:
            continue
        both = _biased(up, readers=2)
        tokens = None if both is None else _tiled(both.input_value(0), readers=1)
        if both is not None and tokens is not None and tokens.get_node().get_type_name() == "Reshape":
            return (both, down), tokens
    return None


def _through(value: ov.Output, kinds: Sequence[str]) -> ov.Output | None:
    """What operations of these types, one behind the other and each with one reader, make a tensor of; where they have
    a second operand it is a constant."""
    for kind in kinds:
        node = _made(value, kind)
        if node is None or not _readers(node, 1):
            return None
        if kind in ("Add", "Minimum"):
            port = next((one for one in (1, 0) if constant_of(node.input_value(one)) is not None), None)
            if port is None:
                return None
            value = node.input_value(1 - port)
        else:
            value = node.input_value(0)
    return value


def _biased(value: ov.Output, readers: int) -> ov.Node | None:
    """The MatMul behind the Add of a bias."""
    add = _made(value, "Add")
    if add is None or not _readers(add, readers):
        return None
    for port in (0, 1):
        layer = _layer(add.input_value(port))
        if layer is not None and constant_of(add.input_value(1 - port)) is not None:
            return layer
    return None


def _layer(value: ov.Output) -> ov.Node | None:
    """The MatMul `[experts, out, in]` that makes a tensor, if one operation reads it."""
    node = _made(value, "MatMul")
    if node is None or not _readers(node, 1):
        return None
    attributes = node.get_attributes()
    return node if attributes["transpose_b"] and not attributes["transpose_a"] else None


def _tiled(value: ov.Output, readers: int) -> ov.Output | None:
    """What a Tile and a Reshape repeat for each expert."""
    reshape = _made(value, "Reshape")
    tile = None if reshape is None else _made(reshape.input_value(0), "Tile")
    if reshape is None or tile is None or not _readers(reshape, readers) or not _readers(tile, 1):
        return None
    return tile.input_value(0)


def _router(value: ov.Output) -> ov.Node | None:
    """The ScatterElementsUpdate that a router's weights come from."""
    unsqueeze = _made(value, "Unsqueeze")
    reshape = _made(value if unsqueeze is None else unsqueeze.input_value(0), "Reshape")
    transpose = None if reshape is None else _made(reshape.input_value(0), "Transpose")
    return None if transpose is None else _made(transpose.input_value(0), "ScatterElementsUpdate")


def _made(value: ov.Output, kind: str) -> ov.Node | None:
    node = value.get_node()
    return node if node.get_type_name() == kind else None


def _readers(node: ov.Node, count: int) -> bool:
    return sum(len(output.get_target_inputs()) for output in node.outputs()) == count
