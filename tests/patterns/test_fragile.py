"""Routers and gates are found by what they feed, and nothing else is."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as op

from ov_weight_compression.patterns.find import GATE, ROUTER, fragile_layers
from ov_weight_compression.patterns.graphs import graphs_of

RNG = np.random.default_rng(0)


def linear(name: str, x: ov.Output, channels: int) -> ov.Node:
    weight = op.constant(RNG.normal(size=(channels, x.get_partial_shape()[-1].get_length())).astype(np.float32))
    node = op.matmul(x, weight, False, True)
    node.set_friendly_name(name)
    return node


def found(*results: ov.Node, inputs: list[ov.Node]) -> dict[str, str]:
    return fragile_in(ov.Model([op.result(node) for node in results], inputs))


def fragile_in(model: ov.Model) -> dict[str, str]:
    return {
        node.get_friendly_name(): what for graph in graphs_of(model) for node, what in fragile_layers(graph).items()
    }


def tokens() -> ov.Node:
    return op.parameter([1, 7, 64], np.float32)


def topk(scores: ov.Node) -> ov.Node:
    return op.topk(scores, op.constant(2), -1, "max", "value")


def test_a_router_is_what_chooses_by_topk() -> None:
    x = tokens()
    hidden = linear("before", x, 64)
    chosen = topk(op.softmax(linear("gate", hidden.output(0), 8), -1))
    used = op.one_hot(chosen.output(1), op.constant(8), op.constant(1.0), op.constant(0.0), -1)
    assert found(used, linear("expert", hidden.output(0), 64), inputs=[x]) == {"gate": ROUTER}


def test_scores_in_groups_with_a_correction_are_a_routers_too() -> None:
    """DeepSeek's: sigmoid, a bias, the best groups, the best experts of those."""
    x = tokens()
    scores = op.sigmoid(linear("gate", x.output(0), 8))
    corrected = op.add(scores, op.constant(RNG.normal(size=8).astype(np.float32)))
    grouped = op.reshape(corrected, op.constant([1, 7, 4, 2]), False)
    best = topk(op.reduce_sum(op.topk(grouped, op.constant(2), -1, "max", "value").output(0), op.constant([-1])))
    mask = op.scatter_elements_update(
        op.constant(np.zeros((1, 7, 4), np.float32)),
        best.output(1),
        op.constant(np.ones((1, 7, 2), np.float32)),
        op.constant(-1),
    )
    wide = op.reshape(
        op.broadcast(op.unsqueeze(mask, op.constant([-1])), op.constant([1, 7, 4, 2])), op.constant([1, 7, 8]), False
    )
    chosen = topk(op.select(op.greater(wide, op.constant(np.float32(0))), corrected, op.constant(np.float32(-1))))
    weights = op.gather_elements(scores, op.convert(chosen.output(1), "i64"), 2)
    assert found(weights, inputs=[x]) == {"gate": ROUTER}


def test_a_choice_of_tokens_at_the_end_is_no_router() -> None:
    x = tokens()
    best = topk(linear("head", x.output(0), 50))
    assert found(op.convert(best.output(1), "i64"), best.output(0).get_node(), inputs=[x]) == {}


def test_the_gate_of_a_selective_scan_and_its_low_rank_factor() -> None:
    """Mamba: exp(cumsum(softplus(dt) · A)); what it is multiplied with, B and x, decides no decay."""
    x = tokens()
    inner = linear("in_proj", x.output(0), 128)
    mixed = op.swish(op.slice(inner, op.constant([0]), op.constant([64]), op.constant([1]), op.constant([-1])))
    split = op.variadic_split(linear("x_proj", mixed.output(0), 12), op.constant(-1), op.constant([4, 8]))
    dt = op.softplus(op.add(linear("dt_proj", split.output(0), 64), op.constant(np.ones(64, np.float32))))
    decay = op.exp(op.cum_sum(op.multiply(dt, op.constant(np.full(64, -1, np.float32))), op.constant(1)))
    state = op.cum_sum(op.multiply(op.multiply(dt, mixed), decay), op.constant(1))
    assert found(linear("out_proj", state.output(0), 64), inputs=[x]) == {"dt_proj": GATE, "x_proj": GATE}


def looped(x: ov.Node, gates: list[ov.Node], inside: bool) -> ov.Node:
    """A delta rule's loop: the state times a decay, plus what is written, for each position."""
    value = linear("in_proj_v", x.output(0), 16)
    state, step, gate = (op.parameter([1, 1, 16], np.float32) for _ in range(3))
    decay = op.exp(op.negative(op.softplus(gate))) if inside else gate
    new = op.add(op.multiply(state, decay), step)
    body = ov.Model([op.result(new), op.result(op.constant(True))], [state, step, gate])
    loop = op.loop(op.constant(7), op.constant(True))
    loop.set_function(body)
    loop.set_special_body_ports([-1, 1])
    loop.set_merged_input(state, op.constant(np.zeros((1, 1, 16), np.float32)).output(0), new.output(0))
    loop.set_sliced_input(step, value.output(0), 0, 1, 1, -1, 1)
    loop.set_sliced_input(gate, gates[0].output(0), 0, 1, 1, -1, 1)
    loop.get_iter_value(new.output(0), -1)
    return loop


def test_gates_of_a_loop_squashed_before_it_or_in_it() -> None:
    for inside in (False, True):
        x = tokens()
        raw = linear("in_proj_a", x.output(0), 16)
        gate = raw if inside else op.exp(op.negative(op.softplus(raw)))
        loop = looped(x, [gate], inside)
        assert found(linear("out_proj", loop.output(0), 64), inputs=[x]) == {"in_proj_a": GATE}


def test_gates_in_the_body_of_a_loop() -> None:
    """Where each iteration computes its own decay."""
    x = tokens()
    state, step = op.parameter([1, 1, 64], np.float32), op.parameter([1, 1, 64], np.float32)
    decay = op.sigmoid(linear("forget", step.output(0), 64))
    new = op.add(op.multiply(state, decay), linear("value", step.output(0), 64))
    loop = op.loop(op.constant(7), op.constant(True))
    loop.set_function(ov.Model([op.result(new), op.result(op.constant(True))], [state, step]))
    loop.set_special_body_ports([-1, 1])
    loop.set_merged_input(state, op.constant(np.zeros((1, 1, 64), np.float32)).output(0), new.output(0))
    loop.set_sliced_input(step, x.output(0), 0, 1, 1, -1, 1)
    loop.get_iter_value(new.output(0), -1)
    assert found(loop, inputs=[x]) == {"forget": GATE}


def test_one_step_of_a_scan_with_the_state_in_a_variable() -> None:
    """What a model for one token at a time does: state · exp(dt · A) + dt · B · x."""
    x = op.parameter([1, 1, 64], np.float32)
    dt = op.softplus(linear("dt_proj", x.output(0), 64))
    shape = ov.PartialShape([1, 1, 64])
    before = op.read_value(op.constant(np.zeros((1, 1, 64), np.float32)), "state", ov.Type.f32, shape)
    after = op.add(
        op.multiply(op.unsqueeze(before, op.constant([0])), op.exp(op.multiply(dt, op.constant(np.float32(-1))))),
        op.multiply(dt, linear("x_proj", x.output(0), 64)),
    )
    kept = op.assign(op.squeeze(after, op.constant([0])), "state")
    model = ov.Model([op.result(linear("out_proj", after.output(0), 64))], [kept], [x])
    assert fragile_in(model) == {"dt_proj": GATE}


def test_the_decay_of_a_loop_that_was_unrolled() -> None:
    x = tokens()
    dt = op.softplus(op.add(linear("dt_proj", x.output(0), 64), op.constant(np.ones(64, np.float32))))
    decay = op.exp(op.multiply(dt, op.constant(np.full(64, -1, np.float32))))
    value, state = linear("value", x.output(0), 64), None
    for place in range(3):
        kept, new = (op.gather(one, op.constant(place), op.constant(1)) for one in (decay, value))
        state = new if state is None else op.add(op.multiply(kept, state), new)
    assert found(linear("out_proj", op.unsqueeze(state, op.constant([0])).output(0), 64), inputs=[x]) == {
        "dt_proj": GATE
    }


def test_attention_and_its_mask_have_no_gates() -> None:
    x, mask = tokens(), op.parameter([1, 7], np.int64)
    query, key = linear("q", x.output(0), 64), linear("k", x.output(0), 64)
    position = op.convert(op.cum_sum(mask, op.constant(-1)), np.float32)
    scores = op.add(op.matmul(query, key, False, True), op.unsqueeze(position, op.constant([1])))
    largest = op.reduce_max(scores, op.constant([-1]), True)  # a softmax in parts
    parts = op.exp(op.subtract(scores, largest))
    share = op.divide(parts, op.reduce_sum(parts, op.constant([-1]), True))
    mixed = op.matmul(op.add(share, op.softmax(scores, -1)), op.swish(linear("v", x.output(0), 64)), False, False)
    assert found(linear("o", mixed.output(0), 64), inputs=[x, mask]) == {}
