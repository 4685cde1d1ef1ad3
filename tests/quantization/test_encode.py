"""encode_rows and decode_rows: what every caller relies on."""

import threading
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ov_weight_compression.ir_utils.file_io import FileMappings, FileRows
from ov_weight_compression.ir_utils.types import pack
from ov_weight_compression.quantization import (
    FORMATS,
    Spec,
    decode_rows,
    encode_rows,
    nearest_codes,
    scale_values,
    tensor_scale_of,
    with_codebook,
)
from ov_weight_compression.quantization import encode as encoding
from ov_weight_compression.quantization.encode import Weighting
from ov_weight_compression.quantization.reference import level_grid
from tests.quantization.groups import nasty_groups
from tests.running import linux

ROWS = {name: row for name, row in FORMATS.items() if name not in ("codebook", "adaptive_codebook")}


def spec_of(name: str, group: int = 32, search: int = 0, scale_type: str | None = None) -> Spec:
    row = FORMATS[name]
    return Spec(row, row.default_group if row.fixed_group else group, scale_type or row.scale, search)


def weights(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (rows, width)) * 0.02).astype(np.float16)


@pytest.mark.parametrize("name", ROWS)
def test_errors_stay_within_half_a_step(name: str) -> None:
    values = nasty_groups(64, 96, dtype=np.float32)
    values /= np.maximum(np.abs(values.reshape(64, -1, 16)).max(axis=2), 1e-20).repeat(16, axis=1)
    values *= np.random.default_rng(1).uniform(0.1, 1, (64, 1)).astype(np.float32)
    spec = spec_of(name)
    encoded = encode_rows(values, spec)
    row = spec.format
    scale = np.abs(scale_values(encoded.scale, spec, encoded.tensor_scale))
    scale = scale.repeat(values.shape[1] // scale.shape[1], axis=1)
    # Symmetric integers clip the smaller side by up to one level; a rounded zero point or scale clips as well.
    integers = 0.5 if row.asymmetric else 1.0
    limit = integers if row.levels is None else float(np.diff(level_grid(row).values).max()) / 2
    slack = row.top * (2.0**-4 if row.scale == "f8e4m3" else 2.0**-10)
    assert (np.abs(decode_rows(encoded, spec) - values) <= scale * (limit + slack)).all()


@pytest.mark.parametrize("name", ROWS)
def test_zeros_stay_zeros(name: str) -> None:
    values = nasty_groups(40, 64)
    values[::3, 5] = 0
    values[7] = 0
    spec = spec_of(name)
    encoded = encode_rows(values, spec)
    decoded = decode_rows(encoded, spec)
    assert (decoded[values == 0] == 0).all()
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize("name", ROWS)
def test_codes_are_the_nearest_for_the_stored_scale(name: str) -> None:
    values = weights(16, 64).astype(np.float32)
    spec = spec_of(name)
    encoded = encode_rows(values, spec)
    decoded = decode_rows(encoded, spec)
    groups = values.reshape(encoded.scale.size, -1)
    scale = scale_values(encoded.scale, spec, encoded.tensor_scale).reshape(-1, 1, 1)
    if spec.format.levels is None:
        levels = np.arange(spec.format.low, spec.format.high + 1, dtype=np.float32)
        if encoded.zero_point is not None:
            levels = levels - encoded.zero_point.reshape(-1, 1, 1)
    else:
        levels = level_grid(spec.format).values
    best = np.abs(groups[:, :, None] - levels * scale).min(axis=2)
    error = np.abs(decoded.reshape(groups.shape) - groups)
    assert (error <= best * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("name", ROWS)
def test_the_graph_computes_what_decode_rows_says(name: str) -> None:
    """The stored chain in OpenVINO, in f32, on the CPU."""
    values = weights(6, 64)
    spec = spec_of(name)
    encoded = encode_rows(values, spec)
    row, groups = spec.format, encoded.scale.shape[1]

    def stored(data: np.ndarray, type_name: str, bits: int, shape: list[int]) -> object:
        tensor = ov.Tensor(getattr(ov.Type, type_name), ov.Shape(shape))
        tensor.data.reshape(-1).view(np.uint8)[:] = pack(np.ascontiguousarray(data).view(np.uint8), bits)
        return op.convert(op.constant(tensor), "f32")

    codes = stored(encoded.codes, row.storage, row.bits, [6, groups, 64 // groups])
    if row.codebook_type is not None:
        table = stored(encoded.codebook, row.codebook_type, 8, [encoded.codebook.size])
        codes = op.gather(table, op.convert(codes, "i32"), op.constant(np.int64(0)))
    if encoded.zero_point is not None:
        codes = op.subtract(codes, stored(encoded.zero_point, row.storage, row.bits, [6, groups, 1]))
    elif row.zero_point == "scalar":
        codes = op.subtract(codes, op.constant(np.float32(row.zero_value)))
    scale = stored(encoded.scale, spec.scale_type, 8, [6, groups, 1])
    if encoded.tensor_scale is not None:
        scale = op.multiply(scale, op.constant(encoded.tensor_scale))
    chain = op.reshape(op.multiply(codes, scale), op.constant(np.array([6, 64])), False)
    computed = ov.Core().compile_model(ov.Model([chain], []), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([])[0]
    np.testing.assert_array_equal(decode_rows(encoded, spec), computed)


@pytest.mark.parametrize("search", [0, 4])
@pytest.mark.parametrize("name", ["int8_asym", "int4_sym", "nf4", "nvfp4"])
def test_the_bytes_do_not_depend_on_cuts_threads_or_kernels(
    name: str, search: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three groups in a row and blocks of 32: neither blocks nor cuts begin where rows do."""
    values = weights(96, 192)
    importance = np.random.default_rng(3).random(192).astype(np.float32)
    spec = spec_of(name, -1 if name == "int8_asym" else 64, search if name != "int8_asym" else 0)
    scalar = tensor_scale_of(float(np.abs(values).max()), spec.format)

    def encode(part: np.ndarray) -> object:
        return encode_rows(part, spec, importance=importance, tensor_scale=scalar)

    monkeypatch.setattr(encoding, "COMPILE_AFTER", 1 << 60)
    whole = encode(values)
    monkeypatch.setattr(encoding, "COMPILE_AFTER", 0)
    monkeypatch.setattr(encoding, "block_of", lambda key: 32)
    pieces: dict[int, object] = {}
    cuts = [0, 1, 8, 40, 41, 96]

    def work(k: int) -> None:
        pieces[k] = encode(values[cuts[k] : cuts[k + 1]])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(cuts) - 1)]
    with encoding.kept_kernels():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for part in ("codes", "scale", "zero_point"):
        if getattr(whole, part) is not None:
            joined = np.concatenate([getattr(pieces[k], part) for k in range(len(cuts) - 1)])
            np.testing.assert_array_equal(joined, getattr(whole, part))


@pytest.mark.parametrize("name", ROWS)
def test_packed_codes_are_the_codes_packed(name: str) -> None:
    values = weights(5, 96)
    spec = spec_of(name)
    plain = encode_rows(values, spec)
    packed = encode_rows(values, spec, packed=True)
    np.testing.assert_array_equal(packed.codes.reshape(-1), pack(plain.codes, spec.format.bits))
    assert packed.codes.shape[0] == 5


def test_packed_rows_of_groups_that_end_within_a_byte() -> None:
    values = weights(4, 24)
    spec = spec_of("int4_sym", group=3)
    packed = encode_rows(values, spec, packed=True)
    np.testing.assert_array_equal(packed.codes.reshape(-1), pack(encode_rows(values, spec).codes, 4))
    with pytest.raises(ValueError, match="a row of 9 codes of 4 bits does not end on a whole byte"):
        encode_rows(weights(4, 9), spec, packed=True)


@linux
@pytest.mark.parametrize("compile_after", [0, 1 << 60])
@pytest.mark.parametrize("weighting", ["graph", "data"])
def test_rows_that_are_in_a_file_still(
    compile_after: int, weighting: Weighting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = weights(40, 192).astype(np.float16)
    (tmp_path / "values").write_bytes(values.tobytes())
    mapped = np.memmap(tmp_path / "values", np.float16, "r", shape=values.shape)
    rows = FileRows(mapped, FileMappings().around(mapped).read_into)
    spec, importance = spec_of("int4_asym", 64, 4), np.random.default_rng(3).random(192).astype(np.float32)
    monkeypatch.setattr(encoding, "COMPILE_AFTER", compile_after)
    monkeypatch.setattr(encoding, "block_of", lambda key: 32)
    options = {"importance": importance, "weighting": weighting}
    read, there = encode_rows(rows, spec, **options), encode_rows(values, spec, **options)
    for part in ("codes", "scale", "zero_point"):
        np.testing.assert_array_equal(getattr(read, part), getattr(there, part))


def test_sources_of_any_float_type_agree() -> None:
    values = weights(8, 64)
    for spec in (spec_of("int4_asym"), spec_of("mxfp4"), spec_of("int4_sym", search=5)):
        first, *others = (encode_rows(values.astype(dtype), spec) for dtype in (np.float16, np.float32, np.float64))
        for other in others:
            np.testing.assert_array_equal(first.codes, other.codes)
            np.testing.assert_array_equal(first.scale, other.scale)


def test_scales_beyond_f16_can_be_f32() -> None:
    values = (weights(4, 64) * 1.0).astype(np.float32) * np.array([[1e12], [1e-12], [1.0], [1e-24]], np.float32)
    spec = spec_of("int4_sym", scale_type="f32")
    encoded = encode_rows(values, spec)
    assert encoded.scale.dtype == np.float32
    exact = values.astype(np.float64)
    relative = np.linalg.norm(decode_rows(encoded, spec) - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert (relative < 0.2).all()
    saturated = encode_rows(values, spec_of("int4_sym"))
    assert np.isfinite(decode_rows(saturated, spec_of("int4_sym"))).all()


def test_a_caller_s_table() -> None:
    table = [0.0, 1.0, -1.0, 0.25, -0.25]
    row = with_codebook(FORMATS["codebook"], table, "f16")
    spec = Spec(row, 32)
    encoded = encode_rows(weights(8, 64), spec)
    assert encoded.codebook.tolist() == table
    np.testing.assert_array_equal(encoded.codes < 5, True)
    wide = with_codebook(FORMATS["codebook"], np.linspace(-1, 1, 999), "f16")
    many = encode_rows(weights(8, 64), Spec(wide, 32))
    assert many.codes.dtype == np.uint16
    assert encode_rows(weights(8, 64), Spec(wide, 32), packed=True).codes.shape == (8, 128)


def test_rows_that_groups_do_not_divide() -> None:
    with pytest.raises(ValueError, match="a row of 100 weights cannot be cut into groups of 32"):
        encode_rows(weights(4, 100), spec_of("int4_sym"))


def test_no_rows_at_all() -> None:
    encoded = encode_rows(np.empty((0, 64), np.float16), spec_of("nvfp4"))
    assert encoded.codes.shape == (0, 64)
    assert encoded.scale.shape == (0, 4)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hnp.arrays(np.float16, (2, 32), elements=st.floats(width=16, allow_nan=False, allow_infinity=False)),
    st.sampled_from(sorted(ROWS)),
)
def test_encoding_what_was_decoded_changes_little(values: np.ndarray, name: str) -> None:
    """The plain scale of decoded values may differ, but the values stay within a step; and nothing is ever NaN."""
    spec = spec_of(name)
    scalar = tensor_scale_of(float(np.abs(values).max()), spec.format)
    encoded = encode_rows(values, spec, tensor_scale=scalar)
    decoded = decode_rows(encoded, spec)
    assert np.isfinite(decoded).all()
    scale = scale_values(encoded.scale, spec, scalar)
    group = spec.group_of(32)
    zero_point = None if encoded.zero_point is None else encoded.zero_point.reshape(-1, 1)
    again = nearest_codes(decoded.reshape(-1, group), scale.reshape(-1, 1), zero_point, spec.format)
    np.testing.assert_array_equal(again.reshape(encoded.codes.shape), encoded.codes)
