"""The chain of operations that turns stored codes into a weight, link by link.

Each function looks at the one operation behind the end of the chain and takes it in if it is the link in question, else
leaves the chain as it is. An end that several operations read stops everything but the layer itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import openvino as ov

from ov_weight_compression.patterns.graphs import is_constant

__all__ = ["FLOAT8_TYPES", "INDEX_TYPES", "STORAGE_TYPES", "Chain", "extend", "merged_axis", "scale_shape"]

_INTEGER_TYPES = frozenset({"u1", "u2", "u3", "u4", "u6", "u8", "i4", "i8"})
FLOAT8_TYPES = frozenset({"f8e4m3", "f8e5m2"})
STORAGE_TYPES = _INTEGER_TYPES | FLOAT8_TYPES | {"nf4", "f4e2m1"}
INDEX_TYPES = frozenset({"u1", "u2", "u3", "u4", "u6", "u8", "u16", "i32"})


@dataclass
class Chain:
    """The links found so far, from a codes constant onwards."""

    codes: ov.Node
    nodes: list[ov.Node]
    zero_point: ov.Node | None = None
    scales: tuple[ov.Node, ...] = ()
    table: ov.Node | None = None
    code_shape: tuple[int, ...] = ()

    @property
    def last(self) -> ov.Node:
        return self.nodes[-1]


def extend(chain: Chain, storage: str) -> bool:
    """Add the links behind the first Convert; whether the result decompresses anything."""
    _pass(chain, "Convert")
    if _table(chain):
        _scales(chain)
    elif storage not in STORAGE_TYPES:
        return False
    else:
        _pass(chain, "Reshape")
        chain.code_shape = tuple(chain.last.get_output_partial_shape(0).to_shape())
        _zero_point(chain)
        _scales(chain)
        if not chain.scales and storage in _INTEGER_TYPES:
            return False
    _group_reshape(chain)
    return True


def _next(chain: Chain) -> tuple[ov.Node, int] | None:
    """The only operation that reads the end of the chain, and its port; None where there are several."""
    targets = list(chain.last.output(0).get_target_inputs())
    return (targets[0].get_node(), targets[0].get_index()) if len(targets) == 1 else None


def _pass(chain: Chain, kind: str) -> None:
    """Step over one operation of this type, if it is there and its shape is known."""
    following = _next(chain)
    if not following or following[1] != 0 or following[0].get_type_name() != kind:
        return
    if following[0].get_output_partial_shape(0).is_static:
        chain.nodes.append(following[0])


def _table(chain: Chain) -> bool:
    """Step over a Gather that looks the codes up in a constant of one dimension."""
    following = _next(chain)
    if not following or following[1] != 1 or following[0].get_type_name() != "Gather":
        return False
    gather = following[0]
    tables = _constants(gather.input_value(0))
    if tables is None or len(tables) != 1 or len(tables[0].shape) != 1 or len(chain.codes.shape) < 2:
        return False
    chain.table = tables[0]
    chain.nodes.append(gather)
    chain.code_shape = tuple(gather.get_output_partial_shape(0).to_shape())
    return True


def _zero_point(chain: Chain) -> None:
    following = _next(chain)
    if following and following[1] == 0 and following[0].get_type_name() == "Subtract":
        constants = _constants(following[0].input_value(1))
        if constants is not None and len(constants) == 1:
            chain.zero_point = constants[0]
            chain.nodes.append(following[0])


def _scales(chain: Chain) -> None:
    """Step over Multiply by constants, at most twice."""
    for _ in range(2):
        following = _next(chain)
        if not following or following[0].get_type_name() != "Multiply":
            return
        constants = _constants(following[0].input_value(1 - following[1]))
        if constants is None or len(chain.scales) + len(constants) > 2:
            return
        shape = following[0].get_output_partial_shape(0)
        if not shape.is_static or prod(shape.to_shape()) != prod(chain.code_shape):
            return
        chain.scales += constants
        chain.nodes.append(following[0])


def _constants(value: ov.Output, depth: int = 5) -> tuple[ov.Node, ...] | None:
    """The constants that a tensor is made of, or None where it is not made of constants alone."""
    node = value.get_node()
    kind = node.get_type_name()
    if is_constant(node):
        return (node,)
    if depth and kind in ("Convert", "Reshape", "Unsqueeze", "Squeeze"):
        return _constants(node.input_value(0), depth - 1)
    if depth and kind == "Multiply":
        left, right = (_constants(node.input_value(port), depth - 1) for port in (0, 1))
        return None if left is None or right is None else left + right
    return None


def _group_reshape(chain: Chain) -> None:
    """Step over the Reshape that merges groups back: it joins a dimension that the scale covers with the one before."""
    following = _next(chain)
    if not following or following[1] != 0 or following[0].get_type_name() != "Reshape":
        return
    shape = following[0].get_output_partial_shape(0)
    if shape.is_static and merged_axis(chain.code_shape, tuple(shape.to_shape()), scale_shape(chain)) is not None:
        chain.nodes.append(following[0])


def scale_shape(chain: Chain) -> tuple[int, ...]:
    """Shape of the largest scale, brought to the codes' rank as broadcasting does."""
    shape = max((tuple(scale.shape) for scale in chain.scales), key=prod, default=())
    return (1,) * (len(chain.code_shape) - len(shape)) + shape


def merged_axis(codes: tuple[int, ...], weight: tuple[int, ...], scale: tuple[int, ...]) -> int | None:
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
        if same and prod(joined) == codes[axis] * group and (across == 1 or _cuts_across(joined, group)):
            return axis
    return None


def _cuts_across(axes: tuple[int, ...], group: int) -> bool:
    """Whether groups of so many consecutive elements of these axes are none of their rows: those are a scale per
    channel."""
    return group not in [prod(axes[place:]) for place in range(len(axes))]
