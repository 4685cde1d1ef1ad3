"""Tables fitted to a weight."""

import numpy as np
import pytest

from ov_weight_compression.quantization import FORMATS, Spec, decode_rows, encode_rows
from ov_weight_compression.quantization.lloyd import Histogram, fitted_format, sample_step, stand_in

ROW = FORMATS["adaptive_codebook"]


def weight(rows: int = 64, width: int = 256, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (rows, width)) * 0.02).astype(np.float16)


def error(values: np.ndarray, spec: Spec, importance: np.ndarray | None = None) -> float:
    squared = (decode_rows(encode_rows(values, spec), spec) - values.astype(np.float64)) ** 2
    return float((squared if importance is None else squared * importance).sum())


def counted(values: np.ndarray, group: int, importance: np.ndarray | None = None) -> Histogram:
    histogram = Histogram(float(np.abs(values).max()), group)
    histogram.add(values, importance)
    return histogram


def fit(values: np.ndarray, group: int, importance: np.ndarray | None = None, **options: object) -> Spec:
    return Spec(fitted_format(ROW, [counted(values, group, importance)], **options), group)


@pytest.mark.parametrize("codebook_type", ["f8e4m3", "f16", "f32", "i8"])
def test_a_fitted_table_beats_the_fixed_ones(codebook_type: str) -> None:
    values = weight()
    fitted = error(values, fit(values, 64, codebook_type=codebook_type))
    fixed = min(error(values, Spec(FORMATS[name], 64)) for name in ("cb4", "nf4"))
    assert fitted < 0.97 * fixed


def test_values_of_few_kinds_are_met_exactly() -> None:
    values = np.random.default_rng(0).choice([-1.0, -0.25, 0.0, 0.5, 1.0], (32, 64)).astype(np.float32)
    values[:, 0] = 1.0
    spec = fit(values, 64, count=5, codebook_type="f32")
    assert error(values, spec) / (values**2).sum() < 1e-6


def test_more_entries_help() -> None:
    values = weight()
    errors = [error(values, fit(values, 64, count=count, codebook_type="f16")) for count in (4, 8, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert fit(values, 64, count=256, codebook_type="f16").format.storage == "u8"


def test_entries_fit_their_type() -> None:
    values = weight()
    eight_bits = fit(values, 256, codebook_type="i8").format.levels
    assert eight_bits is not None
    assert all(level == round(level) and abs(level) <= 127 for level in eight_bits)
    assert list(eight_bits) == sorted(eight_bits)


def test_importance_counts() -> None:
    values = weight()
    importance = np.ones(256, np.float32)
    importance[:64] = 100
    values[:, :64] *= np.float16(0.3)
    with_it, without = fit(values, 256, importance / 100), fit(values, 256)
    assert error(values, with_it, importance) < error(values, without, importance)


def test_pieces_in_any_order_give_the_same_table() -> None:
    values = weight()
    absmax = float(np.abs(values).max())
    one, other = Histogram(absmax, 64), Histogram(absmax, 64)
    one.add(values)
    for k in (3, 0, 2, 1):
        other.add(values[16 * k : 16 * k + 16])
    np.testing.assert_array_equal(one.mass, other.mass)
    assert fitted_format(ROW, [one]) == fitted_format(ROW, [other])


@pytest.mark.parametrize("codebook_type", ["f8e4m3", "f16", "f32", "i8"])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 1e-30], ids=str)
def test_a_weight_of_one_value_has_a_table_of_the_size_that_was_asked_for(codebook_type: str, value: float) -> None:
    values = np.full((4, 64), value, np.float32)
    spec = fit(values, 64, codebook_type=codebook_type, count=16)
    assert spec.format.levels is not None
    assert len(spec.format.levels) == 16
    assert spec.format.storage == "u4"
    wide = Spec(spec.format, 64, "f32")
    np.testing.assert_allclose(decode_rows(encode_rows(values, wide), wide), values, rtol=5e-4, atol=1e-20)


def test_weights_that_share_a_table_count_alike_whatever_their_magnitude() -> None:
    large, small = weight(seed=1) * np.float16(100), weight(seed=2)
    small[:, ::2] = 0  # of another make, so that the tables differ
    both = fitted_format(ROW, [counted(large, 64), counted(small, 64)], codebook_type="f16")
    swapped = fitted_format(ROW, [counted(large / np.float16(100), 64), counted(small, 64)], codebook_type="f16")
    np.testing.assert_allclose(both.levels, swapped.levels, atol=2e-3)
    alone = fit(large, 64, codebook_type="f16").format
    assert error(small, Spec(both, 64)) < error(small, Spec(alone, 64))


def test_a_share_of_zeros_changes_nothing() -> None:
    one = counted(weight(), 64)
    assert fitted_format(ROW, [one]) == fitted_format(ROW, [one, counted(np.zeros((4, 64), np.float32), 64)])


@pytest.mark.parametrize("codebook_type", ["f8e4m3", "f16", "f32", "i8"])
@pytest.mark.parametrize("count", [2, 16, 17, 256, 257])
def test_a_stand_in_is_stored_as_the_fitted_table_will_be(codebook_type: str, count: int) -> None:
    before = stand_in(ROW, count, codebook_type)
    after = fit(weight(), 64, codebook_type=codebook_type, count=count).format
    assert (before.storage, before.bits, before.codebook_type) == (after.storage, after.bits, after.codebook_type)
    assert before.levels is not None
    assert after.levels is not None
    assert len(before.levels) == len(after.levels) == count


def test_large_weights_are_sampled() -> None:
    assert sample_step(10, 10) == 1
    assert sample_step(50000, 4096) == 48


@pytest.mark.parametrize("codebook_type", ["f8e4m3", "i8"])
@pytest.mark.parametrize("sign", [1, -1])
def test_where_all_entries_would_become_zero_the_largest_value_has_one(codebook_type: str, sign: int) -> None:
    values = np.full((1, 4096), 1e-5 * sign, np.float32)
    values[0, 7] = 65504 * sign
    spec = fit(values, 4096, codebook_type=codebook_type, count=2)
    assert spec.format.levels is not None
    wide = Spec(spec.format, 4096, "f32")
    found = decode_rows(encode_rows(values, wide), wide)
    assert abs(found[0, 7] - values[0, 7]) < 0.01 * 65504
    assert np.abs(np.delete(found, 7)).max() < 65504 / 1000
