"""f32 constants of a graph whose values lie in a file in 16 bits.

    Constant (f16, bf16) ─ Convert(f32), marked ─▸ consumers

The marked Convert stands for a Constant of f32: a weight is read, encoded and named as if it were one. What is left of
them when a model is saved can be written as what it stands for (`float_constants`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from openvino import opset13 as ops

from ov_weight_compression.ir_utils.file_mappings import FileMappings
from ov_weight_compression.ir_utils.layout import Layout
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight, Part, Sink
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.types import Array, sizes_of
from ov_weight_compression.ir_utils.weight_source import ConstantSource
from ov_weight_compression.ir_utils.worker_pool import Task

_MARK = "widened_constant"


def widened(constant: Any) -> Any:
    """The operation that stands for a 16-bit Constant as one of f32, called like it."""
    node = ops.convert(constant, "f32")
    node.set_friendly_name(f"{constant.get_friendly_name()}/as_f32")
    node.get_rt_info()[_MARK] = ""
    return node


def is_widened(node: Any) -> bool:
    """Whether an operation stands for a Constant of f32."""
    return bool(node.get_type_name() == "Convert") and _MARK in node.get_rt_info()


def stands_for_f32(constant: Any) -> bool:
    """Whether a Constant is what such an operation reads."""
    return any(is_widened(target.get_node()) for target in constant.output(0).get_target_inputs())


def float_constants(nodes: Iterable[Any], threads: int) -> None:
    """Put f32 constants in place of operations that stand for some; values are read while the model is saved."""
    pipeline, mappings = Pipeline(threads=threads), FileMappings()
    for node in nodes:
        if is_widened(node):
            names = node.output(0).get_names()
            stored = node.input_value(0).get_node()
            value = LazyWeight(pipeline, _Widened(stored, mappings)).constant("values")
            value.set_friendly_name(stored.get_friendly_name())
            node.output(0).replace(value.output(0))
            value.output(0).set_names(names)


class _Widened:
    """The values of a 16-bit Constant as f32. Implements `ir_utils.lazy_weight.Encoding`."""

    bulk, together = "values", None

    def __init__(self, constant: Any, mappings: FileMappings) -> None:
        self.name = str(constant.get_friendly_name())
        shape = sizes_of(constant.shape)
        self._source = ConstantSource(constant, Layout.of(shape, (len(shape) - 1,)), mappings, "f32")
        self.parts: Mapping[str, Part] = {"values": Part("f32", shape)}
        self.nbytes = self.parts["values"].nbytes

    @property
    def identity(self) -> Hashable | None:
        return self._source.identity

    def begin_into(
        self, sink: Sink, others: Sequence[tuple[Any, Sink]] = ()
    ) -> tuple[Sequence[Task], Callable[[], Sequence[dict[str, Array]]]]:
        def write() -> None:
            for slab, values in self._source.pieces():
                sink.write(4 * slab.start * self._source.layout.columns, values)

        return [write], lambda: [{}]
