"""Where the channels of an activation come from, and what the graph alone says about how large they are.

Which rows of which weights computed them: a value is followed backwards, through everything that keeps channels apart,
to the layers that made it:

    activation functions, scalars, biases     channels stay where they are
    Reshape, Transpose, Split, Slice, Gather   channels move; the layout of every dimension is tracked
    Broadcast                                  channels are repeated (key-value heads shared by several query heads)
    attention: softmax(...) @ V                the channels of V
    Multiply of two such values                the channels of both, paired

The result says for every dimension which digits of the row number it counts: the output of 4 query heads of 16 that
share 2 key-value heads ends as `((2, 16), (2, 0), (16, 1))`, so channel `h·16 + j` comes from row `(h // 2)·16 + j`.
Where anything is in doubt the answer is None.

**How large** each input channel of a layer is, without any data:

    behind a norm            x_j = γ_j n_j + β_j        n of unit size            NormGain
    behind attention         x_j = Σ a_t V_j h_t        row j of V's weight       RowNorms
    behind gate and up       x_j = act(G_j h) U_j h     both rows                 RowNormProduct
    behind an activation     x_j = act(U_j h)           one row                   RowNorms

Only structure is looked at here: each answer names constants and says which row belongs to which channel. No answer is
given where that is not certain.

**Norms** are recognised by their arithmetic, and with them the gain and bias that an activation got there:
LayerNorm is `MVN(x) · γ + β`, RMSNorm is `x / sqrt(mean(x²) + ε) · γ` in one of many spellings, γ left out where it was
one. What lies between the norm and the layer may move positions about but not channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import openvino as ov

from ov_weight_compression.ir_utils.types import sizes_of
from ov_weight_compression.patterns.graphs import constant_of, constant_port, dimensions
from ov_weight_compression.patterns.roles import Piece, View, cut, repeat, reshape_partly, transpose, whole_axis
from ov_weight_compression.patterns.weight import Weight

_NORM_DEPTH = 24
_MOVING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Tile", "Broadcast", "Transpose", "Gather", "Slice"})


@dataclass(frozen=True)
class NormGain:
    """Channel j is `gain_j · n_j + bias_j` with n of unit size, the gain being the product of `gains` (none: all ones).

    Each constant holds one value per channel.
    """

    gains: tuple[ov.Node, ...]
    biases: tuple[ov.Node, ...]


def norm_gain(value: ov.Output, columns: int) -> NormGain | None:
    """The gain and bias of the norm that a value with `columns` channels in its last dimension comes from, or None."""
    gains: list[ov.Node] = []
    biases: list[ov.Node] = []
    for _ in range(_NORM_DEPTH):
        node = value.get_node()
        kind = node.get_type_name()
        sizes = dimensions(value)
        if sizes is None or not sizes or sizes[-1] != columns:
            return None
        if kind in ("Multiply", "Divide", "Add"):
            port = constant_port(node)
            if port is None:
                return NormGain(tuple(gains), tuple(biases)) if _is_root_mean_square(node, columns) else None
            constant = constant_of(node.input_value(port))
            if constant is None or not _take(kind, port, constant, columns, gains, biases):
                return None
            value = node.input_value(1 - port)
        elif kind == "MVN":
            return NormGain(tuple(gains), tuple(biases)) if _is_layer_norm(node, len(sizes)) else None
        elif keeps_channels(node, kind, len(sizes)):
            value = node.input_value(0)
        else:
            return None
    return None


def _take(kind: str, port: int, constant: ov.Node, columns: int, gains: list[ov.Node], biases: list[ov.Node]) -> bool:
    """Note a constant operand: a scalar changes nothing, a vector is gain or bias. Whether it can be either."""
    size = prod(sizes_of(constant.shape))
    if kind == "Divide":
        return port == 1 and size == 1
    if kind == "Multiply" and size == 1:
        return not biases
    if size != columns:
        return False
    if kind == "Add":
        biases.append(constant)
        return not gains and len(biases) == 1
    gains.append(constant)
    return True


def keeps_channels(node: ov.Node, kind: str, rank: int) -> bool:
    """Whether an operation may move positions but leaves the last dimension alone."""
    if kind == "Convert":
        return True
    if kind not in _MOVING:
        return False
    before = dimensions(node.input_value(0))
    if before is None or not before or before[-1] != (dimensions(node.output(0)) or [None])[-1]:
        return False
    if kind not in ("Transpose", "Gather", "Slice"):
        return True
    if kind == "Transpose":
        order = constant_of(node.input_value(1))
        return order is not None and prod(sizes_of(order.shape)) == rank and int(order.data[-1]) == rank - 1
    if kind == "Gather":
        axis = constant_of(node.input_value(2))
        return axis is not None and int(axis.data.reshape(-1)[0]) % len(before) != len(before) - 1
    axes = constant_of(node.input_value(4)) if node.get_input_size() == 5 else None  # Slice
    return axes is not None and all(int(axis) % rank != rank - 1 for axis in axes.data.reshape(-1))


def _is_layer_norm(node: ov.Node, rank: int) -> bool:
    """Whether an MVN divides by the deviation over the last dimension and no other."""
    axes = constant_of(node.input_value(1)) if node.get_input_size() == 2 else None
    if axes is None or not node.get_attributes().get("normalize_variance"):
        return False
    return [int(axis) % rank for axis in axes.data.reshape(-1)] == [rank - 1]


def _is_root_mean_square(node: ov.Node, columns: int) -> bool:
    """Whether a product or quotient is x over (or times) one number per position that a mean of x² went into."""
    for port in (1, 0) if node.get_type_name() == "Multiply" else (1,):
        sizes = dimensions(node.input_value(port))
        if sizes and sizes[-1] == 1 and columns != 1:
            return _reduces(node.input_value(port), _bare(node.input_value(1 - port)))
    return False


def _reduces(value: ov.Output, source: ov.Node) -> bool:
    """Whether a value is made by arithmetic with scalars from a reduction of the squares of `source`."""
    for _ in range(10):
        node = value.get_node()
        kind = node.get_type_name()
        if kind in ("ReduceMean", "ReduceSum", "ReduceL2"):
            squared = node.input_value(0).get_node()
            if kind != "ReduceL2" and squared.get_type_name() not in ("Power", "Multiply"):
                return False
            inside = squared if kind == "ReduceL2" else squared.input_value(0).get_node()
            return _bare(inside.output(0)) is source
        if kind in ("Convert", "Sqrt"):
            value = node.input_value(0)
        elif kind in ("Add", "Multiply", "Divide", "Maximum", "Power"):
            port = constant_port(node)
            if port is None:
                return False
            value = node.input_value(1 - port)
        else:
            return False
    return False


def _bare(value: ov.Output) -> ov.Node:
    node = value.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node


ROWS = 0
"""The axis of pieces that count rows of the weight; other axes are of no interest but are tracked."""


@dataclass(frozen=True, eq=False)
class Origin:
    """One weight whose rows are the channels of a value: row `offset + Σ digit · stride` over the pieces."""

    weight: Weight
    offset: int
    view: View
    """For every dimension of the value the pieces on axis 0 count rows; others count anything else."""


def _each(found: tuple[Origin, ...] | None, change: Callable[[View], View | None]) -> tuple[Origin, ...] | None:
    """Every origin with its view changed; None where that fails for one of them."""
    if found is None:
        return None
    views = [change(origin.view) for origin in found]
    if any(view is None for view in views):
        return None
    return tuple(replace(origin, view=view) for origin, view in zip(found, views, strict=True) if view is not None)


def _widened(found: tuple[Origin, ...] | None, node: ov.Node) -> tuple[Origin, ...] | None:
    """Origins beside another operand, which may have more dimensions but must not repeat any."""
    sizes = dimensions(node.output(0))
    if sizes is None:
        return None

    def widen(view: View) -> View | None:
        padded = ((),) * (len(sizes) - len(view)) + view
        known = zip(padded, sizes, strict=True)
        return padded if all(not dim or prod(piece.size for piece in dim) == size for dim, size in known) else None

    return _each(found, widen)


def _narrowed(
    found: tuple[Origin, ...] | None, place: int, start: int, length: int, step: int
) -> tuple[Origin, ...] | None:
    """Origins of some positions of one dimension."""
    if found is None:
        return None
    result: list[Origin] = []
    for origin in found:
        if not counts_rows(origin.view[place]):
            result.append(replace(origin, view=_replaced(origin.view, place, [length])))
            continue
        part = cut(origin.view, place, start, length, step)
        if part is None:
            return None
        view, moved = part
        result.append(replace(origin, view=view, offset=origin.offset + moved.get(ROWS, 0)))
    return tuple(result)


def _replaced(view: View, place: int, sizes: Sequence[int | None]) -> View:
    """A view with other dimensions in the place of one, which count nothing that has been counted before."""
    fresh = 1 + max((piece.axis for dimension in view for piece in dimension), default=ROWS)
    return (*view[:place], *(whole_axis(fresh + n, size) for n, size in enumerate(sizes)), *view[place + 1 :])


def counts_rows(dimension: Sequence[Piece]) -> bool:
    return any(piece.axis == ROWS and piece.stride for piece in dimension)


def row_numbers(offset: int, pieces: Iterable[Piece]) -> list[int]:
    """The row of every position of a dimension that these pieces make up, outermost first."""
    rows = [offset]
    for piece in pieces:
        rows = [row + digit * piece.stride for row in rows for digit in range(piece.size)]
    return rows


def _same_for_all(value: ov.Output, found: Sequence[Origin]) -> bool:
    """Whether a factor has one value for all channels: its size is one wherever they run."""
    sizes = dimensions(value)
    if sizes is None:
        return False
    for origin in found:
        for back, dimension in enumerate(reversed(origin.view), 1):
            if counts_rows(dimension) and back <= len(sizes) and sizes[-back] != 1:
                return False
    return True


_DEPTH = 64
_FACTORS = 32
"""Of one value at most: a tensor that is squared again and again has twice as many each time."""


class Origins:
    """Answers for one model, remembered between questions."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self._layers: dict[ov.Node, Weight] = {
            consumer.node: weight
            for weight in weights
            if len(weight.reduction_axes) == 1 and len(weight.channel_axes) == 1
            for consumer in weight.consumers
            if consumer.role.activation is not None and consumer.role.activation.output == (-1,)
        }
        self._known: dict[tuple[ov.Node, int], tuple[Origin, ...] | None] = {}

    def of(self, value: ov.Output, depth: int = _DEPTH) -> tuple[Origin, ...] | None:
        """The weights whose rows made the channels of a value, each once for every factor it stands for.

        An empty tuple is a value within bounds (a Sigmoid), which scales nothing; None is a value of unknown make.
        """
        node, index = value.get_node(), value.get_index()
        if (node, index) not in self._known:
            kind = node.get_type_name()
            found: tuple[Origin, ...] | None = None
            if depth and kind in _BOUNDED:
                found = ()
            elif depth and node in self._layers:
                found = self._layer(node)
            elif depth and kind in _RULES:
                found = _RULES[kind](self, node, index, depth - 1)
            self._known[node, index] = found
        return self._known[node, index]

    def of_input(self, value: ov.Output, place: int, size: int) -> tuple[Origin, ...] | None:
        """As `of`, for a value whose dimension `place` must have this size because a layer sums over it.

        Exporters compute the shape of the last Reshape at run time and leave that size unknown.
        """
        node, after = value.get_node(), dimensions(value)
        if after is None or after[place] is not None or node.get_type_name() != "Reshape":
            return self.of(value)
        before, after[place] = dimensions(node.input_value(0)), size
        if before is None:
            return None
        return _each(self.of(node.input_value(0)), lambda view: reshape_partly(view, before, after))

    def _layer(self, node: ov.Node) -> tuple[Origin, ...] | None:
        """A layer whose last dimension counts the rows of its weight."""
        weight, sizes = self._layers[node], dimensions(node.output(0))
        if sizes is None or sizes[-1] != weight.shape[weight.channel_axes[0]]:
            return None
        view = tuple(whole_axis(axis, size) for axis, size in enumerate(sizes[:-1], 1))
        return (Origin(weight, 0, (*view, whole_axis(ROWS, sizes[-1]))),)

    def _same(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        """Of a variable, the value that it starts from and keeps: keys and values of an encoder."""
        return self.of(node.input_value(0), depth) if node.get_input_size() else None

    def _beside_constant(
        self, node: ov.Node, _index: int, depth: int, any_size: bool = False
    ) -> tuple[Origin, ...] | None:
        """Beside a scalar, or a bias of any size, which moves channels and does not mix them; what two activations make
        is of unknown make."""
        for port in (1, 0):
            constant = constant_of(node.input_value(port))
            if constant is not None and (any_size or prod(sizes_of(constant.shape)) == 1):
                return _widened(self.of(node.input_value(1 - port), depth), node)
        return None

    def _product(self, node: ov.Node, index: int, depth: int) -> tuple[Origin, ...] | None:
        """The factors of both sides. A side that is the same for all channels (a norm's divisor) does not count."""
        scaled = self._beside_constant(node, index, depth)
        if scaled is not None or any(constant_of(value) is not None for value in node.input_values()):
            return scaled
        left, right = (self.of(value, depth) for value in node.input_values())
        if left is None or right is None:
            one, other = (left, node.input_value(1)) if right is None else (right, node.input_value(0))
            return _widened(one, node) if one and _same_for_all(other, one) else None
        return _widened(left + right, node) if len(left) + len(right) <= _FACTORS else None

    def _quotient(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        """Only by what is the same for all channels: a divisor of channels would turn their sizes around."""
        found, divisor = self.of(node.input_value(0), depth), node.input_value(1)
        constant = constant_of(divisor)
        scalar = constant is not None and prod(sizes_of(constant.shape)) == 1
        return _widened(found, node) if found and (scalar or _same_for_all(divisor, found)) else None

    def _power(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        exponent = constant_of(node.input_value(1))
        if exponent is None or prod(sizes_of(exponent.shape)) != 1:
            return None
        found, times = self.of(node.input_value(0), depth), float(exponent.data.reshape(-1)[0])
        return found * int(times) if found is not None and times in (1.0, 2.0) else None

    def _reshape(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        before, after = dimensions(node.input_value(0)), dimensions(node.output(0))
        if before is None or after is None:
            return None
        return _each(self.of(node.input_value(0), depth), lambda view: reshape_partly(view, before, after))

    def _transpose(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        order = constant_of(node.input_value(1))
        if order is None or not order.shape or not order.shape[0]:
            return None
        axes = [int(axis) for axis in order.data]
        return _each(self.of(node.input_value(0), depth), lambda view: transpose(view, axes))

    def _broadcast(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        before, after = dimensions(node.input_value(0)), dimensions(node.output(0))
        if before is None or after is None:
            return None
        return _each(self.of(node.input_value(0), depth), lambda view: repeat(view, before, after, ROWS))

    def _split(self, node: ov.Node, index: int, depth: int) -> tuple[Origin, ...] | None:
        axis, sizes = constant_of(node.input_value(1)), dimensions(node.input_value(0))
        lengths = [dimensions(output) for output in node.outputs()]
        if axis is None or sizes is None or any(length is None for length in lengths):
            return None
        place = int(axis.data.reshape(-1)[0]) % len(sizes)
        parts = [length[place] for length in lengths if length is not None]
        if any(part is None for part in parts):
            return self.of(node.input_value(0), depth) if sizes[place] is None else None
        start = sum(part for part in parts[:index] if part is not None)
        return _narrowed(self.of(node.input_value(0), depth), place, start, parts[index] or 0, 1)

    def _slice(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        sizes, after = dimensions(node.input_value(0)), dimensions(node.output(0))
        given = [constant_of(node.input_value(port)) for port in range(1, node.get_input_size())]
        if sizes is None or after is None or len(given) < 4 or given[3] is None or given[2] is None:
            return None
        found = self.of(node.input_value(0), depth)
        for number, axis in enumerate(int(one) % len(sizes) for one in given[3].data):
            size, length = sizes[axis], after[axis]
            if size is None:
                continue  # tokens: never the channels
            if given[0] is None or length is None:
                return None
            start, step = int(given[0].data[number]), int(given[2].data[number])
            found = _narrowed(found, axis, start + size if start < 0 else start, length, step)
        return found

    def _gather(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        sizes, picked = dimensions(node.input_value(0)), dimensions(node.input_value(1))
        axis = constant_of(node.input_value(2))
        found = self.of(node.input_value(0), depth)
        if sizes is None or picked is None or axis is None or found is None:
            return None
        place = int(axis.data.reshape(-1)[0]) % len(sizes)
        number = constant_of(node.input_value(1))
        if number is not None and not picked and sizes[place] is not None:
            start = int(number.data.reshape(-1)[0]) % (sizes[place] or 1)
            cut = _narrowed(found, place, start, 1, 1)
            return _each(cut, lambda view: (*view[:place], *view[place + 1 :]))
        if any(counts_rows(origin.view[place]) for origin in found):
            return None
        return _each(found, lambda view: _replaced(view, place, picked))

    def _concat(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        """A cache and what is appended to it: the cache holds earlier values of the same make."""
        sizes = dimensions(node.output(0))
        values = [value for value in node.input_values() if not _is_state(value)]
        if sizes is None or len(values) != 1:
            return None
        found = self.of(values[0], depth)
        axis = int(node.get_attributes()["axis"]) % len(sizes)
        if found is None or any(counts_rows(origin.view[axis]) for origin in found):
            return None
        return _each(found, lambda view: _replaced(view, axis, [sizes[axis]]))

    def _attention(self, node: ov.Node, _index: int, depth: int) -> tuple[Origin, ...] | None:
        """In one operation, or as a MatMul of two activations, `weights @ V`: sums over positions, the last dimension
        but one; channels stay where they are."""
        port = 1 if node.get_type_name() == "MatMul" else 2
        if port == 1 and node.get_attributes()["transpose_b"]:
            return None
        before, after = dimensions(node.input_value(port)), dimensions(node.output(0))
        found = self.of(node.input_value(port), depth)
        if before is None or after is None or not found or len(before) < 2:
            return None
        if any(counts_rows(origin.view[-2]) for origin in found):
            return None
        mixed = _each(found, lambda view: _replaced(view, len(view) - 2, [after[-2]]))
        return _each(mixed, lambda view: repeat(view, [*before[:-2], after[-2], before[-1]], after, ROWS))


def _is_state(value: ov.Output) -> bool:
    """Whether a value comes from outside or from an earlier call: a cache."""
    node = value.get_node()
    while node.get_type_name() in ("Gather", "Convert", "Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() in ("ReadValue", "Parameter"))


_Rule = Callable[[Origins, ov.Node, int, int], "tuple[Origin, ...] | None"]

_BOUNDED = frozenset({"Tanh", "Sigmoid", "Erf", "HSigmoid", "HardSigmoid"})
_AS_THEY_ARE = ("ReadValue", "Convert", "Swish", "Gelu", "Relu", "Mish", "HSwish", "SoftPlus", "Elu", "Selu", "Clamp")
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_AS_THEY_ARE, Origins._same),
    "Add": partial(Origins._beside_constant, any_size=True),
    "Subtract": partial(Origins._beside_constant, any_size=True),
    "Minimum": Origins._beside_constant,
    "Maximum": Origins._beside_constant,
    "Multiply": Origins._product,
    "Divide": Origins._quotient,
    "Power": Origins._power,
    "Reshape": Origins._reshape,
    "Squeeze": Origins._reshape,
    "Unsqueeze": Origins._reshape,
    "Transpose": Origins._transpose,
    "Broadcast": Origins._broadcast,
    "Tile": Origins._broadcast,
    "Split": Origins._split,
    "VariadicSplit": Origins._split,
    "Slice": Origins._slice,
    "Gather": Origins._gather,
    "Concat": Origins._concat,
    "ScaledDotProductAttention": Origins._attention,
    "MatMul": Origins._attention,
}


@dataclass(frozen=True)
class RowNorms:
    """Channel j is as large as one row of another weight: `rows()[j]` along that weight's channel axis."""

    weight: Weight
    offset: int
    pieces: tuple[Piece, ...]
    """Outermost first: j is read as digits of their sizes, and its row is the sum of offset and digit · stride."""

    def rows(self) -> list[int]:
        """The row of every channel."""
        return row_numbers(self.offset, self.pieces)


@dataclass(frozen=True)
class RowNormProduct:
    """Channel j is as large as the product of one row each of two weights (which may be the same one)."""

    factors: tuple[RowNorms, RowNorms]


ImportanceSource = NormGain | RowNorms | RowNormProduct


def importance_sources(weights: Iterable[Weight]) -> dict[str, ImportanceSource]:
    """For each MatMul or expert weight whose input the graph says something about, what it says; by the weight's name.

    Args:
        weights: as `find_weights` gives them. A producer that is not among them (an ignored one) is of unknown make.
    """
    weights = list(weights)
    origins, known = Origins(weights), dict[str, ImportanceSource]()
    for weight in weights:
        read = [
            (layer.node.input_value(meets.port), meets.reduction)
            for layer in weight.consumers
            if (meets := layer.role.activation) is not None
        ]
        if not read or len(weight.input_axes) != 1:
            continue
        first, *others = (_said_of(value, reduction, weight.columns, origins) for value, reduction in read)
        if first is not None and all(one == first for one in others):
            known[weight.name] = first
    return known


def _said_of(value: ov.Output, reduction: tuple[int, ...], columns: int, origins: Origins) -> ImportanceSource | None:
    """What the graph says of the channels of a tensor that a layer sums over."""
    sizes = dimensions(value)
    if sizes is None or len(reduction) != 1:
        return None
    place = len(sizes) + reduction[0]
    if sizes[place] not in (columns, None):
        return None
    if place == len(sizes) - 1:
        gain = norm_gain(value, columns)
        if gain is not None:
            return gain
    rows: list[RowNorms] = []
    for origin in origins.of_input(value, place, columns) or ():
        pieces = origin.view[place]
        if any(piece.axis != ROWS for piece in pieces) or prod(piece.size for piece in pieces) != columns:
            break  # its rows do not make up the whole of the dimension
        rows.append(RowNorms(origin.weight, origin.offset, pieces))
    if len(rows) == 1:
        return rows[0]
    return RowNormProduct((rows[0], rows[1])) if len(rows) == 2 else None
