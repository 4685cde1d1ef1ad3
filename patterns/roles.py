"""Which input of which operation is a weight, what it is multiplied with, and what each dimension means there.

One row per operation in `ROLES`. A row is a `Role`, or a function that looks at the operation and returns one, or a
`Refusal`. Adding an operation is adding a row; for an operation of one's own a row can be handed in:

    WeightCompression(roles={("MyLinear", 1): Role(channel=(0,), reduction=(1,), activation=Activation(port=0))})

A role that names its activation says that the layer is linear in the weight,

    y[…, channel] = Σ_reduction  x[…, reduction] · w[channel, reduction]        for each place in the batch by itself

and everything that asks what a layer does to its input (statistics of data, GPTQ, AWQ, adapters, comparisons of
outputs) asks the role, never the operation's type.

`follow` goes from a constant to the operations that read it, through everything that only converts or rearranges it:

Constant ─ (Convert, FakeConvert, Reshape, Squeeze, Unsqueeze, Transpose)* ─┬─ layer       a role, or a refusal
                                                                           └─ operation   no role

Its axes are followed through Transpose and Reshape. A *view* of the constant is what a layer sees: for each of its
dimensions, the pieces of the constant's own axes that it is made of, outermost first. A constant `[8, 6]` starts as

    ((axis 0, 8), (axis 1, 6))

after Reshape to `[8, 2, 3]` the second axis is in two pieces, `(axis 1, 2, stride 3)` and `(axis 1, 3, stride 1)`;
after Reshape to `[48]` one dimension holds both axes. Where a layer reduces over a dimension, its pieces say which of
the constant's axes that is, and whether each of them is there as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import pairwise
from math import prod
from typing import NamedTuple

import openvino as ov

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import sizes_of
from ov_weight_compression.ir_utils.weight_source import is_widened
from ov_weight_compression.patterns.graphs import Graph, dimensions

RECURRENT = frozenset(f"{cell}{form}" for cell in ("LSTM", "GRU", "RNN", "AUGRU") for form in ("Cell", "Sequence"))


class Kind(Enum):
    """What sort of layer reads a weight. It decides which formats make sense and what a device executes.

    Of a weight that layers of several kinds share, the last of them in this order asks the most.
    """

    MATMUL = "matmul"
    EXPERTS = "experts"
    GATHER = "gather"
    CONVOLUTION = "convolution"


@dataclass(frozen=True)
class Refusal:
    """Why something is not done, in plain words."""

    reason: str


@dataclass(frozen=True)
class Activation:
    """The input that a layer multiplies its weight with. Dimensions are counted from the end: -1 is the last."""

    port: int
    reduction: tuple[int, ...] = (-1,)
    """Its dimensions that the layer sums over, in the order of the weight's."""
    batch: tuple[int, ...] = ()
    """Its dimensions that number what the weight's batch dimensions number, in their order. An activation without
    them is the same for all."""
    output: tuple[int, ...] = (-1,)
    """The dimensions of the layer's output that the weight's channels become, in their order. Its other dimensions are
    those of the activation that are not summed over, in their order."""


@dataclass(frozen=True)
class Role:
    """What the dimensions of a weight, as it arrives at the port, mean to one layer; together they are all of them."""

    kind: Kind = Kind.MATMUL
    batch: tuple[int, ...] = ()
    """They number independent copies of the layer: experts, groups of a convolution."""
    channel: tuple[int, ...] = (0,)
    """Output channels, or the rows of an embedding."""
    reduction: tuple[int, ...] = (1,)
    """The layer sums over them, or reads them as one row."""
    activation: Activation | None = None
    """What the layer multiplies the weight with, where each column of the weight meets one channel of it; None for a
    table whose rows are picked, and for kernels that meet each channel at several places."""

    rank: int = field(init=False, repr=False, compare=False)
    """The number of the weight's dimensions."""

    def __post_init__(self) -> None:
        dims = (*self.batch, *self.channel, *self.reduction)
        if sorted(dims) != list(range(len(dims))) or not self.reduction:
            raise OptionError(
                f"Role(batch={self.batch}, channel={self.channel}, reduction={self.reduction}): together they must be "
                "all dimensions of the weight, each once and from 0 on, and it must be reduced over one at least"
            )
        object.__setattr__(self, "rank", len(dims))
        meets = self.activation
        if meets is None:
            return
        for name, own, other in (
            ("reduction", self.reduction, meets.reduction),
            ("batch", self.batch, meets.batch),
            ("output", self.channel, meets.output),
        ):
            if any(dim >= 0 for dim in other):
                raise OptionError(
                    f"Activation({name}={other}): dimensions are counted from the end, -1 is the last, because what "
                    "stands before them is not the same in every model"
                )
            if len(own) != len(other):
                raise OptionError(f"Role(activation=Activation({name}={other})): there must be one for each of {own}")


RoleRow = Role | Callable[[ov.Node, int, tuple[int, ...]], Role | Refusal]
"""What an operation (the first argument) makes of the weight of this shape that it reads at a port."""
Roles = Mapping[tuple[str, int], RoleRow]
"""Rows by an operation's type name and the port of its weight."""


def _checked(found: object, node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | Refusal | None:
    """What a caller's row has given, or why it cannot be."""
    kind = node.get_type_name()
    if found is None or isinstance(found, Refusal):
        return found
    if not isinstance(found, Role):
        raise OptionError(f"roles[{kind!r}, {port}]: must return a Role or a Refusal, got {shown(found)}")
    misfit = _misfit(found, node, shape)
    return found if misfit is None else Refusal(f"its role in {kind} does not fit: {misfit}")


def _misfit(role: Role, node: ov.Node, shape: tuple[int, ...]) -> str | None:
    """What speaks against a role, as far as sizes are known; None where nothing does."""
    if role.rank != len(shape):
        return f"it is one of {role.rank} dimensions, and the weight has {len(shape)}"
    meets = role.activation
    if meets is None:
        return None
    if meets.port >= node.get_input_size():
        return f"there is no input {meets.port} that the weight could meet"
    for what, value, dims, own in (
        ("activation", node.input_value(meets.port), meets.reduction, role.reduction),
        ("output", node.output(0), meets.output, role.channel),
    ):
        sizes = dimensions(value)
        for dim, axis in zip(dims, own, strict=True) if sizes is not None else ():
            size = sizes[dim] if sizes is not None and -dim <= len(sizes) else 0
            if size not in (None, shape[axis]):
                return f"the {what} has {size} channels there, and the weight {shape[axis]}"
    return None


def _matmul(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | Refusal:
    """`[..., out, in]` or `[..., in, out]`, by port and transpose flag."""
    rank, other = len(shape), 1 - port
    if rank < 2:
        return Refusal("one-dimensional: there are no output channels to give scales to")
    if _makes_positions(node):
        return Refusal("rotary or positional embedding: its values become angles, which need their precision")
    attributes = node.get_attributes()
    transposed = (attributes["transpose_a"], attributes["transpose_b"])
    last_is_out = transposed[0] if port == 0 else not transposed[1]
    kind = Kind.EXPERTS if any(size > 1 for size in shape[:-2]) else Kind.MATMUL
    meeting = node.get_input_partial_shape(other).rank
    is_vector = meeting.is_static and meeting.get_length() == 1  # a row or a column, whatever the flags say
    summed_last = is_vector or (not transposed[0] if other == 0 else transposed[1])
    made_last = is_vector or other == 0
    channel, reduction = (rank - 1, rank - 2) if last_is_out else (rank - 2, rank - 1)
    activation = Activation(
        other,
        reduction=(-1,) if summed_last else (-2,),
        batch=tuple(range(-rank, -2)),
        output=(-1,) if made_last else (-2,),
    )
    return Role(kind, tuple(range(rank - 2)), (channel,), (reduction,), activation)


def _grouped_matmul(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | Refusal:
    """`[experts, out, in]`, by the operation's definition. Rows of all experts in one matrix `[tokens, in]` are those
    of each in turn; which are whose, a third input says."""
    return Role(Kind.EXPERTS, (0,), (1,), (2,), Activation(0, batch=(-3,)))


def _gather(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | Refusal:
    """The gathered axis numbers the rows; everything else is what one row holds."""
    if len(shape) < 2:
        return Refusal("one-dimensional: a Gather picks single values from it, not rows")
    axis_node = node.input_value(2).get_node()
    if axis_node.get_type_name() != "Constant":
        return Refusal("the axis of the Gather is known only at run time")
    axis = int(axis_node.data.reshape(-1)[0]) % len(shape)
    batch = tuple(range(int(node.get_attributes().get("batch_dims", 0)) % len(shape)))
    if axis != len(batch):  # OpenVINO 2026.4's CPU plugin takes scales of the first axis for it, whatever they are
        return Refusal(
            "the Gather does not pick along the first axis, and the CPU plugin misreads compressed tables then"
        )
    reduction = tuple(dim for dim in range(len(shape)) if dim != axis and dim not in batch)
    if not reduction:
        return Refusal("the Gather picks single values from it, not rows")
    return Role(Kind.GATHER, batch, (axis,), reduction)


def _convolution(node: ov.Node, port: int, shape: tuple[int, ...], *, batch: tuple[int, ...], channel: int) -> Role:
    """A kernel whose output channels are dimension `channel`: a scale covers input channels and taps."""
    reduction = tuple(dim for dim in range(len(shape)) if dim != channel and dim not in batch)
    return Role(Kind.CONVOLUTION, batch, (channel,), reduction)


ROLES: Roles = {
    ("MatMul", 0): _matmul,
    ("MatMul", 1): _matmul,
    ("GroupedMatMul", 1): _grouped_matmul,
    ("Gather", 0): _gather,
    ("Convolution", 1): partial(_convolution, batch=(), channel=0),
    ("GroupConvolution", 1): partial(_convolution, batch=(0,), channel=1),
    ("ConvolutionBackpropData", 1): partial(_convolution, batch=(), channel=1),
    ("GroupConvolutionBackpropData", 1): partial(_convolution, batch=(0,), channel=2),
}

_EXAMPLE = "{('MyLinear', 1): Role(channel=(0,), reduction=(1,))}"

_PASSED = frozenset({"Transpose", "Concat", "Multiply", "Convert", "Reshape", "Unsqueeze", "Squeeze"})
_DEPTH = 5


def _makes_positions(node: ov.Node) -> bool:
    """Whether the output of `node` reaches both a Sin and a Cos through nothing but rearranging and scaling.

    Rotary embeddings multiply positions by a constant of inverse frequencies, `[1, n, 1] @ [batch, 1, length]`, and
    feed the product to Sin and to Cos; random Fourier features (Segment Anything) do the same with a matrix. The
    constant looks like a weight, but an angle of a thousand radians forgives no rounding of its frequency.

        MatMul ─ (Transpose, Concat, Multiply, …) ─┬─ Sin
                                                   └─ Cos

    A network that uses Sin alone as its activation does not match.
    """
    found: set[str] = set()
    front = [node]
    for _ in range(_DEPTH):
        following: list[ov.Node] = []
        for source in front:
            for target in source.output(0).get_target_inputs():
                reader = target.get_node()
                kind = reader.get_type_name()
                if kind in ("Sin", "Cos"):
                    found.add(kind)
                elif kind in _PASSED:
                    following.append(reader)
        if len(found) == 2:
            return True
        if not following:
            return False
        front = following
    return False


def parse_roles(value: object) -> Roles:
    """A caller's rows, checked.

    Raises:
        OptionError: it is no mapping, or one of its keys or rows cannot be.
    """
    if not isinstance(value, Mapping):
        raise OptionError(f"roles: must be a dict, as in {_EXAMPLE}, got {shown(value)}")
    for key, row in value.items():
        operation, port = key if isinstance(key, tuple) and len(key) == 2 else (None, None)
        if not isinstance(operation, str) or not isinstance(port, int) or isinstance(port, bool) or port < 0:
            raise OptionError(f"roles: {shown(key)} is no operation's type name and port, as in {_EXAMPLE}")
        if not isinstance(row, Role) and not callable(row):
            raise OptionError(
                f"roles[{operation!r}, {port}]: must be a Role, or a function that returns one or a "
                f"Refusal, got {shown(row)}"
            )
        if isinstance(row, Role) and row.activation is not None and row.activation.port == port:
            raise OptionError(f"roles[{operation!r}, {port}]: the activation's port is the weight's own, {port}")
    return dict(value)


_RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze"})
_THROUGH = frozenset({"Convert", "FakeConvert", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})


@dataclass(frozen=True, eq=False)
class Use:
    """One operation that reads a constant, and how the constant looks from there."""

    node: ov.Node
    port: int
    view: View | Refusal
    """The view, or why there is none."""
    role: Role | Refusal | None
    """What the operation makes of it, or why it refuses; None for an operation that takes no weights."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer, and the port that a weight arrives at behind any Convert, Reshape, Transpose or FakeConvert."""

    node: ov.Node
    port: int
    name: str
    """The layer's friendly name."""
    role: Role
    """What it makes of the tensor that arrives there, in the dimensions of that."""

    @property
    def input(self) -> ov.Output | None:
        """The tensor that the layer multiplies the weight with, as the graph is now; None where it multiplies none."""
        meets = self.role.activation
        return None if meets is None else self.node.input_value(meets.port)


def follow(graph: Graph, constant: ov.Node, roles: Roles = ROLES) -> list[Use]:
    """The operations of a graph that read a constant, in graph order, through everything that only converts or
    rearranges it, and what they make of it by the table `roles`.

    Operations that no result of the model depends on are not in the graph, and do not count.
    """
    whole = tuple((Piece(axis, size, 1),) for axis, size in enumerate(sizes_of(constant.get_output_shape(0))))
    front: list[tuple[ov.Node, View | Refusal]] = [(constant, whole)]
    found: list[Use] = []
    while front:
        source, seen = front.pop()
        for target in source.output(0).get_target_inputs():
            node, port = target.get_node(), target.get_index()
            kind = node.get_type_name()
            if port == 0 and kind in _THROUGH:
                if isinstance(seen, Refusal) or kind in ("Convert", "FakeConvert"):
                    front.append((node, seen))
                else:
                    front.append((node, _rearranged(node, kind, seen)))
            elif kind == "ShapeOf" or node not in graph.position:
                continue
            elif isinstance(seen, Refusal):
                found.append(Use(node, port, seen, seen if (kind, port) in roles else None))
            else:
                shape = tuple(prod(piece.size for piece in dimension) for dimension in seen)
                row = roles.get((kind, port))
                role = row(node, port, shape) if callable(row) else row
                if row is not ROLES.get((kind, port)):  # a caller's: ours follow from the shapes
                    role = _checked(role, node, port, shape)
                found.append(Use(node, port, seen, role))
    return sorted(found, key=lambda use: (graph.position[use.node], use.port))


def reshaped(constant: ov.Node, alive: Container[ov.Node]) -> ov.Node:
    """The last of the Reshapes (Squeezes, Unsqueezes) through which everything that reads a constant reads it; the
    constant itself, or what stands for it in f32, where there is none. Only operations in `alive` count.

    A weight is stored in the shape that it has there: codes in another shape in front of a Reshape look like codes in
    groups to the CPU plugin of OpenVINO 2026.4, which then cannot compile the model.
    """
    end = node = constant
    while True:
        targets = [target for target in node.output(0).get_target_inputs() if target.get_node() in alive]
        if len(targets) != 1 or targets[0].get_index() != 0:
            return end
        node = targets[0].get_node()
        kind = node.get_type_name()
        if kind not in (*_RESHAPING, "Convert") or not node.get_output_partial_shape(0).is_static:
            return end
        if kind in _RESHAPING or is_widened(node):
            end = node


def _rearranged(node: ov.Node, kind: str, view: View) -> View | Refusal:
    """The view behind an operation that rearranges."""
    if kind == "Transpose":
        order = node.input_value(1).get_node()
        if order.get_type_name() != "Constant":
            return Refusal(f"transposed by '{node.get_friendly_name()}' in an order known only at run time")
        axes = [int(axis) for axis in order.data.reshape(-1)]
        return transpose(view, axes or range(len(view))[::-1])
    shape = node.get_output_partial_shape(0)
    if not shape.is_static:
        return Refusal(f"reshaped by '{node.get_friendly_name()}' to a shape known only at run time")
    seen = reshape(view, sizes_of(shape.to_shape()))
    return seen if seen is not None else Refusal(f"the reshape '{node.get_friendly_name()}' cuts across its axes")


class Piece(NamedTuple):
    """`size` positions of one axis of the constant, `stride` positions apart along that axis."""

    axis: int
    size: int
    stride: int


View = tuple[tuple[Piece, ...], ...]


def transpose(view: View, order: Sequence[int]) -> View:
    """The view behind a Transpose by `order`."""
    return tuple(view[axis] for axis in order)


def pieces_of(view: View, dimensions: Iterable[int]) -> list[Piece]:
    """The pieces of some dimensions, in order, neighbours that belong together joined into one."""
    joined: list[Piece] = []
    for dimension in dimensions:
        for piece in view[dimension]:
            last = joined[-1] if joined else None
            if last is not None and last.axis == piece.axis and last.stride == piece.stride * piece.size:
                joined[-1] = Piece(piece.axis, last.size * piece.size, piece.stride)
            else:
                joined.append(piece)
    return joined


def reshape(view: View, shape: Sequence[int]) -> View | None:
    """The view behind a Reshape to `shape`, or None where the new dimensions cut across the axes.

    Axes of one element belong to no dimension in particular and are dropped.
    """
    pieces = [piece for piece in pieces_of(view, range(len(view))) if piece.size != 1]
    result: list[tuple[Piece, ...]] = []
    for wanted in shape:
        dimension: list[Piece] = []
        while wanted > 1:
            if not pieces:
                return None
            axis, size, stride = pieces[0]
            if wanted % size == 0:
                dimension.append(pieces.pop(0))
                wanted //= size
            elif size % wanted == 0:
                inner = size // wanted
                dimension.append(Piece(axis, wanted, stride * inner))
                pieces[0] = Piece(axis, inner, stride)
                wanted = 1
            else:
                return None
        result.append(tuple(dimension))
    return tuple(result) if not pieces else None


def whole_axis(axis: int, size: int | None) -> tuple[Piece, ...]:
    """The one piece of a dimension that is a whole axis; none where the size is one or unknown."""
    return (Piece(axis, size, 1),) if size is not None and size != 1 else ()


def reshape_partly(view: View, before: Sequence[int | None], after: Sequence[int | None]) -> View | None:
    """The view behind a Reshape where some sizes are known only at run time (None, with no pieces of their own).

    Unknown dimensions are taken to correspond to each other in order, where what lies between them has equal sizes.
    Where they do not, only what follows the last of them can be tracked.
    """
    old, new = _runs(before), _runs(after)
    if len(old) == len(new) and all(_product(before, a) == _product(after, b) for a, b in zip(old, new, strict=True)):
        runs = list(zip(old, new, strict=True))
    elif _product(before, old[-1]) == _product(after, new[-1]):
        runs = [(old[-1], new[-1])]
        if any(view[dim] for dim in range(old[-1].start)):
            return None
    else:
        return None
    result: list[tuple[Piece, ...]] = [()] * len(after)
    for source, target in runs:
        if any(prod(piece.size for piece in view[dim]) != before[dim] for dim in source):
            return None
        part = reshape(view[source.start : source.stop], [after[dim] or 1 for dim in target])
        if part is None:
            return None
        result[target.start : target.stop] = part
    return tuple(result)


def repeat(view: View, before: Sequence[int | None], after: Sequence[int | None], axis: int) -> View | None:
    """The view behind a Broadcast or a Tile: repetitions are pieces of `axis` with stride 0."""
    missing = len(after) - len(before)
    if missing < 0:
        return None
    result: list[tuple[Piece, ...]] = []
    for place, size in enumerate(after):
        old = before[place - missing] if place >= missing else 1
        pieces = view[place - missing] if place >= missing else ()
        if size is None or old is None or size == old:
            result.append(pieces)
        elif size % old == 0:
            result.append((Piece(axis, size // old, 0), *pieces))
        else:
            return None
    return tuple(result)


def cut(view: View, dimension: int, start: int, length: int, step: int) -> tuple[View, dict[int, int]] | None:
    """The view of `length` positions of a dimension, and how far each axis has moved; None where pieces would break."""
    pieces = view[dimension]
    inner = prod(piece.size for piece in pieces[1:])
    if not pieces or (inner > 1 and (step != 1 or start % inner or length % inner)) or step < 1:
        return None
    axis, _, stride = pieces[0]
    first = (Piece(axis, length // inner, stride * step),) if length != inner else ()
    return (*view[:dimension], (*first, *pieces[1:]), *view[dimension + 1 :]), {axis: start // inner * stride}


def _product(sizes: Sequence[int | None], run: range) -> int:
    """The number of positions in a run of known dimensions."""
    return prod(sizes[dim] or 1 for dim in run)


def _runs(sizes: Sequence[int | None]) -> list[range]:
    """The runs of known dimensions before, between and after the unknown ones."""
    ends = [-1, *(dim for dim, size in enumerate(sizes) if size is None), len(sizes)]
    return [range(left + 1, right) for left, right in pairwise(ends)]
