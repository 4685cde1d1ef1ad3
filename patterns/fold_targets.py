"""What can take the factors of a tensor's channels: the gain that made them, or the rows of the weight that did.

    before   x ─ Multiply(γ) ─ Add(β) ─▸ layers(W)
    after    x ─ Multiply(γ / t) ─ Add(β / t) ─▸ layers(W · diag t)

What stands before the Multiply does not matter, so any per-channel gain will do, a norm's or another; nothing may stand
between it and the layers but what moves positions.

    before   x ─ MatMul(P) ─ [Add(b)] ─ linear … ─▸ layers(W)
    after    x ─ MatMul(diag(1/t) P) ─ [Add(b / t)] ─ linear … ─▸ layers(W · diag t)

Linear are rearrangements, products with another activation (`up · act(gate)`), attention in its values, a key-value
cache that starts empty, and ReLU, as t > 0. Nothing else may read a tensor on the way; where a fused weight is cut into
pieces, the other pieces must be of other rows. Which channel is which row is what `provenance` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from math import prod

import openvino as ov

from ov_weight_compression.ir_utils.types import sizes_of
from ov_weight_compression.patterns.graphs import constant_of, constant_port, dimensions
from ov_weight_compression.patterns.provenance import ROWS, Origin, Origins, counts_rows, keeps_channels, row_numbers
from ov_weight_compression.patterns.roles import Kind, Piece
from ov_weight_compression.patterns.weight import Weight

Reader = tuple[ov.Node, int]
"""An operation and the port through which it reads."""


def readers(value: ov.Output) -> list[Reader]:
    """Every reader of a tensor's values, each port once; a ShapeOf reads none."""
    targets = value.get_target_inputs()
    found = [(target.get_node(), int(target.get_index())) for target in targets]
    return [(node, port) for node, port in found if node.get_type_name() != "ShapeOf"]


def is_float(value: ov.Output) -> bool:
    """Whether a tensor holds floating-point numbers (scaling integers would round them)."""
    return bool(value.get_element_type().is_real())


_NORM_DEPTH = 16


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant that a Multiply or an Add applies to the channels, and which factor each of its values needs."""

    constant: ov.Node
    reader: Reader
    """The Multiply or Add, and the constant's port there; Converts and Reshapes may lie between."""
    classes: tuple[int, ...]
    """The class of each value, in the constant's order; -1 for one that stays as it is."""


@dataclass(frozen=True, eq=False)
class GainTarget:
    """A gain, and the bias behind it if there is one, that can be divided by the factors of the channels."""

    gain: Operand
    bias: Operand | None
    classes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The gain's name."""
        return str(self.gain.constant.get_friendly_name())


def gain_target(value: ov.Output, columns: int) -> GainTarget | None:
    """The gain and bias that make up a tensor with `columns` channels in its last dimension.

    Who reads the tensor itself is the caller's business; between it and the gain nothing else may.
    """
    bias: Operand | None = None
    identity = tuple(range(columns))
    for _ in range(_NORM_DEPTH):
        node, sizes = value.get_node(), dimensions(value)
        if sizes is None or not sizes or sizes[-1] != columns or columns == 1:
            return None
        kind = node.get_type_name()
        port = constant_port(node) if kind in ("Multiply", "Add") else None
        if port is not None:
            operand = _vector(node, port, columns)
            if operand is not None and (dimensions(node.input_value(1 - port)) or [None])[-1] != columns:
                return None
            if kind == "Multiply" and operand is not None:
                return GainTarget(operand, bias, identity)
            if kind == "Add" and operand is not None and bias is None:
                bias = operand
            elif kind != "Multiply" or not _is_scalar(node.input_value(port)):
                return None
            value = node.input_value(1 - port)
        elif is_float(value) and keeps_channels(node, kind, len(sizes)):
            value = node.input_value(0)
        else:
            return None
        if len(readers(value)) != 1:
            return None
    return None


def _is_scalar(value: ov.Output) -> bool:
    sizes = dimensions(value)
    return sizes is not None and all(size == 1 for size in sizes)


def _vector(node: ov.Node, port: int, columns: int) -> Operand | None:
    """A constant with one value for each position of the last dimension."""
    value = node.input_value(port)
    sizes, constant = dimensions(value), constant_of(value)
    if constant is None or not sizes or sizes[-1] != columns or prod(size or 0 for size in sizes) != columns:
        return None
    if prod(sizes_of(constant.shape)) != columns or not is_float(constant.output(0)):
        return None
    return Operand(constant, (node, port), tuple(range(columns)))


_DEPTH = 48
_PATHS = 8
"""How many ways to a tensor are looked at: both sides of a gate, or of one in parts."""
_CUTTING = frozenset({"Split", "VariadicSplit", "Slice", "Gather"})
_REARRANGING = ("Convert", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Tile", "Broadcast", "Relu")
_LINEAR_PORTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys((*_REARRANGING, *_CUTTING, "Divide"), (0,)),
    "Multiply": (0, 1),
    "ScaledDotProductAttention": (2,),
    "MatMul": (1,),
}


@dataclass(frozen=True, eq=False)
class RowsTarget:
    """Rows of a weight, and biases behind it, that can be divided by the factors of the channels."""

    weight: Weight
    rows: tuple[int, ...]
    """The row of every class."""
    biases: tuple[Operand, ...]
    classes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name


@dataclass(frozen=True)
class _Path:
    """The way from a weight's MatMul to a tensor: `steps[i]` reads `values[i]` and makes `values[i + 1]`."""

    weight: Weight
    values: tuple[ov.Output, ...]
    steps: tuple[Reader, ...]


class RowsTracer:
    """Finds producers in one model."""

    def __init__(self, model: ov.Model, weights: Iterable[Weight]) -> None:
        weights = list(weights)
        self._origins = Origins(weights)
        states = [node for node in model.get_ops() if node.get_type_name() == "ReadValue"]
        self._states = Counter(node.get_attributes()["variable_id"] for node in states)
        self._makers = {
            weight.consumers[0].node: weight
            for weight in weights
            if weight.kind is Kind.MATMUL and len(weight.shape) == 2 and not weight.other_uses
            if len(weight.consumers) == 1
            if (meets := weight.consumers[0].role.activation) is not None and meets.output == (-1,)
        }

    def rows_target(self, value: ov.Output, columns: int) -> RowsTarget | None:
        """The rows that make up a tensor with `columns` channels in its last dimension.

        Who reads the tensor itself is the caller's business; between it and the producer nothing else may.
        """
        paths = islice(self._climb(value, _DEPTH, set()), _PATHS)
        found = (self._target(path, columns) for path in paths)
        return next((target for target in found if target is not None), None)

    def _target(self, path: _Path, columns: int) -> RowsTarget | None:
        sizes = dimensions(path.values[-1])
        origins = self._along(path, columns) if sizes else None
        if not sizes or origins is None:
            return None
        mine = _rows(origins[-1], len(sizes) - 1, columns)
        if mine is None:
            return None
        rows = tuple(sorted(set(mine)))
        classes = {row: number for number, row in enumerate(rows)}
        if not all(self._leads_on(path, place, frozenset(rows)) for place in range(len(path.steps))):
            return None
        biases = [
            _bias(node, 1 - port, origins[place + 1], classes)
            for place, (node, port) in enumerate(path.steps)
            if node.get_type_name() == "Add"
        ]
        if any(bias is None for bias in biases):
            return None
        known = tuple(bias for bias in biases if bias is not None)
        return RowsTarget(path.weight, rows, known, tuple(classes[row] for row in mine))

    def _climb(self, value: ov.Output, depth: int, barren: set[tuple[ov.Node, int]]) -> Iterator[_Path]:
        """The linear ways to a tensor from weights that made it; `barren` remembers where there are none."""
        node = value.get_node()
        if node in self._makers:
            yield _Path(self._makers[node], (value,), ())
            return
        place = (node, value.get_index())
        if not depth or place in barren or not is_float(value):
            return
        found = False
        for port in self._linear_ports(node):
            for path in self._climb(node.input_value(port), depth - 1, barren):
                found = True
                yield _Path(path.weight, (*path.values, value), (*path.steps, (node, port)))
        if not found:
            barren.add(place)

    def _linear_ports(self, node: ov.Node) -> tuple[int, ...]:
        """The ports through which an operation passes a factor of its channels on."""
        kind = node.get_type_name()
        if kind == "Concat":
            return tuple(port for port in (0, 1) if self._is_cache(node, 1 - port))
        if kind == "Add":
            port = constant_port(node)
            return () if port is None else (1 - port,)
        if kind == "MatMul" and node.get_attributes()["transpose_b"]:
            return ()
        ports = _LINEAR_PORTS.get(kind, ())
        return tuple(port for port in ports if constant_of(node.input_value(port)) is None)

    def _is_cache(self, node: ov.Node, port: int) -> bool:
        """Whether a Concat's operand is what the Concat itself was at the call before, and nothing at the first."""
        if node.get_input_size() != 2:
            return False
        value = node.input_value(port)
        while value.get_node().get_type_name() in ("Gather", "Convert"):
            if len(readers(value)) != 1 or not is_float(value) or not _picks_along(value.get_node(), 0):
                return False
            value = value.get_node().input_value(0)
        state = value.get_node()
        if state.get_type_name() != "ReadValue" or len(readers(value)) != 1:
            return False
        name = state.get_attributes()["variable_id"]
        stored = any(_stores(reader, name) for reader in readers(node.output(0)))
        empty = state.get_input_size() == 0 or _is_nothing(state.input_value(0))
        return stored and empty and self._states[name] == 1

    def _along(self, path: _Path, columns: int) -> list[Origin] | None:
        """For every value of a path the one of its origins that the path leads to.

        Those of a product are the left side's, then the right side's; nothing else changes their order.
        """
        index, result = 0, []
        for place, value in enumerate(path.values):
            node, port = path.steps[place - 1] if place else (None, 0)
            if node is not None and node.get_type_name() == "Multiply" and port == 1:
                index += len(self._origins.of(node.input_value(0)) or ())
            if place < len(path.steps):
                found = self._origins.of(value)
            else:
                found = self._origins.of_input(value, len(dimensions(value) or ()) - 1, columns)
            if found is None or index >= len(found) or found[index].weight is not path.weight:
                return None
            if node is not None and node.get_type_name() == "Concat" and counts_rows(found[index].view[0]):
                return None
            result.append(found[index])
        return result

    def _leads_on(self, path: _Path, place: int, rows: frozenset[int]) -> bool:
        """Whether these rows of a value go nowhere but along the path."""
        value, step = path.values[place], path.steps[place]
        others = [reader for reader in readers(value) if reader != step]
        if place and path.steps[place - 1][0].get_type_name() == "Concat":
            others = [reader for reader in others if not _stores(reader, None)]
        cut = [output for node, _ in others for output in node.outputs()]
        beside = [output for output in step[0].outputs() if output != path.values[place + 1]]
        return all(node.get_type_name() in _CUTTING and port == 0 for node, port in others) and all(
            self._is_without(output, value, rows) for output in (*cut, *beside) if readers(output)
        )

    def _is_without(self, output: ov.Output, source: ov.Output, rows: frozenset[int]) -> bool:
        """Whether a piece of a value holds none of these rows."""
        whole, piece = self._origins.of(source), self._origins.of(output)
        if whole is None or piece is None or len(whole) != 1 or len(piece) != 1:
            return False
        own = [part for dimension in piece[0].view for part in dimension if part.axis == ROWS]
        return not rows & set(row_numbers(piece[0].offset, own))


def _rows(origin: Origin, place: int, columns: int) -> list[int] | None:
    """The row of every position of one dimension; None where that is not all that the rows do."""
    pieces = origin.view[place]
    elsewhere = any(counts_rows(dim) for number, dim in enumerate(origin.view) if number != place)
    if elsewhere or any(piece.axis != ROWS for piece in pieces) or prod(p.size for p in pieces) != columns:
        return None
    return row_numbers(origin.offset, pieces)


def _bias(node: ov.Node, port: int, origin: Origin, classes: dict[int, int]) -> Operand | None:
    """The constant of an Add on the path: the class of each of its values, as far as their rows have one."""
    value = node.input_value(port)
    constant, sizes = constant_of(value), dimensions(value)
    if constant is None or sizes is None or not is_float(constant.output(0)) or len(sizes) > len(origin.view):
        return None
    places = []
    view = ((),) * (len(sizes) - len(origin.view)) + origin.view
    for back in range(len(origin.view), 0, -1):
        dimension = view[-back]
        size = sizes[-back] if back <= len(sizes) else 1
        if not counts_rows(dimension):
            places.append([0] * (size or 0))
            continue
        own = [piece if piece.axis == ROWS else Piece(piece.axis, piece.size, 0) for piece in dimension]
        places.append(row_numbers(0, own))
        if len(places[-1]) != size:
            return None
    rows = [origin.offset + sum(steps) for steps in product(*places)]
    if len(rows) != prod(sizes_of(constant.shape)):
        return None
    return Operand(constant, (node, port), tuple(classes.get(row, -1) for row in rows))


def _picks_along(node: ov.Node, axis: int) -> bool:
    """Whether an operation is no Gather, or one along this axis."""
    if node.get_type_name() != "Gather":
        return True
    constant = constant_of(node.input_value(2))
    return constant is not None and prod(sizes_of(constant.shape)) == 1 and int(constant.data.reshape(-1)[0]) == axis


def _stores(reader: Reader, variable: str | None) -> bool:
    """Whether a reader is an Assign (of this variable), perhaps behind a Convert."""
    node = reader[0]
    if node.get_type_name() == "Convert" and is_float(node.output(0)):
        following = readers(node.output(0))
        return bool(following) and all(_stores(one, variable) for one in following)
    return node.get_type_name() == "Assign" and variable in (None, node.get_attributes()["variable_id"])


def _is_nothing(value: ov.Output) -> bool:
    """Whether a tensor has no element, or only zeros."""
    if 0 in (dimensions(value) or ()):
        return True
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Broadcast"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and not node.data.any()
