"""What data weigh is refitted: better where one channel outweighs the rest, the same however the rows are cut."""

import numpy as np
import pytest

from ov_weight_compression.ir_utils.types import pack
from ov_weight_compression.quantization import FORMATS, Spec, decode_rows, encode_rows, tensor_scale_of
from ov_weight_compression.quantization.formats import Encoded

SEARCHED = [name for name, row in FORMATS.items() if row.default_search]

GAINS = {"mxfp4": 1.0}


def spec_of(name: str) -> Spec:
    row = FORMATS[name]
    return Spec(row, row.default_group if row.fixed_group else 64, row.scale, row.default_search)


def layer(rows: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A weight [rows, 256], and the energy of channels of which a few have a thousand times that of the others."""
    rng = np.random.default_rng(3)
    energy = rng.random(256).astype(np.float32) + 0.1
    energy[[5, 77, 130, 200]] *= 1000
    return (rng.standard_t(5, (rows, 256)) * 0.02).astype(np.float16), energy


def error(values: np.ndarray, energy: np.ndarray, encoded: Encoded, spec: Spec) -> float:
    return float((energy * np.square(values.astype(np.float64) - decode_rows(encoded, spec))).sum())


@pytest.mark.parametrize("name", SEARCHED)
def test_outlying_channels_are_met(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values, energy = layer()
    spec = spec_of(name)
    refitted = error(values, energy, encode_rows(values, spec, importance=energy, weighting="data"), spec)
    monkeypatch.setattr("ov_weight_compression.quantization.reference.refit", lambda groups, scale, *others: scale)
    searched = error(values, energy, encode_rows(values, spec, importance=energy, weighting="data"), spec)
    assert refitted < GAINS.get(name, 0.9) * searched


@pytest.mark.parametrize("name", SEARCHED)
def test_rows_may_be_cut_anywhere(name: str) -> None:
    values, energy = layer(7)
    spec = spec_of(name)
    scalar = tensor_scale_of(float(np.abs(values).max()), spec.format)
    whole = encode_rows(values, spec, importance=energy, weighting="data", tensor_scale=scalar)
    for begin, end in ((0, 1), (1, 4), (4, 7)):
        part = encode_rows(values[begin:end], spec, importance=energy, weighting="data", tensor_scale=scalar)
        np.testing.assert_array_equal(part.codes, whole.codes[begin:end])
        np.testing.assert_array_equal(part.scale, whole.scale[begin:end])


@pytest.mark.parametrize("name", SEARCHED)
def test_packed_codes_are_the_same(name: str) -> None:
    values, energy = layer(8)
    spec = spec_of(name)
    plain = encode_rows(values, spec, importance=energy, weighting="data")
    packed = encode_rows(values, spec, importance=energy, weighting="data", packed=True)
    np.testing.assert_array_equal(packed.codes.reshape(-1), pack(plain.codes, spec.format.bits))
    room = Encoded(
        np.empty_like(packed.codes),
        np.empty_like(packed.scale),
        None if plain.zero_point is None else plain.zero_point * 0,
    )
    encode_rows(values, spec, importance=energy, weighting="data", packed=True, into=room)
    np.testing.assert_array_equal(room.codes, packed.codes)
    np.testing.assert_array_equal(room.scale, packed.scale)
    if plain.zero_point is not None:
        np.testing.assert_array_equal(room.zero_point, plain.zero_point)
