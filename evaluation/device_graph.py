"""The graph that a device executes, as it tells itself: which type a weight has when a kernel reads it.

`compiled.get_runtime_model()` lists the device's own operations. Whatever depends on constants alone is computed once,
while the model is compiled; everything else is executed on every inference. So a weight is what passes from the first
part of the graph to the second:

    Const u4 ──────────────────────────────▸ FullyConnected     executed compressed, as u4
    Const u4 ─ Convert ─ Eltwise ─ Reshape ─▸ MatMul            expanded once, to what Reshape puts out
    Const f32 ─────────────────────────────▸ Gather             expanded before this graph was even made

An edge between the two parts that has as many elements as the weight is that weight. Layers are found by
`originalLayersNames`; operations that have no original (a layer that the device has split into several) belong to the
layer behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = ["Edge", "RuntimeGraph"]

_SOURCES = frozenset({"Input", "MemoryInput", "ReadValue", "Parameter"})


@dataclass(frozen=True)
class Edge:
    """A tensor that an executed operation reads from the constant part of the graph."""

    operation: str
    """The device's name for what reads it: FullyConnected, Gather, …"""
    type: str
    elements: int


class RuntimeGraph:
    """The executed graph of a compiled model.

    Args:
        compiled: an `ov.CompiledModel`. Raises what `get_runtime_model` does, where the device gives none.
        originals: the friendly names of the model's operations.
    """

    def __init__(self, compiled: Any, originals: Collection[str]) -> None:
        self._constant: dict[Any, bool] = {}
        self._of: dict[str, list[Any]] = {}
        self._anonymous: set[Any] = set()
        for node in compiled.get_runtime_model().get_ordered_ops():
            sources = [value.get_node() for value in node.input_values()]
            kind = _info(node, "layerType") or node.get_type_name()
            constant = all(self._constant[source] for source in sources) if sources else kind not in _SOURCES
            self._constant[node] = constant
            names = [name for name in _info(node, "originalLayersNames").split(",") if name in originals]
            for name in names:
                self._of.setdefault(name, []).append(node)
            if not names:
                self._anonymous.add(node)

    def edges(self, layer: str) -> Iterator[Edge]:
        """What the operations that a layer has become read from the constant part of the graph."""
        waiting = [node for node in self._of.get(layer, ()) if not self._constant[node]]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            for port in node.inputs():
                source = port.get_source_output().get_node()
                if self._constant[source]:
                    yield _edge(node, port)
                elif source in self._anonymous and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def weight_edge(self, layer: str, elements: int) -> Edge | None:
        """The edge through which a layer reads a weight of so many elements; None where there is not exactly one type
        of such edges."""
        found = [edge for edge in self.edges(layer) if edge.elements == elements]
        return found[0] if len({edge.type for edge in found}) == 1 else None


def _edge(node: Any, port: Any) -> Edge:
    shape = port.get_partial_shape()
    elements = prod(shape.to_shape()) if shape.is_static else -1
    return Edge(_info(node, "layerType") or node.get_type_name(), port.get_element_type().get_type_name(), elements)


def _info(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
