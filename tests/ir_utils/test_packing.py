"""The package's bit layouts against OpenVINO's own tensors."""

import math

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest

from ov_weight_compression.ir_utils.types import PACKED_BITS, pack, tensor_bytes

TYPES = {"u1": 1, "u2": 2, "u3": 3, "u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "u6": 6, "u8": 8, "f8e4m3": 8, "u16": 16}


def converted(parts: list[np.ndarray], type_name: str, count: int) -> list[np.ndarray]:
    """What OpenVINO's Convert reads in each run of packed bytes, as f32 arrays of ``count`` elements."""
    outputs = []
    for packed in parts:
        tensor = ov.Tensor(getattr(ov.Type, type_name), ov.Shape([count]))
        tensor.data.reshape(-1).view(np.uint8)[:] = packed
        outputs.append(op.convert(op.constant(tensor), "f32"))
    results = ov.Core().compile_model(ov.Model(outputs, []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])
    return [results[k] for k in range(len(parts))]


@pytest.mark.parametrize("type_name", TYPES)
def test_openvino_reads_each_element_where_pack_put_it(type_name: str) -> None:
    bits = TYPES[type_name]
    rng = np.random.default_rng(bits)
    dtype = np.uint16 if bits == 16 else np.uint8
    used = rng.choice(1 << bits, min(1 << bits, 64), replace=False).astype(dtype)
    if type_name == "f8e4m3":
        used = used[used & 0x7F != 0x7F]
    # The value of a code is what OpenVINO says of a tensor that holds this one code alone, first and therefore
    # at a place that needs no layout but the first element's.
    alone = converted([pack(code[None], bits) for code in used], type_name, 1)
    values = dict(zip(used.tolist(), (float(v[0]) for v in alone), strict=True))
    assert len(set(values.values())) >= len(values) - 1  # -0.0 and 0.0 at most fall together
    for count in (*range(1, 10), 15, 17, 29, 96):
        codes = rng.choice(used, count)
        (read,) = converted([pack(codes, bits)], type_name, count)
        np.testing.assert_array_equal(read, [values[c] for c in codes.tolist()])


@pytest.mark.parametrize("bits", PACKED_BITS)
@pytest.mark.parametrize("count", range(1, 20))
def test_as_many_bytes_as_a_tensor_takes(bits: int, count: int) -> None:
    codes = np.random.default_rng(count).integers(0, 1 << bits, count).astype(np.uint16 if bits == 16 else np.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == tensor_bytes(count, bits)


@pytest.mark.parametrize(("type_name", "bits"), [("u1", 1), ("u2", 2), ("u3", 3), ("u4", 4), ("u6", 6), ("u16", 16)])
def test_packed_size_is_the_tensor_s(type_name: str, bits: int) -> None:
    for count in range(1, 20):
        assert tensor_bytes(count, bits) == ov.Tensor(getattr(ov.Type, type_name), ov.Shape([count])).byte_size


@pytest.mark.parametrize("type_name", [*TYPES, "boolean", "bf16", "f32", "f64"])
@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 5), (3, 3)])
def test_a_tensor_of_any_type_takes_what_openvino_says(type_name: str, shape: tuple[int, ...]) -> None:
    kind = getattr(ov.Type, type_name)
    assert tensor_bytes(math.prod(shape), kind.bitwidth) == ov.Tensor(kind, ov.Shape(list(shape))).byte_size


def test_shape_does_not_matter() -> None:
    codes = np.arange(15, dtype=np.uint8).reshape(3, 5)
    np.testing.assert_array_equal(pack(codes, 4), pack(codes.reshape(-1), 4))
    np.testing.assert_array_equal(pack(codes.T, 4), pack(codes.T.copy(), 4))


def test_a_width_that_no_type_has_is_refused() -> None:
    with pytest.raises(ValueError, match="bits is 5"):
        pack(np.zeros(3, np.uint8), 5)
