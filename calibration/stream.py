"""One way through a model in bounded memory: the tensors at the front, and how to move it on.

The front is a place in `Graph.order`; the store holds what is made before it and read after it, for every window. To
advance, the next operations are cut out, compiled, run on every window, and forgotten. A piece ends where its weights
would exceed the limit, so that no more than one piece's weights are compiled at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from ov_weight_compression.calibration.graph import Graph, TensorKey
from ov_weight_compression.calibration.piece import Piece, run_piece
from ov_weight_compression.calibration.store import Store

__all__ = ["Stream", "feed", "split"]

Receive = Callable[[int, TensorKey, NDArray[Any]], None]


class Stream:
    """A prefix of the model that has run, with some of its weights replaced."""

    def __init__(
        self,
        graph: Graph,
        store: Store,
        windows: int,
        weight_limit: int,
        tick: Callable[[int], None] = lambda steps: None,
    ) -> None:
        self._graph = graph
        self._tick = tick
        self._limit = weight_limit
        self.store = store
        self.windows = windows
        self._replaced: dict[str, ov.Node] = {}
        self.changed = False
        """Whether any weight has ever been replaced."""

    def replace(self, name: str, values: NDArray[Any]) -> None:
        """From here on the constant of weight `name` is `values`, in the constant's own shape, f32 or f16."""
        constant = self._graph.nodes[self._graph.weight_nodes[name]]
        if tuple(values.shape) != tuple(constant.get_output_shape(0)):
            raise ValueError(f"weight '{name}': {values.shape} in place of {constant.get_output_shape(0)}")
        self._replaced[name] = ops.constant(np.ascontiguousarray(values))
        self.changed = True

    def advance(
        self,
        begin: int,
        end: int,
        watched: Mapping[TensorKey, Receive | None],
        forced: Sequence[TensorKey] = (),
    ) -> None:
        """Run the operations `[begin, end)` of the order on every window.

        What later operations read is kept in the store. The `watched` tensors are handed to their function, or are
        kept as well where it is None. The `forced` ones are not computed but taken from the store.
        """
        for first, last in split(self._graph, begin, end, self._limit):
            made = {
                (index, port)
                for index in self._graph.order[first:last]
                for port in range(self._graph.nodes[index].get_output_size())
            }
            kept = set(self._graph.outputs_of(first, last)) - set(forced)
            kept |= {key for key, receive in watched.items() if receive is None} & made

            def take(window: int, key: TensorKey, array: NDArray[Any], kept: set[TensorKey] = kept) -> None:
                if key in kept:
                    self.store.put(key, window, array)
                receive = watched.get(key)
                if receive is not None:
                    receive(window, key, array)

            piece = Piece(
                self._graph,
                first,
                last,
                outputs=tuple(sorted(kept | (made & set(watched)))),
                forced=tuple(key for key in forced if key in made),
                replaced=self._in_use(first, last),
            )
            run_piece(piece, self.store, self.windows, take, self._tick)
            self.forget(last, watched, since=begin)

    def forget(self, front: int, kept: Container[TensorKey], since: int | None = None) -> None:
        """Drop tensors that nothing at or after the front reads, and replaced weights likewise.

        Only tensors made at place `since` or later, where it is given: another stream may still stand there.
        """
        for key in list(self.store):
            done = self._graph.last_use.get(key, -1) < front and key not in kept
            if done and (since is None or self._graph.place.get(key[0], -1) >= since):
                self.store.drop(key)
        ahead = {name for place, names in self._graph.layers.items() if place >= front for name in names}
        self._replaced = {name: node for name, node in self._replaced.items() if name in ahead}

    def _in_use(self, begin: int, end: int) -> dict[str, ov.Node]:
        """The replaced weights that operations in `[begin, end)` read."""
        names = {name for place in range(begin, end) for name in self._graph.layers.get(place, ())}
        return {name: node for name, node in self._replaced.items() if name in names}


def feed(graph: Graph, store: Store, inputs: Iterable[Mapping[str, NDArray[Any]]]) -> int:
    """Put the model inputs of every window into the store; returns the number of windows."""
    count = 0
    for window in inputs:
        for name, array in window.items():
            if name in graph.parameters:
                store.put(graph.parameters[name], count, array)
        count += 1
    return count


def split(graph: Graph, begin: int, end: int, limit: int) -> list[tuple[int, int]]:
    """Cut `[begin, end)` so that the constants of no piece exceed `limit` bytes (one operation's always fit)."""
    pieces: list[tuple[int, int]] = []
    first = begin
    held: dict[int, int] = {}
    for place in range(begin, end):
        wanted = dict(graph.loads.get(place, ()))
        if held and wanted and sum({**held, **wanted}.values()) > limit:
            pieces.append((first, place))
            first, held = place, {}
        held.update(wanted)
    if first < end:
        pieces.append((first, end))
    return pieces
