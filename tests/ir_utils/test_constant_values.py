"""Chains evaluated in pieces come to what OpenVINO computes from them in f32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.constant_values import ConstantValues
from ov_weight_compression.ir_utils.lazy_weight import postponed_constant
from tests.running import EXACT

SEED = np.random.default_rng(3)


def constant(kind: str, shape: tuple[int, ...]) -> ov.Node:
    """Bytes that are finite in every type."""
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape(shape))
    data = tensor.data.reshape(-1).view(np.uint8)
    data[:] = SEED.integers(0x30, 0x3F, data.size, dtype=np.uint8)
    return op.constant(tensor)


def grouped(kind: str, shape: tuple[int, ...], scale: tuple[int, ...], to: tuple[int, ...]) -> ov.Node:
    value = op.subtract(op.convert(constant(kind, shape), "f32"), op.convert(constant("u8", scale), "f32"))
    value = op.multiply(value, op.convert(constant("f16", scale), "f32"))
    return op.reshape(value, op.constant(np.array(to)), False)


def two_level() -> ov.Node:
    scale = op.multiply(op.convert(constant("f8e4m3", (48, 4, 1)), "f32"), constant("f32", (1, 1, 1)))
    value = op.multiply(op.convert(constant("f4e2m1", (48, 4, 16)), "f32"), op.convert(op.convert(scale, "f16"), "f32"))
    return op.reshape(value, op.constant(np.array([48, 64])), False)


def codebook() -> ov.Node:
    indices = op.convert(op.constant(ov.Tensor(SEED.integers(0, 16, (48, 64), dtype=np.uint8))), "i32")
    value = op.gather(op.convert(constant("f8e4m3", (16,)), "f32"), indices, op.constant(np.int64(0)))
    return op.multiply(value, op.convert(constant("f16", (48, 1)), "f32"))


def transposed() -> ov.Node:
    return op.transpose(grouped("u4", (48, 4, 16), (48, 4, 1), (48, 64)), op.constant(np.array([1, 0])))


def blocks() -> ov.Node:
    value = op.reshape(op.convert(constant("f8e5m2", (48, 64)), "f32"), op.constant(np.array([3, 16, 4, 16])), False)
    value = op.multiply(value, constant("f32", (3, 1, 4, 1)))
    return op.reshape(value, op.constant(np.array([48, 64])), False)


def of_numbers() -> ov.Node:
    """An operation that is evaluated by OpenVINO itself."""
    return op.multiply(op.convert(constant("u3", (5, 7)), "f32"), op.sqrt(op.constant(np.float32(2))))


CHAINS: dict[str, Callable[[], ov.Node]] = {
    "per channel": lambda: op.multiply(op.convert(constant("i8", (48, 64)), "f32"), constant("f32", (48, 1))),
    "per tensor": lambda: op.multiply(op.convert(constant("i8", (48, 64)), "f32"), constant("f32", ())),
    "u4": lambda: grouped("u4", (48, 4, 16), (48, 4, 1), (48, 64)),
    "u3": lambda: grouped("u3", (48, 4, 16), (48, 4, 1), (48, 64)),
    "nf4": lambda: grouped("nf4", (48, 4, 16), (1,), (48, 64)),
    "odd rows": lambda: grouped("u4", (7, 3, 5), (7, 3, 1), (7, 15)),
    "transposed groups": lambda: grouped("u4", (4, 16, 48), (4, 1, 48), (64, 48)),
    "experts": lambda: grouped("i4", (3, 48, 4, 16), (3, 48, 4, 1), (3, 48, 64)),
    "transposed experts": lambda: grouped("i4", (3, 4, 16, 48), (3, 4, 1, 48), (3, 64, 48)),
    "experts with scales in common": lambda: grouped("i4", (3, 48, 4, 16), (1, 48, 4, 1), (3, 48, 64)),
    "experts with a scale each": lambda: grouped("i4", (3, 48, 4, 16), (3, 1, 1, 1), (3, 48, 64)),
    "convolution": lambda: op.multiply(op.convert(constant("u8", (9, 8, 3, 3)), "f32"), constant("f32", (9, 1, 1, 1))),
    "two levels": two_level,
    "codebook": codebook,
    "transposed": transposed,
    "blocks": blocks,
    "something else": of_numbers,
    "a scalar": lambda: constant("f32", ()),
    "a vector": lambda: op.multiply(op.convert(constant("u4", (37,)), "f32"), op.constant(np.float32(0.25))),
}


def computed(node: ov.Node) -> Any:
    model = ov.Model([op.result(op.convert(node, "f32"))], [], "chain")
    return np.array(ov.Core().compile_model(model, "CPU", EXACT)([])[0])


@pytest.mark.parametrize("piece", [1 << 21, 512, 24])
@pytest.mark.parametrize("name", CHAINS)
def test_pieces_are_what_openvino_computes(name: str, piece: int) -> None:
    node = CHAINS[name]()
    pieces = list(ConstantValues(node.output(0), elements=piece, align=16).pieces())
    assert [one.dtype for one in pieces] == [np.dtype(np.float32)] * len(pieces)
    np.testing.assert_array_equal(np.concatenate(pieces), computed(node).reshape(-1))


@pytest.mark.parametrize("name", CHAINS)
def test_any_rows(name: str) -> None:
    node = CHAINS[name]()
    shape = tuple(node.get_output_shape(0))
    for lead in range(1, max(2, len(shape))):
        values = ConstantValues(node.output(0), lead)
        count = int(np.prod(shape[:lead]))
        expected = computed(node).reshape(count, *shape[lead:])
        for start, stop in ((0, 1), (count // 3, count // 3 + 1), (count // 2, count), (0, count)):
            np.testing.assert_array_equal(values.rows(start, stop), expected[start:stop])
        np.testing.assert_array_equal(values.whole(), computed(node))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_scales_are_rounded_as_the_graph_has_them(kind: str) -> None:
    factors = np.concatenate([SEED.standard_normal(4000), 2.0 ** SEED.integers(-12, 12, 96) * (1 + 2**-9 + 2**-11)])
    scale = op.constant(factors.astype(np.float32).reshape(-1, 1))
    node = op.convert(op.convert(op.multiply(scale, op.constant(np.float32(1.0001))), kind), "f32")
    np.testing.assert_array_equal(ConstantValues(node.output(0)).whole(), computed(node))


def test_pieces_are_small() -> None:
    """Experts are cut below the size of one."""
    values = ConstantValues(CHAINS["experts"]().output(0), elements=1024, align=16)
    sizes = [one.size for one in values.pieces()]
    assert sizes == [1024] * 9


def test_a_postponed_constant_is_made_once() -> None:
    made = []

    def make() -> ov.Tensor:
        made.append(1)
        tensor = ov.Tensor(ov.Type.i8, ov.Shape([64, 32]))
        tensor.data[:] = np.arange(32)
        return tensor

    codes = postponed_constant(ov.Type.i8, ov.Shape([64, 32]), make)
    value = op.multiply(op.convert(codes, "f32"), op.constant(np.float32(2)))
    pieces = list(ConstantValues(value.output(0), elements=512, align=16).pieces())
    assert len(pieces) == 4
    assert made == [1]
    np.testing.assert_array_equal(np.concatenate(pieces), np.tile(np.arange(32, dtype=np.float32) * 2, 64))
