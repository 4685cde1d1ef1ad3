"""Plain scales, and scales as stored."""

import numpy as np
import pytest

from ov_weight_compression.quantization import (
    FORMATS,
    Spec,
    plain_scales,
    scale_values,
    store_scales,
    tensor_scale_of,
)
from tests.quantization.groups import nasty_groups


def spec_of(name: str, scale_type: str | None = None) -> Spec:
    row = FORMATS[name]
    return Spec(row, row.default_group if row.fixed_group else 32, scale_type or row.scale)


def test_the_larger_side_gets_the_lowest_level() -> None:
    groups = np.array([[-8, 7, 0, 1], [8, -7, 0, 1], [-8, 8, 0, 0]], np.float32)
    scale, zero_point = plain_scales(groups, FORMATS["int4_sym"])
    assert scale.tolist() == [1, -1, 1]
    assert zero_point is None


def test_an_asymmetric_range_holds_zero() -> None:
    groups = np.array([[1, 15], [-15, -1], [-5, 10]], np.float32)
    scale, zero_point = plain_scales(groups, FORMATS["int4_asym"])
    assert scale.tolist() == [1, 1, 1]
    assert zero_point is not None
    assert zero_point.tolist() == [0, 15, 5]


def test_absmax_over_the_top_level() -> None:
    groups = np.array([[-6, 3], [1, 12]], np.float32)
    assert plain_scales(groups, FORMATS["fp4"])[0].tolist() == [1, 2]
    assert plain_scales(groups, FORMATS["nf4"])[0].tolist() == [6, 12]


@pytest.mark.parametrize("scale_type", ["f16", "f32"])
def test_no_stored_scale_is_zero_or_infinite(scale_type: str) -> None:
    spec = spec_of("int4_sym", scale_type)
    scales = np.array([0, -0.0, 1e-30, -1e-30, 1e30, -1e30, np.inf, 1e-44, 65519, 65520], np.float32)
    stored = store_scales(scales, spec)
    assert np.isfinite(stored).all()
    assert (stored != 0).all()
    assert ((stored < 0) == (scales < 0)).all()


def test_f16_scales_are_rounded_to_nearest_even() -> None:
    scales = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-24 * 2.5, 1000.3], np.float32)
    stored = store_scales(scales, spec_of("nf4"))
    assert stored.tolist() == [1, 1 + 2.0**-9, 2.0**-23, 1000.5]


def test_e8m0_is_the_next_power_of_two_up() -> None:
    spec = spec_of("mxfp4")
    scales = np.array([1, 1.0000001, 0.75, 2.0**-30, 3 * 2.0**40, 0, 1e38], np.float32)
    values = scale_values(store_scales(scales, spec), spec)
    assert values.tolist() == [1, 2, 1, 2.0**-30, 2.0**42, 2.0**-100, 2.0**100]


def test_e4m3_scales_are_ratios_to_the_tensor_s() -> None:
    spec = spec_of("nvfp4")
    scalar = tensor_scale_of(6 * 448 * 0.5, spec.format)
    assert scalar == 0.5
    stored = store_scales(np.array([224, 112, 0.5, 0, 1000, 0.53125, 0.59375], np.float32), spec, scalar)
    assert stored.tolist() == [0x7E, 0x76, 0x38, 1, 0x7E, 0x38, 0x3A]
    assert scale_values(stored, spec, scalar)[0] == 224


def test_only_nvfp4_has_a_tensor_scale() -> None:
    assert [name for name, row in FORMATS.items() if tensor_scale_of(1.0, row) is not None] == ["nvfp4"]
    assert tensor_scale_of(0.0, FORMATS["nvfp4"]) > 0


def test_plain_scales_of_any_group_are_finite() -> None:
    for name, row in FORMATS.items():
        for dtype in (np.float16, np.float32):
            scale, _ = plain_scales(nasty_groups(200, 32, dtype=dtype).astype(np.float32), row)
            assert np.isfinite(scale).all(), name
