"""Which input of which operation is a weight, and what each of its dimensions means there.

One row per operation in `ROLES`. A row's function looks at the operation and returns a `Role` in the dimensions of the
tensor that arrives at the port, or a refusal as text. Adding an operation is adding a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import openvino as ov

from ov_weight_compression.patterns.positional import makes_positions
from ov_weight_compression.patterns.weight import Kind

__all__ = ["RECURRENT", "ROLES", "Role"]

RECURRENT = frozenset(f"{cell}{form}" for cell in ("LSTM", "GRU", "RNN", "AUGRU") for form in ("Cell", "Sequence"))


@dataclass(frozen=True)
class Role:
    """What the dimensions of a weight mean to one layer; together they are all of its dimensions."""

    kind: Kind
    batch: tuple[int, ...]
    channel: tuple[int, ...]
    reduction: tuple[int, ...]


def _matmul(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | str:
    """`[..., out, in]` or `[..., in, out]`, by port and transpose flag."""
    rank = len(shape)
    if rank < 2:
        return "one-dimensional: there are no output channels to give scales to"
    if makes_positions(node):
        return "rotary or positional embedding: its values become angles, which need their precision"
    attributes = node.get_attributes()
    last_is_out = attributes["transpose_a"] if port == 0 else not attributes["transpose_b"]
    channel, reduction = (rank - 1, rank - 2) if last_is_out else (rank - 2, rank - 1)
    batch = tuple(range(rank - 2))
    kind = Kind.EXPERTS if any(shape[axis] > 1 for axis in batch) else Kind.MATMUL
    return Role(kind, batch, (channel,), (reduction,))


def _grouped_matmul(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | str:
    """`[experts, out, in]`, by the operation's definition."""
    return Role(Kind.EXPERTS, (0,), (1,), (2,))


def _gather(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | str:
    """The gathered axis numbers the rows; everything else is what one row holds."""
    if len(shape) < 2:
        return "one-dimensional: a Gather picks single values from it, not rows"
    axis_node = node.input_value(2).get_node()
    if axis_node.get_type_name() != "Constant":
        return "the axis of the Gather is known only at run time"
    axis = int(axis_node.data.reshape(-1)[0]) % len(shape)
    batch = tuple(range(int(node.get_attributes().get("batch_dims", 0)) % len(shape)))
    if axis != len(batch):  # OpenVINO 2026.4's CPU plugin takes scales of the first axis for it, whatever they are
        return "the Gather does not pick along the first axis, and the CPU plugin misreads compressed tables then"
    reduction = tuple(dim for dim in range(len(shape)) if dim != axis and dim not in batch)
    if not reduction:
        return "the Gather picks single values from it, not rows"
    return Role(Kind.GATHER, batch, (axis,), reduction)


def _convolution(batch: tuple[int, ...], channel: int) -> Callable[[ov.Node, int, tuple[int, ...]], Role | str]:
    """A kernel whose output channels are dimension `channel`: a scale covers input channels and taps."""

    def role(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | str:
        reduction = tuple(dim for dim in range(len(shape)) if dim != channel and dim not in batch)
        return Role(Kind.CONVOLUTION, batch, (channel,), reduction)

    return role


ROLES: dict[tuple[str, int], Callable[[ov.Node, int, tuple[int, ...]], Role | str]] = {
    ("MatMul", 0): _matmul,
    ("MatMul", 1): _matmul,
    ("GroupedMatMul", 1): _grouped_matmul,
    ("Gather", 0): _gather,
    ("Convolution", 1): _convolution((), 0),
    ("GroupConvolution", 1): _convolution((0,), 1),
    ("ConvolutionBackpropData", 1): _convolution((), 1),
    ("GroupConvolutionBackpropData", 1): _convolution((0,), 2),
}
