"""Two streams through a model: the order of the stages, and what each of them sees."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.calibration import make_samples, open_streams, runner
from ov_weight_compression.calibration.runner import Requests
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.worker_pool import default_threads
from tests import models
from tests.calibration import small

TOKENS = np.random.default_rng(7).integers(0, small.VOCABULARY, 200)
TINY = 1 << 17


def coarse(values: np.ndarray) -> np.ndarray:
    """A weight with so few bits that the streams part visibly."""
    step = np.abs(values).max() / 8
    return (np.round(values.astype(np.float32) / step) * step).astype(values.dtype)


def rows(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays]).astype(np.float64)


def test_stages_follow_the_graph() -> None:
    model = small.language_model(blocks=2)
    with open_streams(model, small.weights_of(model), make_samples(model, TOKENS)) as streams:
        found = [([sorted(one.weights) for one in stage.inputs], sorted(stage.others)) for stage in streams]
    block = [[["k_{}", "q_{}", "v_{}"]], [["o_{}"]], [["gate_{}", "up_{}"]], [["down_{}"]]]
    expected = [[[name.format(number) for name in names] for names in stage] for number in (0, 1) for stage in block]
    assert found == [([], ["embedding", "positions"]), *((stage, []) for stage in expected), ([["head"]], [])]


@pytest.mark.parametrize("outputs", [False, True])
@pytest.mark.parametrize(("dtype", "memory"), [("f32", 1 << 30), ("f16", TINY)])
def test_each_stage_sees_the_replacements_before_it(dtype: str, memory: int, outputs: bool) -> None:
    """And what its layers make of the float model's input, where that will do and they have fewer channels of it."""
    model = small.language_model(dtype=dtype)
    weights = {weight.name: weight for weight in small.weights_of(model)}
    samples = make_samples(model, [TOKENS[:12], TOKENS[12:24], TOKENS[24:60]])
    exact = small.activations(model, weights.values(), samples)
    replaced: dict[str, np.ndarray] = {}
    narrower = {"down_0", "down_1"} if outputs else {"gate_0"}  # gate_0 has more of them than its input
    options = {"calibration_memory": memory, "quiet": True, "outputs": narrower}
    with open_streams(model, list(weights.values()), samples, **options) as streams:
        for stage in streams:
            for one in stage.inputs:
                seen = one.measure()
                name = one.weights[0]
                x = rows(exact[name])
                hat = rows(small.activations(small.with_constants(model, replaced), [weights[name]], samples)[name])
                assert np.abs(x - hat).max() > 1e-3 * np.abs(x).max()
                tolerance = 1e-4 * np.abs(x.T @ x).max()
                np.testing.assert_allclose(seen.gram, hat.T @ hat, atol=tolerance)
                if outputs and name in narrower:
                    expected = weights[name].constant.data.astype(np.float64) @ x.T @ hat
                    np.testing.assert_allclose(seen.outputs, expected, atol=1e-4 * np.abs(expected).max())
                    assert seen.drift is None
                else:
                    np.testing.assert_allclose(seen.drift, (x - hat).T @ hat, atol=tolerance)
                    assert seen.outputs is None
            for name in stage.weights:
                replaced[name] = coarse(weights[name].constant.data)
                stage.replace(name, replaced[name])
    assert set(replaced) == set(weights)


def test_equal_weights_give_equal_streams() -> None:
    model = small.language_model()
    weights = {weight.name: weight for weight in small.weights_of(model)}
    samples = make_samples(model, TOKENS)
    plain = small.activations(model, weights.values(), samples)
    with open_streams(model, list(weights.values()), samples) as streams:
        for number, stage in enumerate(streams):
            for one in stage.inputs:
                seen = one.measure()
                assert (seen.drift is None) == (number == 0)
                if seen.drift is not None:
                    np.testing.assert_allclose(seen.drift, 0, atol=1e-3)
                x = rows(plain[one.weights[0]])
                np.testing.assert_allclose(seen.gram, x.T @ x, atol=1e-2)
            for name in stage.weights:
                stage.replace(name, weights[name].constant.data)


def test_streams_are_one_until_something_is_replaced() -> None:
    model = small.language_model()
    weights = {weight.name: weight for weight in small.weights_of(model)}
    same = []
    with open_streams(model, list(weights.values()), make_samples(model, TOKENS)) as streams:
        for stage in streams:
            for one in stage.inputs:
                same.append(one.measure().drift is None)
                if "gate_0" in one.weights:
                    stage.replace("gate_0", coarse(weights["gate_0"].constant.data))
    assert same == [True] * 3 + [False] * 6


def test_the_float_stream_alone() -> None:
    model = small.language_model()
    weights = {weight.name: weight for weight in small.weights_of(model)}
    samples = make_samples(model, TOKENS)
    plain = small.activations(model, weights.values(), samples)
    with open_streams(model, list(weights.values()), samples, compressed=False) as streams:
        for stage in streams:
            for one in stage.inputs:
                seen, x = one.measure(), rows(plain[one.weights[0]])
                assert seen.drift is None
                np.testing.assert_allclose(seen.gram, x.T @ x, atol=1e-2)
            for name in stage.weights:
                stage.replace(name, coarse(weights[name].constant.data))


def test_the_float_stream_goes_on_when_an_input_has_been_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread, and on half of the processors: not while measuring needs them all. The other stream runs two
    windows at once beside it."""
    model = small.language_model()
    weights = {weight.name: weight for weight in small.weights_of(model)}
    compiled: list[tuple[bool, int, int]] = []
    here, at_work = threading.get_ident(), threading.Event()

    def compile_piece(piece: ov.Model, *, bf16: bool, threads: int, side_by_side: int) -> Requests:
        ahead = threading.get_ident() != here
        compiled.append((ahead, threads, side_by_side))
        if ahead:
            at_work.set()
        return Requests(piece, bf16=bf16, threads=threads, side_by_side=side_by_side)

    monkeypatch.setattr(runner, "Requests", compile_piece)
    with open_streams(model, list(weights.values()), make_samples(model, TOKENS)) as streams:
        for stage in streams:
            at_work.clear()
            for one in stage.inputs:
                assert not at_work.wait(0.02)
                one.measure()
            assert not stage.inputs or stage.weights == ("head",) or at_work.wait(10)
            for name in stage.weights:
                stage.replace(name, coarse(weights[name].constant.data))
    half = max(default_threads() // 2, 1)
    assert {(threads, at_once) for ahead, threads, at_once in compiled if ahead} == {(half, 1)}
    assert {(threads, at_once) for ahead, threads, at_once in compiled if not ahead} == {(0, 2)}


@pytest.mark.parametrize("bf16", [False, True])
def test_the_float_stream_alone_runs_several_levels_at_once(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same result, but for bf16; and what comes before the first layer, such as positions, is not in bf16. One
    window at a time: two would take twice the memory, and large weights would be prepared by one thread."""
    model = small.language_model(blocks=2)
    weights, samples = small.weights_of(model), make_samples(model, TOKENS)
    asked: list[bool] = []

    def compiled(piece, *, bf16, threads, side_by_side):
        asked.append(bf16)
        assert side_by_side == 1
        return Requests(piece, bf16=bf16, threads=threads)

    monkeypatch.setattr(runner, "Requests", compiled)

    def measured(together: int) -> dict[str, np.ndarray]:
        asked.clear()
        options = {"compressed": False, "bf16": bf16, "measured": {"q_0", "down_1"}, "together": together}
        with open_streams(model, weights, samples, **options) as streams:
            return {
                one.weights[0]: one.measure().gram
                for stage in streams
                for one in stage.inputs
                if {"q_0", "down_1"} & {*one.weights}
            }

    apart, pieces = measured(0), [*asked]
    together = measured(1 << 30)
    assert len(asked) == 2 < len(pieces)
    assert asked == [False, bf16]
    assert pieces == [False, *[bf16] * (len(pieces) - 1)]
    assert apart.keys() == together.keys()
    assert {"down_1"} < apart.keys()
    for name, gram in apart.items():
        np.testing.assert_allclose(together[name], gram, atol=(2e-2 if bf16 else 1e-5) * np.abs(gram).max())


@pytest.mark.parametrize("compressed", [False, True])
def test_the_float_stream_runs_while_a_stage_is_looked_at(compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one thread of its own, which ends with the streams, wherever the loop was left."""
    model, used = small.language_model(), []
    advance, behind = runner.Stream.advance, threading.Event()

    def watched(*args: Any, **options: Any) -> None:
        advance(*args, **options)
        used.append(threading.current_thread())
        if len(used) == 2:
            behind.set()

    monkeypatch.setattr(runner.Stream, "advance", watched)
    options = {"compressed": compressed, "together": 0}
    with open_streams(model, small.weights_of(model), make_samples(model, TOKENS), **options) as streams:
        next(iter(streams))
        assert behind.wait(timeout=60)  # at the second stage, which nobody has asked for
    assert threading.main_thread() not in used
    assert len(set(used)) == 1
    assert not used[0].is_alive()


def test_a_weight_of_another_stage_is_refused() -> None:
    model = small.language_model()
    with open_streams(model, small.weights_of(model), make_samples(model, TOKENS)) as streams:
        stage = next(iter(streams))
        with pytest.raises(OptionError, match="weight 'down_1' is not of this stage: those are embedding, positions"):
            stage.replace("down_1", np.zeros((32, 64), np.float32))


def test_routed_experts_are_compared_row_by_row() -> None:
    """The router of the compressed stream would choose otherwise; its experts must get the float stream's rows."""
    model = small.routed_experts()
    weights = {weight.name: weight for weight in small.weights_of(model)}
    samples = make_samples(
        model, [np.random.default_rng(seed).standard_normal((9, 32)).astype("f4") for seed in (1, 2)]
    )
    exact = small.activations(model, weights.values(), samples)
    with open_streams(model, list(weights.values()), samples) as streams:
        for stage in streams:
            for one in stage.inputs:
                seen = one.measure()
                x = rows(exact[one.weights[0]])
                assert seen.n == len(x)
                if one.weights[0].startswith("up") and seen.n:
                    assert seen.drift is not None
                    assert np.abs(seen.gram + seen.drift - x.T @ x).max() < 0.2 * np.abs(x.T @ x).max()
            for name in stage.weights:
                values = weights[name].constant.data
                stage.replace(name, values[::-1] if name == "router" else coarse(values))


def test_experts_with_rows_of_their_own() -> None:
    model = small.batched_experts()
    weights = {weight.name: weight for weight in small.weights_of(model)}
    samples = make_samples(model, [np.random.default_rng(0).standard_normal((11, 32)).astype("f4")])
    down = coarse(weights["up"].constant.data)
    with open_streams(model, list(weights.values()), samples) as streams:
        first, second = ([one.measure() for one in stage.inputs] for stage in stepping(streams, {"up": down}))
    assert len(first[0].gram) == len(second[0].gram) == 3
    assert second[0].drift is not None
    x = small.activations(model, weights.values(), samples)["down"][0]
    hat = small.activations(small.with_constants(model, {"up": down}), weights.values(), samples)["down"][0]
    for expert in range(3):
        np.testing.assert_allclose(second[0].drift[expert], (x - hat)[expert].T @ hat[expert], atol=1e-4)


def stepping(streams: object, values: dict[str, np.ndarray]) -> object:
    """The stages, each with its replacements made once its user is done with it."""
    for stage in streams:  # type: ignore[attr-defined]
        yield stage
        for name in set(stage.weights) & set(values):
            stage.replace(name, values[name])


def test_models_that_are_no_transformers() -> None:
    model = models.layers(4)
    x = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    with open_streams(model, small.weights_of(model), make_samples(model, [x])) as streams:
        assert [stage.weights for stage in streams] == [("weight_0",), ("weight_1",), ("weight_2",), ("weight_3",)]
    model = models.convolution()
    shape = [dim.get_length() if dim.is_static else 8 for dim in model.get_parameters()[0].get_output_partial_shape(0)]
    with open_streams(model, small.weights_of(model), make_samples(model, [np.ones(shape, np.float32)])) as streams:
        assert list(streams) == []


def test_weights_in_bodies_are_unreached() -> None:
    model = models.in_loop()
    with open_streams(model, small.weights_of(model), make_samples(model, [np.ones((2, 64), np.float32)])) as streams:
        assert list(streams) == []


def test_a_shared_weight_belongs_to_its_first_stage() -> None:
    model = models.tied_head()
    weights = small.weights_of(model)
    with open_streams(model, weights, make_samples(model, [np.arange(6).reshape(1, 6)])) as streams:
        assert [(stage.others, [one.weights for one in stage.inputs]) for stage in streams] == [
            (("weight",), []),
            ((), [("weight_0",)]),
        ]


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "gpt_neox"])
def test_zoo(shared: Path, name: str) -> None:
    model = ov.Core().read_model(shared / "zoo" / name / "openvino_model.xml")
    weights = {weight.name: weight for weight in small.weights_of(model)}
    samples = make_samples(model, np.random.default_rng(1).integers(0, 300, 64), context_length=16)
    count = 0
    with open_streams(model, list(weights.values()), samples) as streams:
        for stage in streams:
            for one in stage.inputs:
                seen = one.measure()
                if seen.drift is not None:
                    np.testing.assert_allclose(seen.drift, 0, atol=1e-5 * max(1.0, float(seen.gram.max())))
            count += len(stage.weights)
            for weight in stage.weights:
                stage.replace(weight, weights[weight].constant.data.astype(np.float32))
    assert count == len(weights)
