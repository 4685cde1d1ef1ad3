"""Probes tell what running the whole model with one weight rounded tells, on a fraction of the work."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.calibration import (
    Influence,
    Rounding,
    divergence_of,
    influences_of,
    load_influences,
    make_samples,
    run_probes,
    save_influences,
    scored_outputs,
)
from ov_weight_compression.calibration.activation_graph import read_graph
from ov_weight_compression.calibration.divergence import kl_divergence
from ov_weight_compression.calibration.probe_plan import PASSES, find_blocks
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.patterns import sources_of
from tests.calibration import small

TOKENS = np.random.default_rng(7).integers(0, small.VOCABULARY, 240)


def rounding(name: str, seen: np.ndarray | None) -> Rounding:
    """Sixteen steps from the smallest to the largest value of the rows, whatever the data say."""
    return Rounding(seen, lambda rows, expert: coarse(rows))


def coarse(rows: np.ndarray) -> np.ndarray:
    step = np.abs(rows).max(axis=1, keepdims=True) / 8
    return (np.round(rows / step) * step).astype(np.float32)


def one_by_one(model: ov.Model, samples: object, names: Collection[str] = ()) -> dict[str, float]:
    """The additive divergence with each (named) weight rounded, from the whole model."""
    weights = small.weights_of(model)
    sources = sources_of(weights)
    predictions = scored_outputs(model).predictions
    found = {}
    for weight in [weight for weight in weights if not names or weight.name in names]:
        rounded = weight.layout.from_matrix(coarse(sources[weight].read_all()))
        moved = divergence_of(model, weights, samples, lambda name, w=weight, r=rounded: r if name == w.name else None)
        found[weight.name] = moved.total
        assert moved.value == pytest.approx(moved.total if predictions else moved.total**0.5)
    return found


def probed(model: ov.Model, samples: object, memory: int = 1 << 30, most_passes: int = PASSES) -> dict[str, float]:
    weights = small.weights_of(model)
    shown = run_probes(
        model,
        weights,
        rounding,
        samples,
        sources=sources_of(weights),
        calibration_memory=memory,
        most_passes=most_passes,
    )
    found = influences_of(shown)
    return {name: sum(use.loss for use in uses) for name, uses in found.items()}


def test_a_language_model() -> None:
    model = small.language_model(blocks=3)
    samples = make_samples(model, [TOKENS[:40], TOKENS[40:80], TOKENS[80:110]])
    to_the_end = ("embedding", "down_0", "v_1", "head")
    others = ("q_0", "o_0", "up_0")
    truth = one_by_one(model, samples, (*to_the_end, *others))
    found = probed(model, samples, most_passes=0)  # as for a model of many blocks
    assert found.keys() == {weight.name for weight in small.weights_of(model)}
    for name in to_the_end:
        assert found[name] == pytest.approx(truth[name], rel=0.02), name
    for name in others:
        assert truth[name] / 3 < found[name] < 3 * truth[name], name
    assert found == pytest.approx(probed(model, samples, 1 << 17, 0), rel=1e-3)  # in pieces of less than a block
    exact = probed(model, samples)
    assert {name: exact[name] for name in others} == pytest.approx({name: truth[name] for name in others}, rel=0.02)


def test_experts_with_rows_of_their_own() -> None:
    model = small.batched_experts()
    samples = make_samples(model, [np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)])
    truth, found = one_by_one(model, samples), probed(model, samples)
    for name in ("up", "down"):
        assert found[name] == pytest.approx(truth[name], rel=0.02)


def test_routed_experts() -> None:
    model = small.routed_experts()
    samples = make_samples(model, [np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)])
    truth, found = one_by_one(model, samples), probed(model, samples)
    for name in ("up_0", "down_1", "hidden", "last"):
        assert found[name] == pytest.approx(truth[name], rel=0.02)


def test_a_weight_that_two_layers_share_counts_for_both() -> None:
    x = op.parameter([-1, 32], np.float32, name="x")
    shared = small.constant((32, 32), "shared", "f32", 0.2)
    hidden = op.tanh(op.matmul(x, shared, False, True))
    model = ov.Model([op.result(op.matmul(hidden, shared, False, True))], [x], "shared")
    samples = make_samples(model, [np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)])
    weights = small.weights_of(model)
    (uses,) = influences_of(run_probes(model, weights, rounding, samples, sources=sources_of(weights))).values()
    assert len(uses) == 2
    assert sum(use.loss for use in uses) == pytest.approx(one_by_one(model, samples)["shared"], rel=0.3)
    assert not np.allclose(uses[0].energy, uses[1].energy)


def test_blocks_and_what_writes_the_stream() -> None:
    model = small.language_model(blocks=3)
    graph = read_graph(model, small.weights_of(model), outputs=[0])
    found = [
        (
            sorted(name for place in block.layers for name in graph.layers[place]),
            [name for place in block.writers for name in graph.layers[place]],
        )
        for block in find_blocks(graph)
    ]
    parts = ("down", "gate", "k", "o", "q", "up", "v")
    assert found[-3:] == [([f"{part}_{number}" for part in parts], [f"down_{number}"]) for number in range(3)]


def test_a_plain_chain_has_no_blocks() -> None:
    x = op.parameter([-1, 32], np.float32, name="x")
    hidden = x
    for number in range(3):
        hidden = op.relu(op.matmul(hidden, small.constant((32, 32), f"layer_{number}"), False, True))
    model = ov.Model([op.result(hidden)], [x], "chain")
    assert find_blocks(read_graph(model, small.weights_of(model), outputs=[0])) == []


def test_kl_is_that_of_float64() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((50, 300)).astype(np.float32) * 5
    changed = base + rng.standard_normal((50, 300)).astype(np.float32) * 0.1
    a, b = base.astype(np.float64), changed.astype(np.float64)
    p, q = (np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in (a, b))
    np.testing.assert_allclose(kl_divergence(base, changed), (p * np.log(p / q)).sum(axis=1), rtol=1e-3, atol=1e-6)
    assert np.abs(kl_divergence(base, base)).max() == 0


def test_caches_are_no_outputs_that_count() -> None:
    x = op.parameter([-1, 8], np.float32, name="x")
    hidden, cache = op.relu(x), op.tanh(x)
    cache.output(0).set_names({"present.0.key"})
    assert scored_outputs(ov.Model([op.result(cache), op.result(hidden)], [x], "m")).numbers == (1,)


class TestTheFile:
    FOUND = {  # noqa: RUF012
        "a": (Influence(0.5, np.arange(4, dtype=np.float32)), Influence(0.25, None)),
        "b": (Influence(0.125, np.ones((2, 4), np.float32)),),
    }

    def test_it_keeps_everything(self, tmp_path: Path) -> None:
        model = small.language_model()
        save_influences(self.FOUND, tmp_path / "probes.safetensors", model, "data")
        read = load_influences(tmp_path / "probes.safetensors", model)
        assert {name: [use.loss for use in uses] for name, uses in read.items()} == {"a": [0.5, 0.25], "b": [0.125]}
        assert read["a"][1].energy is None
        np.testing.assert_array_equal(read["b"][0].energy, np.ones((2, 4)))

    def test_another_models_is_refused(self, tmp_path: Path) -> None:
        save_influences(self.FOUND, tmp_path / "probes.safetensors", small.language_model(), "data")
        with pytest.raises(ModelError, match="probes were run on another model"):
            load_influences(tmp_path / "probes.safetensors", small.batched_experts())

    def test_damage_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "probes.safetensors").write_bytes(b"nonsense")
        with pytest.raises(ModelError, match="not a file of probes, or damaged"):
            load_influences(tmp_path / "probes.safetensors", small.language_model())
