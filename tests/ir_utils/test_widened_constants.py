"""16-bit constants that stand for f32 ones: the bytes are those of f32 constants, whatever becomes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as opset
import pytest

from ov_weight_compression.checkpoints import mapped_constants
from ov_weight_compression.checkpoints.safetensors_file import read_header
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.weight_source import float_constants, widened
from ov_weight_compression.passes import apply_weight_compression
from ov_weight_compression.patterns import find_weights
from ov_weight_compression.patterns.graphs import graphs_of
from tests.checkpoints.files import write_tensors

BITS = np.random.default_rng(3).standard_normal((2, 128, 96)).astype(np.float32)


def values(kind: str) -> np.ndarray:
    """Two matrices in a type of 16 bits; bf16 as its bits."""
    return BITS.astype(np.float16) if kind == "f16" else (BITS.view(np.uint32) >> 16).astype(np.uint16)


def wide(kind: str) -> np.ndarray:
    """The same in f32."""
    stored = values(kind)
    return stored.astype(np.float32) if kind == "f16" else (stored.astype(np.uint32) << 16).view(np.float32)


def model_of(weights: list[ov.Node]) -> ov.Model:
    """A table and a layer, of which the layer stays float."""
    ids = opset.parameter([-1], ov.Type.i64, name="ids")
    hidden = opset.gather(weights[0], ids, opset.constant(0))
    return ov.Model([opset.matmul(hidden, weights[1], False, True)], [ids], "model")


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["int4_sym", "int8_asym"])
def test_the_same_bytes_as_from_f32(kind: str, mode: str, tmp_path: Path) -> None:
    tensors = read_header(write_tensors(tmp_path / "t", dict(zip("ab", values(kind), strict=True)))).tensors
    stored = mapped_constants([tensors["a"], tensors["b"]])
    plain = [opset.constant(matrix) for matrix in wide(kind)]
    for name, first, second in zip("ab", stored, plain, strict=True):
        first.set_friendly_name(name)
        second.set_friendly_name(name)
    models = [model_of([widened(constant) for constant in stored]), model_of(plain)]
    found, expected = (find_weights(model)[0] for model in models)
    assert [(weight.name, weight.element_type, weight.layout) for weight in found] == [
        (weight.name, "f32", weight.layout) for weight in expected
    ]
    for name, model in zip(("stored", "plain"), models, strict=True):
        apply_weight_compression(model, mode=mode, ignored_scope=["b"])
        for graph in graphs_of(model):
            float_constants(graph.operations, 1)
        save_model(model, tmp_path / f"{name}.xml")
    assert (tmp_path / "stored.bin").read_bytes() == (tmp_path / "plain.bin").read_bytes()
    read = ov.Core().read_model(tmp_path / "stored.xml")
    (left,) = (node for node in read.get_ordered_ops() if node.get_friendly_name() == "b")
    assert left.get_element_type() == ov.Type.f32
    np.testing.assert_array_equal(left.data, wide(kind)[1])
