"""What the search of a graph hands to everybody else: weights that can be compressed, and constants that cannot.

Both are frozen dataclasses, and a refusal is data: a `Skip` with a reason in plain words, never an exception.

Axes are always those of the constant itself, whatever Transpose lies between it and the layer that uses it. (Where all
that reads a constant reads it through the same Reshape, the Reshape stands for the constant, and its axes count.) Each
axis has one name:

    reduction   the layer sums over it, or reads it as one row: a scale, or a group of codes, runs along it
    channel     the layer's output channels, or the rows of an embedding
    batch       independent copies of a layer side by side: experts, groups of a convolution

Seen as numbers a weight is the matrix `[rows, columns]`: its `layout` moves the reduction axes last, everything before
them is flattened to rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import openvino as ov

from ov_weight_compression.ir_utils.constants import FLOAT_TYPES
from ov_weight_compression.ir_utils.layout import Layout
from ov_weight_compression.patterns.roles import Activation, Kind, Role

__all__ = ["Consumer", "Skip", "Weight"]


@dataclass(frozen=True, eq=False)
class Consumer:
    """An input port of the graph that a weight arrives at, after any Convert, Reshape, Transpose or FakeConvert."""

    node: ov.Node
    port: int
    role: Role | None = None
    """In the dimensions of the tensor that arrives there. None for an operation that is not a layer but reads the same
    constant (an Add, a Result)."""

    @property
    def kind(self) -> Kind | None:
        """The layer's sort; None where it is none."""
        return None if self.role is None else self.role.kind

    @property
    def activation(self) -> Activation | None:
        """What the layer multiplies the weight with; None where it is none, or multiplies nothing."""
        return None if self.role is None else self.role.activation

    @property
    def input(self) -> ov.Output | None:
        """The tensor that the layer multiplies the weight with."""
        return None if self.activation is None else self.node.input_value(self.activation.port)

    @property
    def name(self) -> str:
        """The operation's friendly name."""
        return str(self.node.get_friendly_name())


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
    other_uses: tuple[Consumer, ...] = ()
    """Operations that are not layers and read the same constant: they will read the decompressed values."""
    body: str = ""
    """Where it lies: empty in the model itself, else the path of operations whose bodies lead to it."""
    parts: tuple[ov.Node, ...] = ()
    """Where `constant` is no Constant: the constants that the weight is stored as; of an fp8 source the codes first."""

    @property
    def source(self) -> ov.Node:
        """What its values are read from: its one float Constant, in whatever shape, or the end of an fp8 source."""
        return self.parts[0] if self.element_type in FLOAT_TYPES and self.parts else self.constant

    @property
    def stored_name(self) -> str:
        """Friendly name of the constant that holds its values or codes; not unique, unlike `name`."""
        return str((self.parts or (self.constant,))[0].get_friendly_name())

    @property
    def layout(self) -> Layout:
        """How it is seen as a matrix `[rows, columns]`."""
        return Layout.of(self.shape, self.reduction_axes)

    @property
    def rows(self) -> int:
        """Number of rows of the `[rows, columns]` matrix."""
        return prod(size for axis, size in enumerate(self.shape) if axis not in self.reduction_axes)

    @property
    def columns(self) -> int:
        """Number of columns of the `[rows, columns]` matrix: what one scale per channel covers."""
        return prod(self.shape[axis] for axis in self.reduction_axes)

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the constant, or of its parts, as they are now."""
        return sum(int(part.get_byte_size()) for part in self.parts or (self.constant,))

    @property
    def groupable(self) -> bool:
        """Whether a Reshape alone can cut the constant into groups: its reduction axes lie side by side."""
        return self.reduction_axes[-1] - self.reduction_axes[0] == len(self.reduction_axes) - 1

    @property
    def backup_reason(self) -> str | None:
        """Why this weight gets the backup mode unless `all_layers` is given; None where it does not."""
        if self.is_embedding:
            return "embedding"
        return "last layer" if self.is_last_layer else None


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
