"""The table of formats, and the values of their codes as OpenVINO reads them."""

import math

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest

from ov_weight_compression.ir_utils.types import pack
from ov_weight_compression.quantization import FORMATS, PER_CHANNEL, Spec, with_codebook
from ov_weight_compression.quantization.formats import CB4, E2M1, E4M3, NF4, round_to_type
from ov_weight_compression.quantization.reference import decode_codes


def read_by_openvino(codes: np.ndarray, type_name: str, bits: int) -> np.ndarray:
    tensor = ov.Tensor(getattr(ov.Type, type_name), ov.Shape([codes.size]))
    tensor.data.reshape(-1).view(np.uint8)[:] = pack(codes, bits)
    model = ov.Model([op.convert(op.constant(tensor), "f32")], [])
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.codebook_type is None])
def test_every_code_means_what_openvino_reads(name: str) -> None:
    """All 2^b codes of each storage type, with scale 1 and zero point 0 (or the format's own)."""
    row = FORMATS[name]
    codes = np.arange(1 << row.bits, dtype=np.uint8)
    read = read_by_openvino(codes, row.storage, row.bits) - np.float32(row.zero_value)
    zero_point = np.zeros(1, np.uint8) if row.asymmetric else None
    np.testing.assert_array_equal(decode_codes(codes, np.ones(1, np.float32), zero_point, row), read)


def test_scale_types_are_openvino_s() -> None:
    codes = np.arange(255, dtype=np.uint8)
    np.testing.assert_array_equal(read_by_openvino(codes[1:], "f8e8m0", 8), 2.0 ** (codes[1:].astype(float) - 127))
    np.testing.assert_array_equal(read_by_openvino(codes[:127], "f8e4m3", 8), np.array(E4M3[:127], np.float32))


def test_definitions() -> None:
    assert E2M1[:8] == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert max(v for v in E4M3 if not math.isnan(v)) == 448
    assert min(v for v in E4M3 if v > 0) == 2.0**-9
    assert [k for k, v in enumerate(E4M3) if math.isnan(v)] == [0x7F, 0xFF]
    assert len(NF4) == len(CB4) == 16
    assert sorted(NF4) == list(NF4)
    assert (NF4[0], NF4[7], NF4[15]) == (-1, 0, 1)
    assert all(value in E4M3 for value in CB4)


def test_levels_and_tops() -> None:
    tops = {"int8_asym": 255, "int8_sym": 128, "int4_asym": 15, "int4_sym": 8, "int3_sym": 4, "int2_sym": 2}
    tops |= {"int2_asym": 3, "nf4": 1, "fp4": 6, "mxfp4": 6, "nvfp4": 6, "fp8_e4m3": 448, "mxfp8_e4m3": 448, "cb4": 3.5}
    assert {name: FORMATS[name].top for name in tops} == tops
    assert (FORMATS["int4_sym"].low, FORMATS["int4_sym"].high) == (-8, 7)
    assert (FORMATS["int4_asym"].low, FORMATS["int4_asym"].high) == (0, 15)
    assert [row.zero_value for row in (FORMATS["int3_sym"], FORMATS["int2_sym"])] == [4, 2]


def test_every_format_of_four_bits_and_fewer_is_searched() -> None:
    for name, row in FORMATS.items():
        assert (row.default_search > 0) == (row.bits <= 4), name


def test_specs_refuse_what_cannot_be() -> None:
    assert Spec(FORMATS["int4_sym"]).group_size == PER_CHANNEL
    with pytest.raises(ValueError, match="group_size is 64, must be 32 for mxfp4"):
        Spec(FORMATS["mxfp4"], 64, "f8e8m0")
    with pytest.raises(ValueError, match="group_size is 0"):
        Spec(FORMATS["int4_sym"], 0)
    with pytest.raises(ValueError, match="scale_type is 'f16', must be f8e4m3 for nvfp4"):
        Spec(FORMATS["nvfp4"], 16, "f16")
    with pytest.raises(ValueError, match="search is -1"):
        Spec(FORMATS["int4_sym"], 64, search=-1)
    with pytest.raises(ValueError, match="a row of 100 weights cannot be cut into groups of 64"):
        Spec(FORMATS["int4_sym"], 64).group_of(100)


def test_tables_of_one_s_own() -> None:
    row = FORMATS["codebook"]
    assert (with_codebook(row, [-1, 1], "i8").storage, with_codebook(row, range(17), "i8").storage) == ("u4", "u8")
    assert with_codebook(row, np.linspace(-1, 1, 257), "f16").bits == 16
    rounded = with_codebook(row, [-1.03, 0.2, 500, -1e9], "f8e4m3").levels
    assert rounded == (-1.0, 0.203125, 448.0, -448.0)
    assert with_codebook(row, [-1.0, 0.203125, 448], "f8e4m3").table.tolist() == [0xB8, 0x25, 0x7E]
    assert with_codebook(row, [-3, 100], "i8").table.dtype == np.int8
    assert FORMATS["nf4"].table is None


@pytest.mark.parametrize(
    ("table", "table_type", "message"),
    [
        ([1.0], "f16", "shape \\[1\\]"),
        ([[1.0, 2.0]], "f16", "shape \\[1, 2\\]"),
        ([0.0, math.nan], "f16", "NaN"),
        ([0.0, 1e-5], "f8e4m3", "nothing but zeros"),
        ([0.0, 1.0], "u16", "codebook type is 'u16', must be one of"),
    ],
)
def test_tables_that_cannot_be_used(table: list, table_type: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_codebook(FORMATS["codebook"], table, table_type)


def test_rounding_to_e4m3_is_openvino_s() -> None:
    values = np.array(E4M3[:127], np.float64)
    middles = (values[1:] + values[:-1]) / 2
    probes = np.concatenate([middles, np.nextafter(middles, 0), np.nextafter(middles, 1e9), values]).astype(np.float32)
    probes = np.concatenate([probes, -probes])
    there = op.convert(op.convert(op.constant(probes), ov.Type.f8e4m3), ov.Type.f32)
    expected = ov.Core().compile_model(ov.Model([there], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
    np.testing.assert_array_equal(round_to_type(probes, "f8e4m3"), expected)
