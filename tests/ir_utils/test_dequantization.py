"""The chain as a drawing, its values, its marks, and how it takes a constant's place."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op
from openvino.passes import ConstantFolding, Manager

from ov_weight_compression.ir_utils.dequantization import (
    ChainParts,
    build_dequantization,
    protect_from_folding,
    replace_constant,
)
from tests.models import constant
from tests.running import run

MARK = "DisableConstantFolding_0"


def of_type(kind: str, shape: tuple[int, ...], fill: int = 1) -> ov.Node:
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(list(shape)))
    tensor.data.reshape(-1).view(np.uint8)[:] = fill
    return op.constant(tensor)


def drawing(node: ov.Node) -> str:
    """`Multiply:f16(Convert:f16(u4[4,2,8]), f16[4,2,1])`: operations with their types, constants with their shapes."""
    kind = node.get_output_element_type(0).get_type_name()
    if node.get_type_name() == "Constant":
        return f"{kind}{list(node.get_output_shape(0))}".replace(" ", "")
    inputs = ", ".join(drawing(value.get_node()) for value in node.input_values())
    return f"{node.get_type_name()}:{kind}({inputs})"


def nodes_of(node: ov.Node) -> list[ov.Node]:
    return [node, *(found for value in node.input_values() for found in nodes_of(value.get_node()))]


CHAINS = {
    "int8_asym": (
        {"codes": ("u8", (4, 16)), "zero_point": ("u8", (4, 1)), "scale": ("f16", (4, 1))},
        "Multiply:f16(Subtract:f16(Convert:f16(u8[4,16]), Convert:f16(u8[4,1])), f16[4,1])",
    ),
    "int8_sym": (
        {"codes": ("i8", (4, 16)), "scale": ("f16", (4, 1))},
        "Multiply:f16(Convert:f16(i8[4,16]), f16[4,1])",
    ),
    "int4_asym": (
        {"codes": ("u4", (4, 2, 8)), "zero_point": ("u4", (4, 2, 1)), "scale": ("f16", (4, 2, 1))},
        "Reshape:f16(Multiply:f16(Subtract:f16(Convert:f16(u4[4,2,8]), Convert:f16(u4[4,2,1])), f16[4,2,1]), i64[2])",
    ),
    "f32 scales": (
        {"codes": ("i4", (4, 16)), "scale": ("f32", (4, 1))},
        "Multiply:f32(Convert:f32(i4[4,16]), f32[4,1])",
    ),
    "int2_sym": (
        {"codes": ("u2", (4, 16)), "zero_point": ("i8", ()), "scale": ("f16", (4, 1))},
        "Multiply:f16(Subtract:f16(Convert:f16(u2[4,16]), Convert:f16(i8[])), f16[4,1])",
    ),
    "mxfp4": (
        {"codes": ("f4e2m1", (4, 2, 8)), "scale": ("f8e8m0", (4, 2, 1))},
        "Reshape:f16(Multiply:f16(Convert:f16(f4e2m1[4,2,8]), Convert:f16(f8e8m0[4,2,1])), i64[2])",
    ),
    "nvfp4": (
        {"codes": ("f4e2m1", (4, 2, 8)), "scale": ("f8e4m3", (4, 2, 1)), "tensor_scale": ("f32", ())},
        "Reshape:f16(Multiply:f16(Convert:f16(f4e2m1[4,2,8]), "
        "Convert:f16(Multiply:f32(Convert:f32(f8e4m3[4,2,1]), f32[]))), i64[2])",
    ),
    "codebook": (
        {"codes": ("u4", (4, 16)), "scale": ("f16", (4, 1)), "table": ("f8e4m3", (16,))},
        "Multiply:f32(Gather:f32(Convert:f32(f8e4m3[16]), Convert:i32(u4[4,16]), i32[]), Convert:f32(f16[4,1]))",
    ),
    "int3_sym": (
        {"codes": ("u3", (4, 16)), "zero_point": ("i8", ()), "scale": ("f16", (4, 1))},
        "Multiply:f32(Subtract:f32(Convert:f32(u3[4,16]), Convert:f32(i8[])), Convert:f32(f16[4,1]))",
    ),
}


def parts_of(name: str) -> ChainParts:
    return ChainParts(**{part: of_type(kind, shape) for part, (kind, shape) in CHAINS[name][0].items()})


@pytest.mark.parametrize("name", CHAINS)
def test_the_chain_of_a_format(name: str) -> None:
    chain = build_dequantization(parts_of(name), "weight", (4, 16))
    assert drawing(chain) == CHAINS[name][1]
    assert list(chain.get_output_shape(0)) == [4, 16]


@pytest.mark.parametrize("name", CHAINS)
def test_every_operation_is_named_after_the_weight(name: str) -> None:
    for node in nodes_of(build_dequantization(parts_of(name), "layers.3.weight", (4, 16))):
        if node.get_type_name() != "Constant":
            assert node.get_friendly_name().startswith("layers.3.weight/")


@pytest.mark.parametrize("name", ["int8_asym", "int8_sym", "int4_asym", "f32 scales", "int2_sym", "mxfp4", "nvfp4"])
def test_operations_are_marked_and_constants_are_not(name: str) -> None:
    chain = build_dequantization(parts_of(name), "weight", (4, 16))
    marked = {node.get_friendly_name() for node in nodes_of(chain) if MARK in node.get_rt_info()}
    assert {"weight/convert", "weight/multiply"} <= marked
    for node in nodes_of(chain):
        if node.get_type_name() == "Constant" and node.get_output_element_type(0) != ov.Type.i64:
            assert MARK not in node.get_rt_info()


@pytest.mark.parametrize("name", ["codebook", "int3_sym"])
def test_what_the_plugin_folds_is_marked_as_a_decompression(name: str) -> None:
    chain = build_dequantization(parts_of(name), "weight", (4, 16))
    both = [node for node in nodes_of(chain) if MARK in node.get_rt_info()]
    assert {node.get_type_name() for node in both} == {"Convert"}
    assert all("decompression_0" in node.get_rt_info() for node in both)


def test_expanded_and_wide_chains_compute_in_f32() -> None:
    for options in ({"expanded": True}, {"wide": True}):
        chain = build_dequantization(parts_of("int8_sym"), "weight", (4, 16), **options)
        assert drawing(chain) == "Multiply:f32(Convert:f32(i8[4,16]), Convert:f32(f16[4,1]))"


def test_values() -> None:
    codes = op.constant(np.array([[[0, 1], [2, 3]], [[4, 5], [6, 255]]], np.uint8))
    zeros = op.constant(np.array([[[1], [2]], [[3], [4]]], np.uint8))
    scales = op.constant(np.array([[[1], [0.5]], [[2], [-1]]], np.float16))
    chain = build_dequantization(ChainParts(codes=codes, zero_point=zeros, scale=scales), "weight", (2, 4))
    x = op.parameter([-1, 4], np.float32)
    model = ov.Model([op.result(op.matmul(x, op.convert(chain, "f32"), False, True))], [x])
    assert run(model, {0: np.eye(4, dtype=np.float32)})[0].T.tolist() == [[-1, 0, 0, 0.5], [2, 4, -2, -251]]


class TestReplacing:
    """The chain in a constant's place."""

    def chain(self, kind: str = "f16") -> ov.Node:
        name = "int8_sym" if kind == "f16" else "f32 scales"
        return build_dequantization(parts_of(name), "weight", (4, 16))

    def read(self, weight: ov.Node, *through: str) -> tuple[ov.Node, ov.Node]:
        """A MatMul that reads the weight, through Converts; with the chain in place afterwards."""
        value: ov.Node = weight
        for kind in through:
            value = op.convert(value, kind)
        x = op.parameter([-1, 16], np.float32)
        return op.matmul(x, value, False, True), x

    @pytest.mark.parametrize(
        ("own", "through", "produced", "expected"),
        [
            ("f32", (), "f16", "Convert:f32(Multiply:f16"),
            ("f32", (), "f32", "Multiply:f32"),
            ("f16", ("f32",), "f16", "Convert:f32(Multiply:f16"),
            ("f16", ("f32",), "f32", "Multiply:f32"),
            ("bf16", ("f32",), "f16", "Convert:f32(Multiply:f16"),
            ("f64", ("f32",), "f16", "Convert:f32(Multiply:f16"),
        ],
    )
    def test_types_meet(self, own: str, through: tuple[str, ...], produced: str, expected: str) -> None:
        weight = constant((4, 16), dtype=own)
        layer, x = self.read(weight, *through)
        replace_constant(weight, self.chain(produced))
        assert drawing(layer.input_value(1).get_node()).startswith(expected)
        ov.Model([op.result(layer)], [x]).validate_nodes_and_infer_types()
        assert not weight.output(0).get_target_inputs()

    def test_every_consumer_gets_it_and_one_convert_serves_all(self) -> None:
        weight = constant((4, 16))
        layers = [self.read(weight)[0] for _ in range(3)]
        table = op.gather(weight, op.parameter([-1], np.int64), op.constant(np.int64(0)))
        replace_constant(weight, self.chain())
        ends = {layer.input_value(1).get_node().get_friendly_name() for layer in layers}
        assert ends == {table.input_value(0).get_node().get_friendly_name()} == {"weight/as_f32"}

    def test_the_convert_behind_it_is_protected_too(self) -> None:
        weight = constant((4, 16))
        layer, _ = self.read(weight)
        replace_constant(weight, self.chain())
        assert MARK in layer.input_value(1).get_node().get_rt_info()


def test_protection_holds_against_constant_folding() -> None:
    kept, folded = op.convert(constant((2, 2)), "f16"), op.convert(constant((2, 2)), "f16")
    protect_from_folding(kept)
    model = ov.Model([op.result(kept), op.result(folded)], [])
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    assert [result.input_value(0).get_node().get_type_name() for result in model.results] == ["Convert", "Constant"]
