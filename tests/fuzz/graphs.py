"""Random graphs: every place that a weight can be in, in odd sizes, several times over and sharing constants.

`sketch(random)` draws one. Each piece is a function that takes the sketch, adds nodes and says in a line what it did;
what it drew can be read in `Sketch.lines`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from tests import models
from tests.fuzz.weights import SIZES, compressed_chain, name_of, shape_of, values

Array = np.ndarray[Any, np.dtype[Any]]
Feed = Callable[[np.random.Generator], Array]
_NUMPY = {"f32": np.float32, "f16": np.float16, "f64": np.float64}
_ELEMENTS = 6000
_RUNNING = re.compile(r"[A-Z][A-Za-z]+_\d+$")


@dataclass
class Sketch:
    """A graph while it is drawn."""

    random: np.random.Generator
    parameters: list[ov.Node] = field(default_factory=list)
    feeds: list[Feed] = field(default_factory=list)
    results: list[ov.Node] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    pool: list[ov.Node] = field(default_factory=list)
    """Float weights of two dimensions and more, f32 at their end, that another layer may read too."""
    streams: list[tuple[ov.Node, tuple[int, ...]]] = field(default_factory=list)
    """Ends `[…, size]` that a later piece may go on from, with the shapes that they have at run time."""

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def size(self, limit: int = 400) -> int:
        return int(self.random.choice([size for size in SIZES if size <= limit]))

    def input(self, shape: Sequence[int], scale: float = 1.0) -> ov.Node:
        """A Parameter of f32; some axes may be open."""
        shape = tuple(shape)
        declared = [-1 if self.chance(0.2) else size for size in shape]
        node = op.parameter(declared, np.float32, name=f"x{len(self.parameters)}")
        return self._feed(node, lambda random: (random.standard_normal(shape) * scale).astype(np.float32))

    def indices(self, shape: Sequence[int], stop: int) -> ov.Node:
        """A Parameter of integers in [0, stop)."""
        kind = self.pick(np.int32, np.int64)
        node = op.parameter(list(shape), kind, name=f"ids{len(self.parameters)}")
        return self._feed(node, lambda random: random.integers(0, max(1, stop), tuple(shape)).astype(kind))

    def flag(self) -> ov.Node:
        node = op.parameter([], np.bool_, name=f"flag{len(self.parameters)}")
        return self._feed(node, lambda random: np.array(random.random() < 0.5))

    def _feed(self, node: ov.Node, feed: Feed) -> ov.Node:
        node.output(0).get_tensor().set_names({node.get_friendly_name()})
        self.parameters.append(node)
        self.feeds.append(feed)
        return node

    def end(self, node: ov.Node) -> None:
        """A result of the model; its tensor has a name, as in most models."""
        if node.get_output_element_type(0) in (ov.Type.bf16, ov.Type.f64, ov.Type.f16) and self.chance(0.8):
            node = op.convert(node, "f32")
        if self.chance(0.8):
            node.output(0).get_tensor().add_names({f"out{len(self.results)}"})
        self.results.append(op.result(node))

    def constant(self, shape: Sequence[int], kind: str = "f32", usual: str = "weight") -> ov.Node:
        """A float Constant."""
        drawn, sort = values(self.random, shape, kind)
        with np.errstate(all="ignore"):
            if kind == "bf16":
                with np.errstate(all="ignore"):
                    node = op.constant(drawn.astype(np.float32), dtype=ov.Type.bf16)
            else:
                node = op.constant(drawn.astype(_NUMPY[kind]))
        name = name_of(self.random, usual)
        if name:
            node.set_friendly_name(name)
        self.lines.append(f"    constant {name[:40]!r} {kind}{list(shape)} {sort}")
        return node

    def kind(self) -> str:
        return str(self.pick("f32", "f32", "f32", "f16", "f16", "bf16", "f64"))

    def weight(self, shape: Sequence[int], arithmetic: str = "f32", usual: str = "weight") -> ov.Node:
        """A value of `shape` that comes from a Constant, in the type of the arithmetic."""
        shape = tuple(shape)
        if arithmetic == "f32" and len(shape) >= 2 and shape[-1] >= 1 and self.chance(0.1):
            node, told = compressed_chain(self.random, shape, name_of(self.random, usual))
            self.lines.append(f"    compressed {told} {list(shape)}")
            return node
        kind = self.kind() if arithmetic == "f32" else arithmetic
        way = self.pick(*["plain"] * 7, "reshape", "transpose", "squeeze", "unsqueeze", "two")
        node = self._behind(way, shape, kind, usual)
        if kind != arithmetic:
            node = op.convert(node, arithmetic)
        if arithmetic == "f32" and len(shape) >= 2:
            self.pool.append(node)
        return node

    def _behind(self, way: str, shape: tuple[int, ...], kind: str, usual: str) -> ov.Node:
        ints = lambda *numbers: op.constant(np.array(numbers, np.int64))  # noqa: E731
        if way == "two":
            node = self._behind("transpose", shape, kind, usual)
            return op.reshape(op.reshape(node, ints(-1), False), ints(*shape), False) if 0 not in shape else node
        if way == "plain" or not shape or 0 in shape:
            return self.constant(shape, kind, usual)
        if way == "transpose":
            order = [int(one) for one in self.random.permutation(len(shape))]
            stored = [0] * len(shape)
            for place, axis in enumerate(order):
                stored[axis] = shape[place]
            found = op.transpose(self.constant(stored, kind, usual), ints(*order))
        elif way == "squeeze":
            place = int(self.random.integers(len(shape) + 1))
            stored = [*shape[:place], 1, *shape[place:]]
            found = op.squeeze(self.constant(stored, kind, usual), ints(place))
        elif way == "unsqueeze" and 1 in shape:
            place = shape.index(1)
            found = op.unsqueeze(self.constant([*shape[:place], *shape[place + 1 :]], kind, usual), ints(place))
        else:
            stored = self.pick(
                [int(np.prod(shape))],
                [int(np.prod(shape[:-1])), shape[-1]],
                [1, *shape],
                [*shape[:-1], 2, shape[-1] // 2] if shape[-1] % 2 == 0 else [*shape, 1],
            )
            found = op.reshape(self.constant(stored, kind, usual), ints(*shape), False)
        self.lines.append(f"    behind {way} as {list(shape)}")
        return found

    def shared(self, minimum: int = 2) -> ov.Node | None:
        """A weight that is there already."""
        usable = [one for one in self.pool if len(one.get_output_shape(0)) >= minimum and 0 not in one.shape]
        return self.pick(*usable) if usable and self.chance(0.25) else None


def linear(s: Sketch) -> None:
    """A MatMul: the weight at either port, either transposition, ranks 1 to 4 on both sides."""
    weight = s.shared()
    flags = (s.chance(0.5), s.chance(0.5))
    port = 1 if s.chance(0.75) else 0
    arithmetic = "f32" if weight is not None or s.chance(0.9) else s.pick("f16", "bf16", "f64")
    rows = s.pick(1, 1, 2, 3, 5, 8)
    if weight is not None:
        own = tuple(weight.shape)
        batch = own[:-2]
        last_is_out = flags[port] if port == 0 else not flags[port]
        columns = own[-2] if last_is_out else own[-1]
        out = own[-1] if last_is_out else own[-2]
    else:
        batch = s.pick((), (), (), (), (1,), (2,), (3,), (1, 1), (2, 3), (1, 2), (2, 1))
        columns, out = shape_of(s.random, max(8, _ELEMENTS // max(1, int(np.prod(batch)))), None, None)
        if s.chance(0.02):
            columns, out = s.pick((0, out), (columns, 0))
    going_on = [one for one in s.streams if one[1][-1] == columns or s.chance(0.3)]
    stream = s.pick(*going_on) if going_on and s.chance(0.6) and arithmetic == "f32" and not batch else None
    if stream is not None and (weight is None or stream[1][-1] == columns):
        x, seen = stream
        columns, port, flags = seen[-1], 1, (False, flags[1])
        if weight is None:
            out = max(1, min(out, _ELEMENTS // max(1, columns)))
    else:
        rank = s.pick(1, 2, 2, 2, 3, 3, 4)
        lead = tuple(s.pick(size, size, 1) for size in batch)[-max(0, rank - 2) :] if rank > 2 else ()
        lead = (*[s.pick(1, 2) for _ in range(max(0, rank - 2 - len(lead)))], *lead)
        transposed = flags[1 - port]
        core = (rows, columns) if (port == 1) != transposed else (columns, rows)
        seen = (columns,) if rank == 1 else (*lead, *core)
        if 0 in seen and s.chance(0.5):
            seen = tuple(max(1, one) for one in seen) if columns else seen
        x = s.input(seen)
    if weight is None:
        last_is_out = flags[port] if port == 0 else not flags[port]
        core = (columns, out) if last_is_out else (out, columns)
        core = (columns,) if s.chance(0.03) and not batch else core
        weight = s.weight((*batch, *core), arithmetic)
    if arithmetic != "f32":
        x = op.convert(x, arithmetic)
    layer = op.matmul(x, weight, *flags) if port == 1 else op.matmul(weight, x, *flags)
    name = name_of(s.random, "layer")
    if name:
        layer.set_friendly_name(name)
    told = f"MatMul port {port} flags {flags} x{list(seen)} w{list(weight.shape)} {arithmetic}"
    s.lines.append(told)
    if s.chance(0.3) and arithmetic == "f32":
        layer = s.pick(op.relu, op.sigmoid, op.tanh)(layer)
    if arithmetic == "f32" and layer.get_output_partial_shape(0).rank.get_length() >= 2 and port == 1:
        measured = (*seen[:-1], out) if not flags[0] and not batch and len(seen) >= 2 else None
        if measured and len(weight.shape) == 2:
            s.streams.append((layer, measured))
    s.end(layer)


def gather(s: Sketch) -> None:
    """A Gather of a table, along the first axis or another, with indices of ranks 0 to 3, known or not."""
    table = s.shared(1)
    shape = tuple(table.shape) if table is not None else None
    if shape is None:
        shape = s.pick(
            shape_of(s.random, _ELEMENTS, None, None),
            shape_of(s.random, _ELEMENTS, None, None),
            shape_of(s.random, _ELEMENTS, None, s.pick(1, 2, 4), None),
            shape_of(s.random, _ELEMENTS, None),
        )
    axis = 0 if s.chance(0.75) else int(s.random.integers(-len(shape), len(shape)))
    table = table if table is not None else s.weight(shape, "f32", "table")
    wanted = [s.pick(1, 2, 3) for _ in range(s.pick(0, 1, 1, 2, 2, 3))]
    if s.chance(0.8):
        ids = s.indices(wanted, shape[axis])
    else:
        ids = op.constant(s.random.integers(0, shape[axis], wanted).astype(np.int32))
    found = op.gather(table, ids, op.constant(np.array(axis, np.int64)))
    s.lines.append(f"Gather axis {axis} of {list(shape)} indices {wanted}")
    if s.chance(0.3):
        found = op.relu(found)
    measured = (*shape[: axis % len(shape)], *wanted, *shape[axis % len(shape) + 1 :])
    if len(measured) >= 2 and s.chance(0.7):
        s.streams.append((found, measured))
    if len(shape) == 2 and axis == 0 and s.chance(0.3) and len(measured) >= 2:
        s.lines.append("  and the same table as a head")
        s.end(op.matmul(found, table, False, True))
    s.end(found)


def convolution(s: Sketch) -> None:
    """One of the four convolutions, in one to three dimensions."""
    form = s.pick("Convolution", "Convolution", "ConvolutionBackpropData", "GroupConvolution")
    form = s.pick(form, "GroupConvolutionBackpropData") if s.chance(0.2) else form
    dims = s.pick(1, 2, 2, 2, 3)
    kernel = [s.pick(1, 1, 2, 3) for _ in range(dims)]
    groups = s.pick(1, 2, 3) if form.startswith("Group") else 1
    inside, outside = s.pick(1, 3, 4, 8, 16), s.pick(1, 2, 5, 8, 16)
    pair = (inside, outside) if "Backprop" in form else (outside, inside)
    shape = (*((groups,) if form.startswith("Group") else ()), *pair, *kernel)
    x = s.input((1, groups * inside, *[s.pick(4, 5)] * dims))
    weight = s.weight(shape, "f32", "kernel")
    ones, zeros = [1] * dims, [0] * dims
    if form == "Convolution":
        layer = op.convolution(x, weight, ones, zeros, zeros, ones)
    elif form == "GroupConvolution":
        layer = op.group_convolution(x, weight, ones, zeros, zeros, ones)
    elif form == "ConvolutionBackpropData":
        layer = op.convolution_backprop_data(x, weight, ones, pads_begin=zeros, pads_end=zeros, dilations=ones)
    else:
        layer = op.group_convolution_backprop_data(x, weight, ones, pads_begin=zeros, pads_end=zeros, dilations=ones)
    s.lines.append(f"{form} {list(shape)}")
    s.end(layer)


def grouped(s: Sketch) -> None:
    """A GroupedMatMul of tokens with experts."""
    from openvino import opset17  # not in the oldest OpenVINO that is allowed

    experts, (out, columns) = s.pick(1, 2, 3), shape_of(s.random, 2000, None, None)
    tokens = s.pick(experts, experts + 3)
    x = s.input((tokens, columns))
    ends = np.sort(s.random.integers(0, tokens + 1, experts)).astype(np.int32)
    ends[-1] = tokens
    offsets = op.parameter([experts], np.int32, name=f"offsets{len(s.parameters)}")
    s._feed(offsets, lambda random: ends)
    s.end(opset17.grouped_matmul(x, s.weight((experts, out, columns), "f32", "experts"), offsets))
    s.lines.append(f"GroupedMatMul {experts} x {out} x {columns}")


def branch(s: Sketch) -> None:
    """An If with weights in its bodies, or with a constant handed in."""
    out, columns = shape_of(s.random, 2000, None, None)
    handed = s.chance(0.25)
    outer = s.constant((3, columns)) if handed else s.input((3, columns))
    bodies = []
    for _ in range(2):
        inner = op.parameter([3, columns] if s.chance(0.7) else [-1, columns], np.float32)
        turned = s.chance(0.5)
        weight = s.weight((out, columns) if turned else (columns, out))
        s.pool.pop() if s.pool and s.pool[-1] is weight else None
        end = op.result(op.matmul(inner, weight, False, turned))
        bodies.append((ov.Model([end], [inner]), inner, end))
    node = op.if_op(s.flag().output(0))
    node.set_then_body(bodies[0][0])
    node.set_else_body(bodies[1][0])
    node.set_input(outer.output(0), bodies[0][1], bodies[1][1])
    found = node.set_output(bodies[0][2], bodies[1][2])
    s.lines.append(f"If {out} x {columns}, {'a constant handed in' if handed else 'own weights'}")
    s.end(op.relu(found))


def loop(s: Sketch) -> None:
    """A Loop or a TensorIterator around a MatMul; the weight inside, or outside and invariant."""
    size = s.size(72)
    if s.chance(0.4):
        x = op.parameter([3, size], np.float32, name=f"x{len(s.parameters)}")
        s._feed(x, lambda random: random.standard_normal((3, size)).astype(np.float32))
        step = op.parameter([1, size], np.float32)
        weight = s.weight((s.size(40), size))
        s.pool.pop() if s.pool and s.pool[-1] is weight else None
        result = op.result(op.matmul(step, weight, False, True))
        node = op.tensor_iterator()
        node.set_body(ov.Model([result], [step], "body"))
        node.set_sliced_input(step, x.output(0), 0, 1, 1, -1, 0)
        s.end(op.relu(node.get_concatenated_slices(result.output(0), 0, 1, 1, -1, 0)))
        s.lines.append(f"TensorIterator {size}")
        return
    x = op.parameter([2, size], np.float32, name=f"x{len(s.parameters)}")
    s._feed(x, lambda random: random.standard_normal((2, size)).astype(np.float32))
    state, outer = op.parameter([2, size], np.float32), s.chance(0.4)
    weight = s.weight((size, size))
    if not outer and s.pool and s.pool[-1] is weight:
        s.pool.pop()
    entered = op.parameter([size, size], np.float32)
    layer = op.tanh(op.matmul(state, entered if outer else weight, False, s.chance(0.5)))
    go_on = op.constant(np.array(True))
    results = [op.result(go_on), op.result(layer)]
    body = ov.Model(results, [state, entered] if outer else [state], "body")
    node = op.loop(op.constant(np.int64(2)), op.constant(np.array(True)))
    node.set_function(body)
    node.set_special_body_ports([-1, 0])
    node.set_merged_input(state, x.output(0), results[1].output(0))
    if outer:
        node.set_invariant_input(entered, weight.output(0))
    s.end(op.relu(node.get_iter_value(results[1].output(0), -1)))
    s.lines.append(f"Loop {size}, the weight {'outside' if outer else 'inside'}")


def block(s: Sketch) -> None:
    """A norm, and an MLP or attention behind it, as a transformer has them: what AWQ folds."""
    hidden, inner = s.pick(16, 32, 64), s.pick(24, 48, 64, 96)
    if s.streams and s.chance(0.4):
        usable = [one for one in s.streams if len(one[1]) == 3 and one[1][-1] <= 96]
        x, shape = s.pick(*usable) if usable else (s.input((1, 4, hidden)), (1, 4, hidden))
        hidden = shape[-1]
    else:
        x, shape = s.input((1, 4, hidden)), (1, 4, hidden)
    norm = s.pick(models.rms_norm, models.layer_norm)
    normed = norm(x, hidden, name_of(s.random, "norm") or "norm")
    dense = lambda value, out, size, name: op.matmul(value, s.weight((out, size), "f32", name), False, True)  # noqa: E731
    if s.chance(0.5):
        gate, up = dense(normed, inner, hidden, "gate"), dense(normed, inner, hidden, "up")
        act = s.pick(op.swish(gate), op.multiply(gate, op.sigmoid(gate)), op.relu(gate), op.gelu(gate, "erf"))
        found = dense(op.multiply(act, up) if s.chance(0.8) else act, hidden, inner, "down")
        told = f"MLP {hidden} {inner}"
    else:
        heads = s.pick(1, 2, 4)
        size = s.pick(8, 16)
        q, k, v = (models.heads_of(dense(normed, heads * size, hidden, name), heads, size) for name in "qkv")
        mixed = op.scaled_dot_product_attention(q, k, v)
        joined = op.reshape(
            op.transpose(mixed, op.constant(np.array([0, 2, 1, 3]))), np.array([0, 0, heads * size]), True
        )
        found = dense(joined, hidden, heads * size, "o")
        told = f"attention {hidden}, {heads} heads of {size}"
    s.lines.append(f"{norm.__name__} and {told}")
    found = op.add(x, found) if s.chance(0.8) else found
    s.streams.append((found, shape))
    s.end(found)


def constants_only(s: Sketch) -> None:
    """A product of constants, behind this and that: nothing of it depends on an input."""
    rows, columns, out = s.pick(2, 5, 11), s.size(64), s.size(48)
    left = s.weight(s.pick((rows, columns), (columns, rows), (1, rows, columns)))
    turned = tuple(left.shape) == (columns, rows) and rows != columns
    right = s.weight((67, columns) if s.chance(0.5) else (out, columns))
    if right.shape[0] == 67:
        right = op.gather(right, op.constant(np.array([3, 5, 8], np.int32)), op.constant(np.int64(0)))
    product = op.matmul(left, right, turned, True)
    x = s.input((1, 1))
    s.lines.append(f"MatMul of constants {list(left.shape)} and {list(right.shape)}, {turned}")
    s.end(op.add(product, x))


def other_uses(s: Sketch) -> None:
    """A constant that a layer reads, and something else too."""
    rows, columns = shape_of(s.random, 3000, None, None)
    weight = s.weight((rows, columns))
    use = s.pick("Add", "Result", "Multiply", "Softmax", "Slice", "ShapeOf", "second MatMul", "Concat")
    x = s.input((2, columns))
    s.end(op.matmul(x, weight, False, True))
    if use == "Add":
        s.end(op.add(weight, s.input((1, columns))))
    elif use == "Result":
        s.results.append(op.result(weight))
    elif use == "Multiply":
        s.end(op.multiply(weight, s.input((1, 1))))
    elif use == "Softmax":
        s.end(op.add(op.softmax(weight, -1), s.input((1, 1))))
    elif use == "Slice":
        ints = [op.constant(np.array([number], np.int64)) for number in (0, max(1, rows // 2), 1, 0)]
        s.end(op.matmul(x, op.slice(weight, *ints), False, True))
    elif use == "ShapeOf":
        s.end(op.shape_of(weight))
    elif use == "Concat":
        s.end(op.concat([weight, s.input((1, columns))], 0))
    else:
        s.end(op.matmul(s.input((rows, 3)), weight, True, False))
    s.lines.append(f"weight {rows} x {columns}, read by {use} too")


def left_alone(s: Sketch) -> None:
    """What looks like a weight and is none, or what is not supported: recurrent layers, rotary angles, biases."""
    which = s.pick("LSTM", "rotary", "bias", "normalize")
    if which == "LSTM":
        size = s.pick(4, 8, 16)
        x = s.input((1, 4, size))
        zeros = op.constant(np.zeros((1, 1, size), np.float32))
        weights = [s.constant((1, 4 * size, size)), s.constant((1, 4 * size, size)), s.constant((1, 4 * size))]
        layer = op.lstm_sequence(x, zeros, zeros, op.constant(np.array([4], np.int32)), *weights, size, "forward")
        s.end(op.relu(layer.output(0)))
    elif which == "rotary":
        n = s.pick(8, 32, 64)
        layer = op.matmul(s.constant((1, n, 1)), s.input((1, 1, 5)), False, False)
        s.end(op.cos(op.transpose(layer, op.constant(np.array([0, 2, 1])))))
    elif which == "bias":
        size = s.size()
        s.end(op.add(s.input((2, size)), s.constant((1, size))))
    else:
        size = s.size(64)
        s.end(
            op.matmul(
                op.normalize_l2(s.input((2, size)), op.constant(np.array([1])), 1e-6, "add"),
                s.weight((size, 7)),
                False,
                False,
            )
        )
    s.lines.append(which)


PIECES: tuple[tuple[Callable[[Sketch], None], int], ...] = (
    (linear, 42),
    (gather, 12),
    (convolution, 7),
    (grouped, 3),
    (branch, 4),
    (loop, 4),
    (block, 10),
    (constants_only, 4),
    (other_uses, 6),
    (left_alone, 4),
)


def sketch(random: np.random.Generator) -> tuple[ov.Model, Sketch]:
    """A model of one to four pieces."""
    drawn = Sketch(random)
    functions, weights = zip(*PIECES, strict=True)
    shares = np.array(weights) / sum(weights)
    for _ in range(drawn.pick(1, 1, 2, 2, 3, 4)):
        functions[int(random.choice(len(functions), p=shares))](drawn)
    model = ov.Model(drawn.results, drawn.parameters, "sketch")
    for number, node in enumerate(model.get_ordered_ops()):
        if _RUNNING.match(node.get_friendly_name()):  # the numbers of what nobody named depend on all models before
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    return model, drawn
