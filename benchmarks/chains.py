"""Reading any compressed IR's weights, whoever wrote it: what stands in front of each consumer, and its f32 values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as op
from numpy.typing import NDArray

CONSUMERS = {
    "MatMul",
    "Gather",
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "GroupedMatMul",
}
SMALLEST = 1024
Array = NDArray[Any]
FLOATS = ("f32", "f16", "bf16", "f64")


@dataclass(frozen=True)
class WeightInput:
    """The output that feeds a consumer's weight port, computed from constants alone."""

    model: ov.Model
    output: ov.Output
    constants: tuple[ov.Node, ...]
    turned: bool = False
    """The consumer, a MatMul, transposes it: one tool may leave to it what another has written as a node."""

    @property
    def stored(self) -> str:
        """Storage of the largest constant, its group along the reduced axis, and the other parts: ``u4 g64 f16 u4``.

        The types of the scale, zero point and table follow in graph order, without scalars' numbers.
        """
        codes = max(self.constants, key=lambda node: _size(node))
        kind = codes.get_element_type().to_string()
        if kind in FLOATS:
            return "float"
        others = [node for node in self.constants if node is not codes and _is_part(node)]
        scales = [node for node in others if node.get_element_type().to_string() in (*FLOATS, "f8e8m0", "f8e4m3")]
        size = _size(codes)
        rows = max((_size(node) for node in scales), default=1)
        types = sorted(node.get_element_type().to_string() for node in others)
        return f"{kind} g{size // rows} {' '.join(types)}".strip()

    def values(self) -> NDArray[np.float32]:
        """What the consumer multiplies with: the stored parts put together in f32.

        So does a device that executes the weight compressed, whatever type the chain's nodes name. Folding a chain of
        f16 nodes rounds each result to f16 as well, which adds noise of 1e-4 of the error and belongs to neither tool.
        """
        return np.asarray(evaluate(self.output.get_node()), np.float32)

    def multiplied(self) -> NDArray[np.float32]:
        """The values as they are multiplied, the consumer's own transpose done: the same however a tool writes it."""
        found = self.values()
        return found.swapaxes(-1, -2) if self.turned and found.ndim > 1 else found


ARITHMETIC: dict[str, Callable[..., Array]] = {
    "Convert": lambda x: x,
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Add": np.add,
    "Divide": np.divide,
    "Reshape": lambda x, shape: x.reshape(shape.astype(np.int64)),
    "Transpose": lambda x, order: x.transpose(order.astype(np.int64)),
    "Unsqueeze": lambda x, axes: np.expand_dims(x, tuple(axes.astype(np.int64).ravel())),
    "Gather": lambda x, indices, axis: np.take(x, indices.astype(np.int64), int(axis)),
}


def evaluate(node: ov.Node) -> Array:
    """The value of a node that constants alone determine, in f32; types narrower than f32 do not round it.

    A kind of node that is not in ``ARITHMETIC`` is left to OpenVINO.
    """
    kind = node.get_type_name()
    if kind == "Reshape" and node.get_attributes()["special_zero"]:
        return evaluate(node.input_value(0).get_node()).reshape(tuple(node.get_output_shape(0)))
    if kind in ARITHMETIC:
        return np.asarray(ARITHMETIC[kind](*(evaluate(source.get_node()) for source in node.input_values())))
    part = ov.Model([op.result(op.convert(node, "f32"))], [])
    compiled = ov.Core().compile_model(part, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled([])[0], np.float32)


def weights_of(path: Path) -> dict[str, WeightInput]:
    """Every weight of an IR by ``consumer's name:port``; a constant with several consumers under the first alone."""
    model = ov.Core().read_model(path)
    behind: dict[str, tuple[ov.Node, ...]] = {}  # of each node that constants alone determine: those constants
    found: dict[str, WeightInput] = {}
    seen: set[tuple[str, ...]] = set()
    for node in model.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        known = [behind.get(source.get_node().get_friendly_name()) for source in sources]
        if node.get_type_name() == "Constant":
            behind[node.get_friendly_name()] = (node,)
        elif known and all(each is not None for each in known):
            behind[node.get_friendly_name()] = tuple(leaf for each in known for leaf in each or ())
        if node.get_type_name() not in CONSUMERS or node.get_friendly_name() in behind:
            continue  # a Gather from a codebook is part of a chain, not a consumer
        for port, (source, constants) in enumerate(zip(sources, known, strict=True)):
            key = tuple(each.get_friendly_name() for each in constants or () if _counts(each))
            if key and key not in seen:
                seen.add(key)
                name = f"{node.get_friendly_name()}:{port}"
                found[name] = WeightInput(model, source, constants or (), _turned(node, port))
    return found


def _turned(node: ov.Node, port: int) -> bool:
    return node.get_type_name() == "MatMul" and bool(node.get_attributes()["transpose_b" if port else "transpose_a"])


def _counts(node: ov.Node) -> bool:
    """A constant that is worth compressing, or codes of one."""
    return _is_part(node) and _size(node) >= SMALLEST


def _is_part(node: ov.Node) -> bool:
    """Not the shape of a Reshape or the axis of a Gather."""
    return node.get_element_type().to_string() not in ("i32", "i64")


def _size(node: ov.Node) -> int:
    return math.prod(node.get_output_shape(0))
