"""Tables fitted to a weight."""

import numpy as np
import pytest

from ov_weight_compression.quantization import FORMATS, Spec, decode_rows, encode_rows
from ov_weight_compression.quantization.lloyd import Histogram, fitted_format, sample_step

ROW = FORMATS["adaptive_codebook"]


def weight(rows: int = 64, width: int = 256, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (rows, width)) * 0.02).astype(np.float16)


def error(values: np.ndarray, spec: Spec, importance: np.ndarray | None = None) -> float:
    squared = (decode_rows(encode_rows(values, spec), spec) - values.astype(np.float64)) ** 2
    return float((squared if importance is None else squared * importance).sum())


def fit(values: np.ndarray, group: int, **options: object) -> Spec:
    absmax = float(np.abs(values).max())
    return Spec(fitted_format(ROW, [values], absmax, group, **options), group)


@pytest.mark.parametrize("table_type", ["f8e4m3", "f16", "f32", "i8"])
def test_a_fitted_table_beats_the_fixed_ones(table_type: str) -> None:
    values = weight()
    fitted = error(values, fit(values, 64, table_type=table_type))
    fixed = min(error(values, Spec(FORMATS[name], 64)) for name in ("cb4", "nf4"))
    assert fitted < 0.97 * fixed


def test_values_of_few_kinds_are_met_exactly() -> None:
    values = np.random.default_rng(0).choice([-1.0, -0.25, 0.0, 0.5, 1.0], (32, 64)).astype(np.float32)
    values[:, 0] = 1.0
    spec = fit(values, 64, count=5, table_type="f32")
    assert error(values, spec) / (values**2).sum() < 1e-6


def test_more_entries_help() -> None:
    values = weight()
    errors = [error(values, fit(values, 64, count=count, table_type="f16")) for count in (4, 8, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert fit(values, 64, count=256, table_type="f16").format.storage == "u8"


def test_entries_fit_their_type() -> None:
    values = weight()
    eight_bits = fit(values, 256, table_type="i8").format.levels
    assert eight_bits is not None
    assert all(level == round(level) and abs(level) <= 127 for level in eight_bits)
    assert list(eight_bits) == sorted(eight_bits)


def test_importance_counts() -> None:
    values = weight()
    importance = np.ones(256, np.float32)
    importance[:64] = 100
    values[:, :64] *= np.float16(0.3)
    with_it, without = fit(values, 256, importance=importance), fit(values, 256)
    assert error(values, with_it, importance) < error(values, without, importance)


def test_pieces_in_any_order_give_the_same_table() -> None:
    values = weight()
    absmax = float(np.abs(values).max())
    one, other = Histogram(absmax, 64), Histogram(absmax, 64)
    one.add(values)
    for k in (3, 0, 2, 1):
        other.add(values[16 * k : 16 * k + 16])
    np.testing.assert_array_equal(one.mass, other.mass)
    assert one.table(16, "f8e4m3")[0].tolist() == other.table(16, "f8e4m3")[0].tolist()


def test_a_weight_of_zeros_has_a_table_too() -> None:
    values = np.zeros((4, 64), np.float32)
    spec = fit(values, 64)
    assert (decode_rows(encode_rows(values, spec), spec) == 0).all() or error(values, spec) < 1e-12


def test_large_weights_are_sampled() -> None:
    assert sample_step(10, 10) == 1
    assert sample_step(50000, 4096) == 48
