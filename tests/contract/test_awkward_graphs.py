"""Graphs that OpenVINO takes as floats and that it refused, or misread, once compressed: what is produced for them runs
and gives what its constants say, in the shape that the model promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.passes import WeightCompression, apply_weight_decompression, save_model
from ov_weight_compression.patterns import find_compressed
from tests.running import EXACT

MODES = {
    "int8_asym": {},
    "int4_sym": {"mode": "int4_sym", "all_layers": True},
    "int4_asym, 32": {"mode": "int4_asym", "group_size": 32, "all_layers": True},
    "nf4, channel": {"mode": "nf4", "group_size": -1, "all_layers": True},
    "mxfp4": {"mode": "mxfp4", "all_layers": True},
    "mxfp8_e4m3": {"mode": "mxfp8_e4m3", "all_layers": True},
}


def constant(*shape: int) -> ov.Node:
    return op.constant(np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32))


def layer(x: list[int], weight: ov.Node, turned: bool = False, first: bool = False) -> ov.Model:
    given = op.parameter(x, np.float32)
    product = op.matmul(weight, given, turned, False) if first else op.matmul(given, weight, False, turned)
    return ov.Model([op.result(product)], [given])


def behind(order: list[int], *shape: int) -> ov.Node:
    return op.transpose(constant(*shape), op.constant(np.array(order)))


def unsqueezed(*shape: int) -> ov.Node:
    return op.unsqueeze(constant(*shape), op.constant(np.array([0])))


def read_twice() -> ov.Model:
    x, weight = op.parameter([4, 64], np.float32), constant(48, 64)
    wide = op.unsqueeze(weight, op.constant(np.array([0])))
    return ov.Model([op.matmul(x, weight, False, True), op.matmul(x, wide, False, True)], [x])


def also_a_result() -> ov.Model:
    x, weight = op.parameter([4, 64], np.float32), behind([1, 0], 64, 48)
    return ov.Model([op.matmul(x, weight, False, True), op.result(weight)], [x])


def product_of_constants(gathered: bool) -> ov.Model:
    x = op.parameter([1, 1], np.float32)
    rows = op.constant(np.array([3, 5, 8]))
    right = (
        op.gather(constant(67, 32), rows, op.constant(0))
        if gathered
        else op.squeeze(constant(1, 48, 32), op.constant([0]))
    )
    return ov.Model([op.add(op.matmul(constant(32, 11), right, True, True), x)], [x])


def sum_of_constants() -> ov.Model:
    x = op.parameter([1, 1], np.float32)
    left = op.add(constant(1, 64), constant(5, 64))
    return ov.Model([op.add(op.matmul(left, constant(48, 64), False, True), x)], [x])


def branch_of_a_constant() -> ov.Model:
    flag, outer, bodies = op.parameter([], np.bool_), constant(3, 32), []
    for rows in (4, 5):
        inner = op.parameter([-1, 32], np.float32)
        end = op.result(op.reduce_sum(op.matmul(inner, constant(rows, 32), False, True), op.constant([1])))
        bodies.append((ov.Model([end], [inner]), inner, end))
    choice = op.if_op(flag)
    choice.set_then_body(bodies[0][0])
    choice.set_else_body(bodies[1][0])
    choice.set_input(outer.output(0), bodies[0][1], bodies[1][1])
    return ov.Model([op.result(choice.set_output(bodies[0][2], bodies[1][2]))], [flag])


GRAPHS: dict[str, Callable[[], ov.Model]] = {
    "a leading one more than the activation has": lambda: layer([4, 64], constant(1, 64, 48)),
    "the same, other way round": lambda: layer([4, 64], constant(1, 48, 64), turned=True),
    "two leading ones": lambda: layer([2, 32], constant(1, 1, 32, 64)),
    "two leading ones and as many in the activation": lambda: layer([2, 3, 4, 32], constant(1, 1, 32, 64)),
    "three leading ones": lambda: layer([2, 3, 64], constant(1, 1, 1, 48, 64), turned=True),
    "leading ones and one output channel": lambda: layer([4, 64], constant(1, 1, 64, 1)),
    "a leading one by Unsqueeze": lambda: layer([4, 64], unsqueezed(48, 64), turned=True),
    "a leading one, weight first": lambda: layer([64, 4], unsqueezed(48, 64), first=True),
    "one output channel": lambda: layer([-1, 64], constant(64, 1)),
    "one output channel, turned": lambda: layer([-1, 64], constant(1, 64), turned=True),
    "side by side behind a Transpose": lambda: layer([2, 4, 64], behind([1, 2, 0], 64, 2, 48), turned=True),
    "side by side behind another": lambda: layer([2, 4, 64], behind([2, 0, 1], 48, 64, 2), turned=True),
    "one group behind a Transpose": lambda: layer([3, 32], behind([1, 0], 32, 48), turned=True),
    "one group behind a Transpose, odd": lambda: layer([3, 64], behind([1, 0], 64, 33), turned=True),
    "read in two shapes": read_twice,
    "an output too": also_a_result,
    "a product of constants, one picked": lambda: product_of_constants(True),
    "a product of constants, one squeezed": lambda: product_of_constants(False),
    "a sum of constants": sum_of_constants,
    "a branch that is given a constant": branch_of_a_constant,
}


def outputs(model: ov.Model | Path) -> list[np.ndarray]:
    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    random = np.random.default_rng(3)
    feed = []
    for port in compiled.inputs:
        shape = [size.get_length() if size.is_static else 5 for size in port.partial_shape]
        feed.append(np.array(True) if not shape else random.standard_normal(shape).astype(np.float32))
    return [np.array(value) for value in compiled(feed).values()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_produced_is_what_is_computed(name: str, mode: str, tmp_path: Path) -> None:
    model = GRAPHS[name]()
    wanted = [value.shape for value in outputs(model.clone())]
    WeightCompression(**MODES[mode]).run_on_model(model)
    save_model(model, tmp_path / "model.xml")
    exact = outputs(apply_weight_decompression(ov.Core().read_model(tmp_path / "model.xml")))
    for found in (outputs(model.clone()), outputs(tmp_path / "model.xml")):
        assert [value.shape for value in found] == wanted
        for value, right in zip(found, exact, strict=True):
            np.testing.assert_allclose(value, right, atol=2e-3 * np.abs(right).max())
    again = WeightCompression(**MODES[mode])
    assert not again.run_on_model(model), "a second run changed the model"


def test_layers_of_constants_are_left_alone_with_a_reason() -> None:
    compression = WeightCompression()
    compression.run_on_model(product_of_constants(True))
    assert compression.report.rows == ()
    reasons = {skip.reason.partition("' ")[2] for skip in compression.report.skips}
    assert reasons == {"reads constants alone: it is computed once, when the model is compiled"}


def test_a_branch_that_is_given_what_varies_is_compressed() -> None:
    model = branch_of_a_constant()
    (branch,) = [node for node in model.get_ops() if node.get_type_name() == "If"]
    given = op.parameter([3, 32], np.float32)
    branch.input(1).replace_source_output(given.output(0))
    compression = WeightCompression()
    compression.run_on_model(ov.Model(model.get_results(), [*model.get_parameters(), given]))
    assert len(compression.report.rows) == 2


def loop_from_constants() -> ov.Model:
    """A TensorIterator that reads constants alone: OpenVINO runs it while it compiles the model."""
    x, start, steps = op.parameter([3, 64], np.float32), constant(3, 64), op.constant(np.ones((4, 1), np.float32))
    state, step = op.parameter([3, 64], np.float32), op.parameter([1, 1], np.float32)
    product = op.matmul(state, op.multiply(constant(64, 64), op.constant(np.float32(0.1))), False, True)
    small = op.matmul(product, constant(64, 64), False, True)
    end = op.result(op.add(op.multiply(small, op.constant(np.float32(0.01))), step))
    iterator = op.tensor_iterator()
    iterator.set_body(ov.Model([end], [state, step]))
    iterator.set_merged_input(state, start.output(0), end.output(0))
    iterator.set_sliced_input(step, steps.output(0), 0, 1, 1, -1, 0)
    return ov.Model([op.add(iterator.get_iter_value(end.output(0), -1), x)], [x])


def test_a_loop_that_starts_from_constants_is_left_alone() -> None:
    compression = WeightCompression()
    compression.run_on_model(loop_from_constants())
    assert compression.report.rows == ()
    reasons = [skip.reason for skip in compression.report.skips]
    assert sum("computed once, when the model is compiled" in reason for reason in reasons) == 1


def test_a_compressed_loop_that_starts_from_constants_is_decompressed() -> None:
    """Postponed constants in it would be read from memory that is not theirs."""
    model = loop_from_constants()
    (loop,) = [node for node in model.get_ops() if node.get_type_name() == "TensorIterator"]
    start = loop.input(0)
    constant_start, given = start.get_source_output(), op.parameter([3, 64], np.float32)
    start.replace_source_output(given.output(0))  # so that it is compressed, as another tool compresses what starts so
    compression = WeightCompression(lazy=False)
    compression.run_on_model(ov.Model(model.get_results(), [*model.get_parameters(), given]))
    start.replace_source_output(constant_start)
    assert len(compression.report.rows) == 1
    feed = [np.zeros((3, 64), np.float32)]
    expected = ov.Core().compile_model(model.clone(), "CPU", EXACT)(feed)[0]
    apply_weight_decompression(model)
    found = ov.Core().compile_model(model, "CPU", EXACT)(feed)[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_two_level_scales_that_cpus_must_not_take_for_codes_are_recognised() -> None:
    model = layer([3, 4, 64], behind([1, 0, 2], 48, 3, 64), turned=True)
    expected = ov.Core().compile_model(model.clone(), "CPU", EXACT)
    compression = WeightCompression(mode="nvfp4", all_layers=True, rules=[("*", "nvfp4")])  # else experts get integers
    compression.run_on_model(model)
    assert "side by side behind a Transpose" in compression.report.rows[0].reason
    (one,) = find_compressed(model)
    assert (one.scale_type, one.group_size) == ("f8e4m3", 16)
    assert one.tensor_scale is not None
    feed = [np.random.default_rng(0).standard_normal((3, 4, 64)).astype(np.float32)]
    found = ov.Core().compile_model(model, "CPU", EXACT)(feed)[0]
    wanted = expected(feed)[0]
    assert np.linalg.norm(found - wanted) < 0.15 * np.linalg.norm(wanted)
