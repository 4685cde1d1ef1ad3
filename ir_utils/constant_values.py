"""The values of what depends on constants alone: codes behind zero points and scales, or floats behind what converts
and rearranges them.

A float weight is `Constant ─ [Convert] ─ [Reshape] ─ layer`, a compressed one the longer chain of codes, zero points
and scales. Either is evaluated at any of its outputs, in f32 as a layer sees it that is executed in f32, whatever type
the chain is written in. Pieces are rows: of the first axis, or of the first two and more flattened where one index of
the first is too much already (a weight of experts). So a table of a gigabyte is never there as a whole; only an
operation that mixes rows (a Transpose) is evaluated whole, for that weight.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.utils.postponed_constant import PostponedConstant

from ov_weight_compression.ir_utils.types import Array, Float32, sizes_of

_PIECE_ELEMENTS = 1 << 21
_ALIGN = 1 << 10
"""Pieces begin at multiples of this many rows, so that groups and packed codes are never cut in the middle."""


def depends_on_constants(node: ov.Node, depth: int = 24) -> bool:
    """Whether a node's output depends on no input and no state of the model."""
    if node.get_type_name() in ("Parameter", "ReadValue", "RandomUniform") or depth == 0:
        return False
    return all(depends_on_constants(value.get_node(), depth - 1) for value in node.input_values())


class ConstantValues:
    """The values of an output that depends on constants alone.

    Args:
        output: where they are asked for.
        lead: axes that are flattened into rows; by default as many as it takes to make rows small.
        elements: of a piece, and the most of a row where it can be made smaller.
        align: pieces begin at multiples of so many rows.
    """

    def __init__(self, output: Any, lead: int = 0, *, elements: int = _PIECE_ELEMENTS, align: int = _ALIGN) -> None:
        self._output, self._elements, self._align = output, elements, align
        self.shape = sizes_of(output.get_shape())
        self._lead = lead or 1
        while not lead and self._lead < len(self.shape) - 1 and math.prod(self.shape[self._lead :]) > elements:
            self._lead += 1
        self._whole: dict[Any, Float32] = {}
        self._made: dict[Any, Any] = {}

    def pieces(self) -> Iterator[Float32]:
        """All values in row-major order, as flat arrays."""
        rows, width = self._split(self.shape)
        align = self._align if self._lead == len(self.shape) - 1 else 1  # otherwise no row is a part of a group
        step = max(align, self._elements // max(1, width) // align * align)
        for start in range(0, rows, step):
            yield self.rows(start, min(start + step, rows)).reshape(-1)

    def whole(self) -> Float32:
        """Every value at once, in the output's own shape; not kept."""
        return self.rows(0, self._split(self.shape)[0]).reshape(self.shape)

    def _split(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many rows a tensor of this shape has, and how many elements a row."""
        return math.prod(shape[: self._lead]), math.prod(shape[self._lead :])

    def rows(self, start: int, stop: int, output: Any = None) -> Float32:
        """Some rows, `[stop - start, …]` with the axes that are not flattened into rows; a scalar has one row. Of the
        output itself, or of another one that it is made of."""
        output = self._output if output is None else output
        node = output.get_node()
        if isinstance(node, PostponedConstant):  # as a Constant, computed once
            if node not in self._made:
                self._made[node] = ov.op.Constant(node.m_maker(), shared_memory=True)
            node = self._made[node]
        evaluate = _EVALUATORS.get(node.get_type_name())
        found = evaluate(self, node, start, stop) if evaluate else None
        if found is None:
            shape = sizes_of(output.get_shape())
            found = self._keep(output, _compiled).reshape(self._split(shape)[0], *shape[self._lead :])[start:stop]
        return found

    def _all(self, output: Any) -> Float32:
        """Every value in the output's own shape, kept: for an operation that cannot be taken in pieces."""
        shape = sizes_of(output.get_shape())
        return self._keep(output, lambda value: self.rows(0, self._split(shape)[0], value).reshape(shape))

    def _keep(self, output: Any, evaluate: Callable[[Any], Float32]) -> Float32:
        if output not in self._whole:
            self._whole[output] = evaluate(output)
        return self._whole[output]

    def _operand(self, output: Any, like: Sequence[int], start: int, stop: int) -> Array:
        """The rows of an operand that meet rows `start` to `stop` of a result of shape `like`, as broadcasting pairs
        them."""
        own, lead = sizes_of(output.get_shape()), self._lead
        if len(own) == len(like) and own[:lead] == tuple(like[:lead]):
            return self.rows(start, stop, output)
        shape = (1,) * (len(like) - len(own)) + own
        whole = self._all(output).reshape(shape)
        if math.prod(shape[:lead]) == 1:
            return whole.reshape(1, *shape[lead:])
        return np.broadcast_to(whole, (*like[:lead], *shape[lead:])).reshape(-1, *shape[lead:])[start:stop]


def _constant(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    shape = sizes_of(node.get_output_shape(0))
    width = values._split(shape)[1]
    kind = node.get_output_element_type(0)
    if kind.bitwidth < 8 and start * width % 8:
        return None  # begins inside a byte: evaluate the whole
    # A Constant of some consecutive elements of another: OpenVINO unpacks and converts every type that it has.
    raw, begin = node.get_tensor_view().data.reshape(-1).view(np.uint8), start * width * kind.bitwidth // 8
    tensor = ov.Tensor(kind, ov.Shape([(stop - start) * width]))
    target = tensor.data.reshape(-1).view(np.uint8)
    target[:] = raw[begin : begin + len(target)]
    found = ov.op.Constant(tensor).get_data(dtype=np.float32)
    return np.asarray(found, dtype=np.float32).reshape(stop - start, *shape[values._lead :])


def _convert(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    """Only f32 to f16 or bf16 loses anything: plugins fold the scales as the graph has them, rounded."""
    rows = values.rows(start, stop, node.input_value(0))
    if node.get_input_element_type(0) != ov.Type.f32:
        return rows
    kind = node.get_output_element_type(0)
    if kind == ov.Type.f16:
        return rows.astype(np.float16).astype(np.float32)
    return _to_bf16(rows) if kind == ov.Type.bf16 else rows


def _to_bf16(values: Float32) -> Float32:
    """The upper 16 bits, rounded as OpenVINO's ConstantFolding does: half is added only where the last bit kept is 1,
    so that even numbers are cut off (seen with 2026.4)."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + ((bits & np.uint32(0x10000)) >> 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def _elementwise(
    function: Callable[[Array, Array], Array],
) -> Callable[[ConstantValues, Any, int, int], Float32 | None]:
    def evaluate(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
        shape = sizes_of(node.get_output_shape(0))
        left, right = (values._operand(node.input_value(port), shape, start, stop) for port in (0, 1))
        return np.asarray(function(left, right), dtype=np.float32)

    return evaluate


def _reshape(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    """Rows of the result are consecutive elements, and lie in consecutive rows of what is reshaped."""
    source, target = sizes_of(node.input_value(0).get_shape()), sizes_of(node.get_output_shape(0))
    width, whole = values._split(target)[1], values._split(source)[1]
    first, last = start * width // whole, -(-stop * width // whole)
    flat = values.rows(first, last, node.input_value(0)).reshape(-1)
    return flat[start * width - first * whole : stop * width - first * whole].reshape(-1, *target[values._lead :])


def _transpose(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    order = node.input_value(1).get_node()
    if order.get_type_name() != "Constant":
        return None
    axes = [int(axis) for axis in order.data.reshape(-1)] or None
    source, shape = node.input_value(0), sizes_of(node.get_output_shape(0))
    whole = values._keep(node.output(0), lambda _: np.ascontiguousarray(values._all(source).transpose(axes)))
    return whole.reshape(values._split(shape)[0], *shape[values._lead :])[start:stop]


def _gather(values: ConstantValues, node: Any, start: int, stop: int) -> Float32 | None:
    """A look-up in a table of one axis."""
    table = node.input_value(0)
    if len(table.get_shape()) != 1:
        return None
    indices = values.rows(start, stop, node.input_value(1))
    looked_up: Float32 = values._all(table)[indices.astype(np.int64)]
    return looked_up


_EVALUATORS: dict[str, Callable[[ConstantValues, Any, int, int], Float32 | None]] = {
    "Constant": _constant,
    "Convert": _convert,
    "Multiply": _elementwise(np.multiply),
    "Subtract": _elementwise(np.subtract),
    "Add": _elementwise(np.add),
    "Divide": _elementwise(np.divide),
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Gather": _gather,
}


def _compiled(output: Any) -> Float32:
    """Any other operation, evaluated by OpenVINO as a model of its own."""
    model = ov.Model([ops.convert(output, ov.Type.f32).output(0)], [], "values")
    compiled = _core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0], dtype=np.float32)


@functools.cache
def _core() -> ov.Core:
    return ov.Core()
