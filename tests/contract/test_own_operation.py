"""An operation that the package does not know, compressed with all that it offers once its role is handed in.

The same network is made of the operation and of MatMuls: what is stored for both must be the same to the byte.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

import ov_weight_compression as owc
from ov_weight_compression.calibration import runner
from ov_weight_compression.passes import Activation, OptionError, Refusal, Role
from ov_weight_compression.patterns import Kind, find_compressed
from tests.running import constants, run

IN, HIDDEN, OUT = 64, 96, 48


class Projection(ov.Op):
    """`y[b, o, t] = Σ_i x[b, i, t] w[i, o]`: channels in the middle, the weight `[in, out]`."""

    def __init__(self, inputs: Any = None) -> None:
        super().__init__(self)
        if inputs is not None:
            self.set_arguments(inputs)
            self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        x, w = self.get_input_partial_shape(0), self.get_input_partial_shape(1)
        self.set_output_type(0, self.get_input_element_type(0), ov.PartialShape([x[0], w[1], x[2]]))

    def clone_with_new_inputs(self, inputs: Any) -> Projection:
        return Projection(inputs)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: Any, inputs: Any) -> bool:
        found = np.einsum("bit,io->bot", *(one.data for one in inputs))
        outputs[0].shape = found.shape
        outputs[0].data[:] = found
        return True


def values(shape: tuple[int, ...]) -> np.ndarray:
    """Weights `[out, in]` whose channels matter differently."""
    random = np.random.default_rng(shape[0])
    return (random.standard_normal(shape) * np.exp(random.standard_normal(shape[1]) / 2) / 8).astype(np.float32)


def projection(x: Any, weight: np.ndarray) -> Any:
    return Projection([x, constant(weight, turned=True)])


def projection_twin(x: Any, weight: np.ndarray) -> Any:
    return op.matmul(constant(weight, turned=True), x, True, False)


def einsum(x: Any, weight: np.ndarray) -> Any:
    return op.einsum([constant(weight), x], "oi,bti->bto")


def einsum_twin(x: Any, weight: np.ndarray) -> Any:
    return op.matmul(x, constant(weight), False, True)


def constant(weight: np.ndarray, *, turned: bool = False) -> Any:
    found = op.constant(np.ascontiguousarray(weight.T if turned else weight))
    found.set_friendly_name(f"weight_{len(weight)}")
    return found


def network(layer: Any, *, last: bool) -> ov.Model:
    """A gain, a layer, ReLU, a layer; channels are the last dimension or the one before."""
    x = op.parameter([-1, -1, IN] if last else [-1, IN, -1], np.float32, name="x")
    gain = (
        np.exp(np.random.default_rng(1).standard_normal(IN))
        .astype(np.float32)
        .reshape([1, 1, IN] if last else [1, IN, 1])
    )
    first = layer(op.multiply(x, op.constant(gain)), values((HIDDEN, IN)))
    second = layer(op.relu(first), values((OUT, HIDDEN)))
    first.set_friendly_name("first")
    second.set_friendly_name("second")
    return ov.Model([op.result(second.output(0))], [x], "own")


OWN = {
    "channels in the middle": (
        projection,
        projection_twin,
        {("Projection", 1): Role(channel=(1,), reduction=(0,), activation=Activation(0, (-2,), output=(-2,)))},
        False,
    ),
    "einsum": (
        einsum,
        einsum_twin,
        {("Einsum", 0): Role(channel=(0,), reduction=(1,), activation=Activation(1))},
        True,
    ),
}
DATA = [np.random.default_rng(7 + n).standard_normal((2, 5, IN)).astype(np.float32) for n in range(4)]


def data(last: bool) -> list[np.ndarray]:
    return [np.ascontiguousarray(one if last else one.swapaxes(1, 2)) for one in DATA]


def bytes_of_constants(model: ov.Model) -> dict[str, bytes]:
    return {
        name: node.get_tensor_view().data.tobytes()
        for name, node in constants(model).items()
        if not name.startswith("Constant_")
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accuracy": "fast"},
        {"gptq": True},
        {"awq": True, "scale_estimation": True},
        {"awq": True},
        {"lora_correction": True, "lora_rank": 4},
    ],
    ids=["no data", "fast", "gptq", "awq", "awq without data", "lora"],
)
@pytest.mark.parametrize("name", OWN)
def test_an_operation_of_ones_own_is_compressed_as_a_matmul_is(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte in f32; in bf16 the operations themselves round otherwise."""
    monkeypatch.setattr(runner, "computes_bf16", lambda: False)
    layer, twin, roles, last = OWN[name]
    given = {"mode": "int4_sym", "group_size": 32, "all_layers": True, "lazy": False, **options}
    if set(options) - {"awq"}:
        given["dataset"] = data(last)
    found = owc.apply_weight_compression(network(layer, last=last), roles=roles, **given)
    expected = owc.apply_weight_compression(network(twin, last=last), **given)
    own = [one for one in find_compressed(found, roles) if "lora" not in one.name]
    assert [(one.name, one.format) for one in own] == [("weight_96", "i4, group 32"), ("weight_48", "i4, group 32")]
    assert bytes_of_constants(found) == bytes_of_constants(expected)
    feed = {0: data(last)[0]}
    np.testing.assert_allclose(run(found, feed)[0], run(expected, feed)[0], rtol=1e-4, atol=1e-4)


def test_values_against_numpy() -> None:
    layer, _, roles, last = OWN["channels in the middle"]
    model = owc.apply_weight_compression(network(layer, last=last), mode="int8_asym", roles=roles)
    x = data(last)[0]
    gain = np.exp(np.random.default_rng(1).standard_normal(IN)).astype(np.float32)[:, None]
    hidden = np.maximum(values((HIDDEN, IN)) @ (x * gain), 0)
    expected = values((OUT, HIDDEN)) @ hidden
    found = run(model, {0: x})[0]
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("name", OWN)
def test_verify_compares_it_with_numpy(name: str) -> None:
    layer, _, roles, last = OWN[name]
    model = owc.apply_weight_compression(network(layer, last=last), mode="int8_asym", roles=roles, lazy=False)
    found = owc.verify(model, roles=roles)
    assert [(check.layer, check.reason) for check in found.checks] == [("first", ""), ("second", "")]
    assert found.ok
    other = {key: Role(channel=row.reduction, reduction=row.channel) for key, row in roles.items()}
    assert {check.reason for check in owc.verify(model, roles=other).checks} == {
        f"a {next(iter(roles))[0]} is not compared"
    }


@pytest.mark.parametrize("name", OWN)
def test_compare_measures_its_outputs(name: str) -> None:
    layer, twin, roles, last = OWN[name]
    given = {"mode": "int4_sym", "group_size": 32, "all_layers": True, "awq": True, "lazy": False}
    rows = []
    for build, more in ((layer, {"roles": roles}), (twin, {})):
        base, compressed = network(build, last=last), network(build, last=last)
        owc.apply_weight_compression(compressed, **given, **more)
        found = owc.compare(base, compressed, {"x": data(last)[0]}, **more)
        rows.append([(one.layer, one.weight_snr_db, one.output_snr_db, one.own_snr_db) for one in found.layers])
    assert [row[0] for row in rows[0]] == ["first", "second"]
    for own, other in zip(*rows, strict=True):
        assert own[1:] == pytest.approx(other[1:], abs=0.05)


def test_inspect_and_decompression_know_it_by_the_same_table() -> None:
    layer, _, roles, last = OWN["einsum"]
    model = owc.apply_weight_compression(network(layer, last=last), mode="int8_sym", roles=roles)
    assert [one.mode for one in owc.inspect(model, roles=roles).weights] == ["int8_sym", "int8_sym"]
    assert owc.inspect(model).weights == ()
    owc.apply_weight_decompression(model, roles=roles)
    assert find_compressed(model, roles) == []
    assert not owc.verify(model, roles=roles).checks


def test_the_report_says_that_cpus_expand_it() -> None:
    layer, _, roles, last = OWN["einsum"]
    compression = owc.WeightCompression(mode="int4_sym", all_layers=True, group_size=32, roles=roles)
    compression.run_on_model(network(layer, last=last))
    (warning,) = compression.report.warnings
    assert warning.startswith("CPU expands 2 weights in int4_sym (operation of one's own) to floats when it compiles")


def test_without_a_role_the_report_says_so() -> None:
    layer, _, _, last = OWN["channels in the middle"]
    compression = owc.WeightCompression()
    compression.run_on_model(network(layer, last=last))
    assert {skip.reason for skip in compression.report.skips} == {
        "feeds only Projection, which takes no compressed weights"
    }


def test_a_row_may_look_at_the_operation_and_refuse() -> None:
    def row(node: ov.Node, port: int, shape: tuple[int, ...]) -> Role | Refusal:
        if shape[1] == OUT:
            return Refusal("the last projection stays as it is")
        return Role(Kind.MATMUL, channel=(1,), reduction=(0,))

    layer, _, _, last = OWN["channels in the middle"]
    compression = owc.WeightCompression(roles={("Projection", 1): row})
    compression.run_on_model(network(layer, last=last))
    assert [skip.reason for skip in compression.report.skips] == ["the last projection stays as it is"]
    assert [one.name for one in compression.report.rows] == ["weight_96"]


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], r"roles: must be a dict, as in \{\('MyLinear', 1\): Role\(.*got \[\]"),
        ({"Einsum": Role()}, r"roles: 'Einsum' is no operation's type name and port"),
        ({("Einsum", -1): Role()}, r"roles: \('Einsum', -1\) is no operation's type name and port"),
        ({("Einsum", 0): "matmul"}, r"roles\['Einsum', 0\]: must be a Role, or a function .* got 'matmul'"),
        (
            {("Einsum", 0): Role(activation=Activation(0))},
            r"roles\['Einsum', 0\]: the activation's port is the weight's",
        ),
        ({("Einsum", 0): lambda node, port, shape: "no"}, r"roles\['Einsum', 0\]: must return a Role or a Refusal"),
    ],
)
def test_what_is_no_table_of_roles(roles: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        owc.apply_weight_compression(network(einsum, last=True), roles=roles)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Role(channel=(0,), reduction=(2,)), "together they must be all dimensions of the weight"),
        (lambda: Role(channel=(0, 1), reduction=()), "it must be reduced over one at least"),
        (
            lambda: Role(activation=Activation(0, (1,))),
            r"Activation\(reduction=\(1,\)\): dimensions are counted from the end",
        ),
        (
            lambda: Role(activation=Activation(0, (-1, -2))),
            r"Activation\(reduction=\(-1, -2\)\)\): there must be one for",
        ),
    ],
)
def test_a_role_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


def test_a_role_that_does_not_fit_the_operation() -> None:
    wrong = Role(channel=(1,), reduction=(0,), activation=Activation(1))
    compression = owc.WeightCompression(roles={("Einsum", 0): wrong})
    compression.run_on_model(network(einsum, last=True))
    assert [skip.reason for skip in compression.report.skips] == [
        f"its role in Einsum does not fit: the activation has {IN} channels there, and the weight {HIDDEN}",
        f"its role in Einsum does not fit: the activation has {HIDDEN} channels there, and the weight {OUT}",
    ]
