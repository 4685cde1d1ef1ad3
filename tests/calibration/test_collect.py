"""Statistics of a model's layer inputs, against plain numpy on the activations of the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest

from ov_weight_compression.calibration import LayerStatistics, Samples, collect, make_samples, runner
from ov_weight_compression.ir_utils.errors import OptionError, WorkError
from tests import models
from tests.calibration import small

TOKENS = np.random.default_rng(7).integers(0, small.VOCABULARY, 400)
TINY = 1 << 17
"""A memory limit under which the small models fall into many pieces, and the tensors between them go to disk."""


def agree(found: LayerStatistics, arrays: list[np.ndarray]) -> None:
    """Compare with sums over the rows of plain activations `[…, in]`."""
    rows = np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays]).astype(np.float64)
    assert found.n == len(rows)
    squares = (rows**2).sum(0)
    # A channel of next to nothing (what rounding leaves behind a ReLU) is as exact as the largest.
    np.testing.assert_allclose(found.sum_square, squares, rtol=1e-5, atol=1e-8 * squares.max())
    np.testing.assert_allclose(found.importance, squares / len(rows), rtol=1e-5, atol=1e-8 * squares.max() / len(rows))


def same(first: Any, second: Any, rtol: float = 0) -> None:
    """Statistics agree: to the last bit, or where pieces were cut otherwise (and fused otherwise) but for rounding."""
    assert list(first) == list(second)
    for name in first:
        mine, theirs = first[name].numbers(), second[name].numbers()
        assert list(mine.values()) == pytest.approx(list(theirs.values()), rel=rtol, abs=0)
        sums = first[name].sum_square
        np.testing.assert_allclose(sums, second[name].sum_square, rtol=0, atol=rtol * sums.max())


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_language_model(dtype: str) -> None:
    model = small.language_model(dtype=dtype)
    weights = small.weights_of(model)
    samples = make_samples(model, TOKENS, context_length=20)
    found = collect(model, weights, samples, quiet=True)
    plain = small.activations(model, weights, samples)
    assert set(found) == set(plain) == {weight.name for weight in weights} - {"embedding", "positions"}
    for name, arrays in plain.items():
        agree(found[name], arrays)


def test_layers_that_read_the_same_tensor_share_their_statistics() -> None:
    model = small.language_model()
    found = collect(model, small.weights_of(model), make_samples(model, TOKENS, context_length=20))
    assert found["q_0"] is found["k_0"] is found["v_0"]
    assert found["gate_1"] is found["up_1"]
    assert found["q_0"] is not found["q_1"]


def test_metrics_are_means_over_sequences() -> None:
    model = small.language_model()
    weights = small.weights_of(model)
    windows = [TOKENS[start : start + 25] for start in range(0, 100, 25)]
    found = collect(model, weights, make_samples(model, windows))["down_1"]
    plain = small.activations(model, weights, make_samples(model, windows))["down_1"]
    sequences = [row for array in plain for row in array.astype(np.float64)]
    assert found.sequences == len(sequences) == 4
    assert found.mean_square == pytest.approx(np.mean([(x**2).mean() for x in sequences]), rel=1e-5)
    assert found.mean_variance == pytest.approx(np.mean([x.var(0).mean() for x in sequences]), rel=1e-4)
    assert found.max_variance == pytest.approx(np.mean([x.var(0).max() for x in sequences]), rel=1e-4)
    assert found.mean_max_abs == pytest.approx(np.mean([np.abs(x).max(0).mean() for x in sequences]), rel=1e-5)


@pytest.mark.parametrize("port", [0, 1])
@pytest.mark.parametrize("transpose", [False, True])
def test_either_port_and_flag(port: int, transpose: bool) -> None:
    model = models.linear(port=port, transpose=transpose)
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    samples = make_samples(model, [x if port else np.ascontiguousarray(x.T)])
    agree(collect(model, small.weights_of(model), samples)["weight"], [x])


def test_transposed_activation() -> None:
    from openvino import opset13 as op

    x = op.parameter([64, -1], np.float32, name="x")
    layer = op.matmul(op.relu(x), models.constant((48, 64)), True, True)
    model = ov.Model([op.result(layer)], [x], "transposed")
    data = np.random.default_rng(0).standard_normal((64, 9)).astype(np.float32)
    found = collect(model, small.weights_of(model), make_samples(model, [data]))
    agree(found["weight"], [np.maximum(data, 0).T])


def test_pieces_on_disk_give_the_same_and_the_same_run_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written = []
    new_file = runner.Pool.new_file
    monkeypatch.setattr(runner.Pool, "new_file", lambda pool: written.append(new_file(pool)) or written[-1])
    model = small.language_model()
    weights = small.weights_of(model)
    samples = make_samples(model, TOKENS, context_length=20)
    whole = collect(model, weights, samples)
    assert not written
    pieces = collect(model, weights, samples, calibration_memory=TINY)
    assert len(written) > 10
    assert list(tmp_path.iterdir()) == []
    same(whole, pieces, 1e-5)
    same(whole, collect(model, weights, samples))


def test_nothing_is_left_on_disk_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = small.language_model()
    samples = make_samples(model, TOKENS, context_length=20)

    def broken() -> Any:
        yield from samples
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(model, small.weights_of(model), Samples(broken, ""), calibration_memory=TINY)
    assert list(tmp_path.iterdir()) == []


def test_windows_of_different_lengths() -> None:
    model = small.language_model()
    weights = small.weights_of(model)
    samples = make_samples(model, [TOKENS[:7], TOKENS[7:30], TOKENS[30:31]])
    plain = small.activations(model, weights, samples)
    for memory in (1 << 30, TINY):
        found = collect(model, weights, samples, calibration_memory=memory)
        for name, arrays in plain.items():
            agree(found[name], arrays)


def test_batching_windows_changes_nothing_but_rounding() -> None:
    free, single = small.language_model(), small.language_model(batch=1, length=20)
    together = collect(free, small.weights_of(free), make_samples(free, TOKENS, context_length=20))
    alone = collect(single, small.weights_of(single), make_samples(single, TOKENS, context_length=20))
    for name in together:
        assert together[name].sequences == alone[name].sequences == 20
        np.testing.assert_allclose(together[name].sum_square, alone[name].sum_square, rtol=1e-4)
        assert together[name].max_variance == pytest.approx(alone[name].max_variance, rel=1e-4)


def test_model_is_not_changed() -> None:
    model = small.language_model()
    before = [
        (
            node.get_name(),
            [value.get_node().get_name() for value in node.input_values()],
            str(node.get_output_partial_shape(0)) if node.get_output_size() else "",
        )
        for node in model.get_ordered_ops()
    ]
    collect(model, small.weights_of(model), make_samples(model, TOKENS), calibration_memory=TINY)
    after = [
        (
            node.get_name(),
            [value.get_node().get_name() for value in node.input_values()],
            str(node.get_output_partial_shape(0)) if node.get_output_size() else "",
        )
        for node in model.get_ordered_ops()
    ]
    assert before == after


def test_experts_with_rows_of_their_own() -> None:
    model = small.batched_experts()
    x = np.random.default_rng(0).standard_normal((11, 32)).astype(np.float32)
    weights = small.weights_of(model)
    found = collect(model, weights, make_samples(model, [x]))
    plain = small.activations(model, weights, make_samples(model, [x]))
    for name in ("up", "down"):
        assert found[name].n == plain[name][0].shape[1]
        np.testing.assert_allclose(found[name].sum_square, np.square(plain[name][0]).sum(1), rtol=1e-5)


def test_experts_that_share_their_rows() -> None:
    model = small.batched_experts(tiled=False)
    x = np.random.default_rng(0).standard_normal((11, 32)).astype(np.float32)
    found = collect(model, small.weights_of(model), make_samples(model, [x]))
    agree(found["up"], [x])
    assert found["up"].sum_square.shape == (32,)
    assert len(found["down"].sum_square) == 3


def test_routed_experts_and_one_that_is_never_chosen() -> None:
    model = small.routed_experts()
    weights = small.weights_of(model)
    rng = np.random.default_rng(0)
    one = np.repeat(rng.standard_normal((1, 32)).astype(np.float32), 5, 0)
    found = collect(model, weights, make_samples(model, [one]))
    counts = [found[f"up_{expert}"].n for expert in range(3)]
    assert sorted(counts) == [0, 0, 5]
    idle = found[f"down_{counts.index(0)}"]
    assert not idle.importance.any()
    windows = [rng.standard_normal((9, 32)).astype(np.float32) for _ in range(4)]
    plain = small.activations(model, weights, make_samples(model, windows))
    for memory in (1 << 30, TINY):
        found = collect(model, weights, make_samples(model, windows), calibration_memory=memory)
        for name, arrays in plain.items():
            agree(found[name], arrays)


def test_a_weight_that_two_layers_share_has_the_sum_of_both() -> None:
    model = models.tied_head()
    samples = make_samples(model, [np.arange(12).reshape(1, 12)])
    found = collect(model, small.weights_of(model), samples)
    agree(found["weight"], small.activations(model, small.weights_of(model), samples)["weight"])
    from openvino import opset13 as op

    x = op.parameter([-1, 64], np.float32, name="x")
    weight = models.constant((64, 64))
    first = op.relu(op.matmul(x, weight, False, True))
    model = ov.Model([op.result(op.matmul(first, weight, False, True))], [x], "twice")
    data = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    found = collect(model, small.weights_of(model), make_samples(model, [data]))
    second = np.maximum(data @ weight.data.T, 0)
    agree(found["weight"], [data, second])


@pytest.mark.parametrize(
    "build", [models.in_if, models.in_loop, models.in_tensor_iterator, models.embedding, models.convolution]
)
def test_weights_without_an_activation_are_absent(build: Any) -> None:
    model = build()
    inputs = {
        node.get_friendly_name(): np.ones(
            [dim.get_length() if dim.is_static else 8 for dim in node.get_output_partial_shape(0)],
            node.get_output_element_type(0).to_dtype(),
        )
        for node in model.get_parameters()
    }
    assert len(collect(model, small.weights_of(model), make_samples(model, [inputs]))) == 0


def test_a_weight_whose_columns_have_another_order_than_its_input_is_absent() -> None:
    def shuffle(node: ov.Node) -> ov.Node:
        return opset.reshape(
            opset.transpose(node, opset.constant(np.array([0, 2, 1]))), opset.constant(np.array([48, 64])), False
        )

    model = models.linear(48, 64, shape=(48, 8, 8), through=shuffle)
    inputs = [{"x": np.ones((5, 64), np.float32)}]
    assert len(collect(model, small.weights_of(model), make_samples(model, inputs))) == 0


def test_too_little_memory_for_the_statistics_themselves() -> None:
    model = small.language_model()
    with pytest.raises(OptionError, match=r"calibration_memory=8192: .* give calibration_memory=\d+ or more"):
        collect(model, small.weights_of(model), make_samples(model, TOKENS), calibration_memory=8192)


def test_a_model_that_fails_on_the_data_says_on_which() -> None:
    from openvino import opset13 as op

    x, y = (op.parameter([-1, 64], np.float32, name=name) for name in "xy")
    layer = op.matmul(op.relu(op.add(x, y)), models.constant((48, 64)), False, True)
    model = ov.Model([op.result(layer)], [x, y], "sum")
    good, bad = np.ones((3, 64), np.float32), np.ones((4, 64), np.float32)
    with pytest.raises(WorkError, match="fails on window 1 of the data"):
        collect(model, small.weights_of(model), make_samples(model, [(good, good), (good, bad)]))


ZOO = [
    "bert",
    "bloom",
    "falcon",
    "gemma2",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "llama",
    "mamba",
    "opt",
    "phi3",
    "qwen2",
    "qwen2_moe",
]


@pytest.mark.parametrize("name", ZOO)
def test_zoo(shared: Path, name: str) -> None:
    model = ov.Core().read_model(shared / "zoo" / name / "openvino_model.xml")
    weights = small.weights_of(model)
    samples = make_samples(model, np.random.default_rng(1).integers(0, 300, 64), context_length=16)
    found = collect(model, weights, samples)
    pieces = collect(model, weights, samples, calibration_memory=TINY * 4)
    same(found, pieces, 1e-5)
    plain = small.activations(model, weights, samples)
    assert set(plain) == set(found)
    for weight, arrays in plain.items():
        if found[weight].sum_square.ndim == 1:
            agree(found[weight], arrays)
        else:
            np.testing.assert_allclose(found[weight].sum_square, np.square(arrays[0]).sum(1), rtol=1e-4)
