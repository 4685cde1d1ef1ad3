"""Compressed weights beside their originals, and the outputs of the layers that hold them."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.evaluation import ComparisonProtocol, compare
from ov_weight_compression.evaluation.layers import pair_layers, weigh
from ov_weight_compression.passes import apply_weight_compression
from tests import models
from tests.evaluation.small import EXACT, VOCABULARY, language_model, perceptron

INPUT = np.random.default_rng(2).standard_normal((30, 24)).astype(np.float32)
FIRST, SECOND = "first.weight", "second.weight"


def constants_of(model: ov.Model) -> dict[str, np.ndarray]:
    return {
        node.get_friendly_name(): np.array(node.data, dtype=np.float64)
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant"
    }


def weights_as_executed(model: ov.Model) -> list[np.ndarray]:
    """The second input of every MatMul, computed by OpenVINO in f32."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "MatMul":
            part = ov.Model([op.convert(node.input_value(1), "f32").output(0)], [], "part")
            found.append(np.array(ov.Core().compile_model(part, "CPU", EXACT)([])[0], dtype=np.float64))
    return found


def snr(base: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10((base**2).sum() / ((base - other) ** 2).sum()))


def test_weights_and_outputs_equal_plain_arithmetic() -> None:
    base = perceptron()
    other = apply_weight_compression(perceptron(), mode="int4_sym", group_size=8, all_layers=True, lazy=False)
    found = {layer.name.removesuffix("_compressed"): layer for layer in compare(base, other, INPUT).layers}
    plain = constants_of(base)
    w1, w2 = plain[FIRST], plain[SECOND]
    q1, q2 = weights_as_executed(other)[:2]
    x = INPUT.astype(np.float64)
    h, h_other = np.maximum(x @ w1.T, 0), np.maximum(x @ q1.T, 0)
    # the chain is written in f16 arithmetic, which the evaluation takes as exact: hence the tolerance on weights
    assert found[FIRST].weight_snr_db == pytest.approx(snr(w1, q1), abs=0.02)
    assert found[SECOND].weight_snr_db == pytest.approx(snr(w2, q2), abs=0.02)
    assert found[FIRST].own_snr_db == pytest.approx(snr(x @ w1.T, x @ q1.T), abs=0.05)
    assert found[FIRST].output_snr_db == pytest.approx(found[FIRST].own_snr_db, abs=1e-6)
    assert found[SECOND].own_snr_db == pytest.approx(snr(h @ w2.T, h @ q2.T), abs=0.05)
    assert found[SECOND].output_snr_db == pytest.approx(snr(h @ w2.T, h_other @ q2.T), abs=0.05)
    assert found[FIRST].layer == "first/MatMul"
    assert (found[FIRST].mode, found[FIRST].group_size, found[FIRST].shape) == ("int4_sym", 8, (64, 24))


def test_channels_that_were_scaled_before_rounding_are_compared_in_the_units_of_the_base() -> None:
    """What one layer's rows are multiplied with, the next one's columns are divided by: relu lets it through."""

    def scaled(factors: np.ndarray) -> ov.Model:
        model = perceptron()
        for node in model.get_ordered_ops():
            if node.get_friendly_name() not in (FIRST, SECOND):
                continue
            values = np.array(node.data) * (factors[:, None] if node.get_friendly_name() == FIRST else 1 / factors)
            new = op.constant(values.astype(np.float32))
            new.set_friendly_name(node.get_friendly_name())
            for target in list(node.output(0).get_target_inputs()):
                target.replace_source_output(new.output(0))
        return model

    factors = (2.0 ** np.random.default_rng(3).uniform(-2, 2, 64)).astype(np.float32)
    other = apply_weight_compression(scaled(factors), mode="int4_sym", group_size=8, all_layers=True, lazy=False)
    found = {layer.name.removesuffix("_compressed"): layer for layer in compare(perceptron(), other, INPUT).layers}
    plain, executed = constants_of(perceptron()), weights_as_executed(other)
    w1, w2 = plain[FIRST], plain[SECOND]
    q1, q2 = executed[0] / factors[:, None], executed[1] * factors
    x = INPUT.astype(np.float64)
    h, h_other = np.maximum(x @ w1.T, 0), np.maximum(x @ q1.T, 0)
    expected = {
        FIRST: (snr(w1, q1), snr(x @ w1.T, x @ q1.T), snr(x @ w1.T, x @ q1.T)),
        SECOND: (snr(w2, q2), snr(h @ w2.T, h @ q2.T), snr(h @ w2.T, h_other @ q2.T)),
    }
    for name, figures in expected.items():
        layer = found[name]
        assert "scaled" in layer.note
        # factors that are fitted are those that were applied, but for what rounding moved
        assert (layer.weight_snr_db, layer.own_snr_db, layer.output_snr_db) == pytest.approx(figures, abs=1)


def test_the_worst_come_first() -> None:
    other = apply_weight_compression(
        perceptron(), mode="int8_sym", rules=[("second*", {"mode": "int4_sym", "group_size": 16})]
    )
    found = compare(perceptron(), other, INPUT)
    assert found.worst_layers()[0].layer == "second/MatMul"
    assert [layer.layer for layer in found.layers][:2] == ["first/MatMul", "second/MatMul"]
    assert len(found.worst_layers(1)) == 1


def test_formats_count_every_constant() -> None:
    other = apply_weight_compression(language_model(), mode="int4_sym", group_size=16, lazy=False)
    found = compare(language_model(), other, np.arange(20) % VOCABULARY)
    rows = {(row.mode, row.group_size): row for row in found.formats}
    hidden = rows["int4_sym", 16]
    assert (hidden.weights, hidden.elements, hidden.bytes) == (1, 32 * 32, 32 * 32 // 2 + 32 * 2 * 2)
    assert hidden.bits_per_weight == 5.0
    (layer,) = [layer for layer in found.layers if layer.mode == "int4_sym"]
    assert hidden.weight_snr_db == layer.weight_snr_db == hidden.weight_snr_db_min
    stored = sum(node.get_byte_size() for node in other.get_ordered_ops() if node.get_type_name() == "Constant")
    assert found.compressed.bytes == stored
    assert rows["f32", None].weight_snr_db is None


@pytest.mark.parametrize(
    ("mode", "group_size"),
    [
        ("int8_asym", -1), ("int8_sym", -1), ("int4_asym", 32), ("int4_sym", 32), ("int3_sym", 32), ("int2_sym", 32),
        ("int2_asym", 32), ("nf4", 32), ("fp4", 32), ("mxfp4", 32), ("nvfp4", 16), ("fp8_e4m3", 32), ("mxfp8_e4m3", 32),
    ],
)  # fmt: skip
def test_every_mode_is_weighed(mode: str, group_size: int) -> None:
    model = models.linear(out=48, columns=64)
    everywhere = {} if mode.startswith("int8") else {"all_layers": True}
    other = apply_weight_compression(model.clone(), mode=mode, group_size=group_size, lazy=False, **everywhere)
    (layer,) = pair_layers(model, other)
    weigh(layer)
    figures = layer.figures()
    assert (figures.mode, figures.group_size) == (mode, group_size)
    assert figures.weight_snr_db is not None
    assert 2 < figures.weight_snr_db < 60


@pytest.mark.parametrize("build", [models.grouped_matmul, models.embedding, models.convolution, models.tied_head])
def test_every_place_a_weight_can_be_in(build: object) -> None:
    assert callable(build)
    other = apply_weight_compression(build(), mode="int8_sym")
    found = compare(build(), other).layers
    assert found
    for layer in found:
        assert layer.weight_snr_db is not None
        assert 30 < layer.weight_snr_db < 60
        assert layer.own_snr_db is not None
        assert layer.own_snr_db > 30


def test_weights_inside_bodies_are_weighed_but_their_outputs_are_not_measured() -> None:
    other = apply_weight_compression(models.in_loop(), mode="int8_sym")
    found = compare(models.in_loop(), other).layers
    inside = [layer for layer in found if "inside" in layer.note]
    assert inside
    assert all(layer.weight_snr_db is not None and layer.own_snr_db is None for layer in inside)


def test_a_layer_that_is_called_otherwise_is_paired_by_its_constant() -> None:
    base = perceptron()
    for node in base.get_ordered_ops():
        if node.get_friendly_name() == "first/MatMul":
            node.set_friendly_name("renamed")
    other = apply_weight_compression(perceptron(), mode="int8_sym")
    first = compare(base, other, INPUT).layers[0]
    assert first.weight_snr_db is not None
    assert first.own_snr_db is None
    assert "paired by the constant's name" in first.note


@pytest.mark.parametrize("scales", ["channel", "block"])
def test_a_base_model_of_fp8_is_paired_by_what_its_codes_stand_for(scales: str) -> None:
    """Not by the codes themselves, which have the constant's name."""
    base = models.fp8_checkpoint(scales)
    compressed = apply_weight_compression(models.fp8_checkpoint(scales), mode="int8_asym")
    for node in compressed.get_ops():
        if node.get_type_name() == "MatMul":
            node.set_friendly_name("renamed")
    (layer,) = pair_layers(base, compressed)
    assert layer.note
    weigh(layer)
    figures = layer.figures()
    assert figures.weight_snr_db is not None
    assert 40 < figures.weight_snr_db < 60


def test_a_layer_that_is_nowhere_in_the_base_model() -> None:
    base = perceptron()
    for node in base.get_ordered_ops():
        if node.get_friendly_name().startswith("first"):
            node.set_friendly_name("other" + node.get_friendly_name())
    other = apply_weight_compression(perceptron(), mode="int8_sym")
    first = compare(base, other, INPUT).layers[0]
    assert first.weight_snr_db is None
    assert first.note == "not found in the base model"


def test_a_weight_that_did_not_change() -> None:
    values = np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.float32)
    values[:, :2] = 0, 255

    def model() -> ov.Model:
        x = op.parameter([-1, 64], np.float32, name="x")
        layer = op.matmul(x, op.constant(values), False, True)
        layer.set_friendly_name("layer")
        return ov.Model([layer], [x])

    found = compare(model(), apply_weight_compression(model(), mode="int8_asym"))
    assert found.layers[0].weight_snr_db == float("inf")
    assert found.to_dict()["layers"][0]["weight_snr_db"] == "inf"


def test_without_layers_only_their_storage_is_told() -> None:
    other = apply_weight_compression(perceptron(), mode="int8_sym")
    found = compare(perceptron(), other, INPUT, layers=False)
    assert found.layers[0].bytes > 0
    assert found.layers[0].weight_snr_db is found.layers[0].own_snr_db is None
    assert found.worst_layers() == []
    weights = compare(perceptron(), other, INPUT, protocol=ComparisonProtocol(layer_samples=0))
    assert weights.layers[0].weight_snr_db is not None
    assert weights.layers[0].own_snr_db is None
