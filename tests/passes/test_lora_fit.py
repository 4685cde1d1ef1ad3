"""Adapters: as good as the best of their rank allows, and weighted by what meets them."""

import numpy as np
import pytest

from ov_weight_compression.passes.lora import ADAPTER_SPEC, Adapters, lora_adapters
from ov_weight_compression.quantization import decode_rows, encode_rows
from tests.quantization.layerwise_cases import SPECS, gram_of, layer, output_error


def lost(rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    weight, x = layer(rows=rows)
    return weight - decode_rows(encode_rows(weight, SPECS["int4_sym"]), SPECS["int4_sym"]), gram_of(x)


def product(adapters: Adapters | None) -> np.ndarray:
    """[rows, in]: B A as the device computes it."""
    assert adapters is not None
    return decode_rows(adapters.up, ADAPTER_SPEC) @ decode_rows(adapters.down, ADAPTER_SPEC)


@pytest.mark.parametrize("rank", [1, 8, 24])
def test_nearly_the_best_of_the_rank(rank):
    missing, gram = lost()
    adapters = lora_adapters(missing, gram, rank)
    assert adapters is not None
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    root = vectors * np.sqrt(np.maximum(values, 0))
    singular = np.linalg.svd(missing @ root, compute_uv=False)
    best = float((singular[rank:] ** 2).sum())
    found = output_error(missing, product(adapters), gram)
    assert best <= found * (1 + 1e-4)
    assert found < best + 0.02 * output_error(missing, 0 * missing, gram)
    assert adapters.left == pytest.approx(found / output_error(missing, 0 * missing, gram), rel=1e-2)


def test_what_meets_the_channels_weighs_them():
    missing, gram = lost()
    energy = np.diag(gram).copy()
    weighted = lora_adapters(missing, np.diag(energy), 8)
    unweighted = lora_adapters(missing, np.eye(96, dtype=np.float32), 8)
    errors = [float((np.square(missing - product(one)) * energy).sum()) for one in (weighted, unweighted)]
    assert errors[0] < 0.7 * errors[1]


def test_stored_in_eight_bits():
    missing, gram = lost()
    adapters = lora_adapters(missing, gram, 8)
    assert adapters is not None
    assert adapters.down.codes.dtype == np.uint8
    assert adapters.down.codes.shape == (8, 96)
    assert adapters.up.codes.shape == (60, 8)


def test_nothing_missing_or_nothing_seen_gives_none():
    missing, gram = lost()
    assert lora_adapters(0 * missing, gram, 8) is None
    assert lora_adapters(missing, 0 * gram, 8) is None


def test_a_rank_beyond_the_weight_is_cut():
    missing, gram = lost(rows=5)
    adapters = lora_adapters(missing, gram, 64)
    assert adapters is not None
    assert adapters.up.codes.shape == (5, 5)
    assert adapters.left < 0.01


def test_the_same_bytes_every_time():
    missing, gram = lost()
    first, second = lora_adapters(missing, gram, 8), lora_adapters(missing, gram, 8)
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.up.codes, second.up.codes)
    np.testing.assert_array_equal(first.down.codes, second.down.codes)


def test_what_is_too_small_for_its_squares_has_no_adapters_or_harmless_ones() -> None:
    missing = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32) * np.float32(1e-30)
    found = lora_adapters(missing, np.eye(32, dtype=np.float32), 4)
    assert found is None or np.abs(product(found)).max() < 1e-20
