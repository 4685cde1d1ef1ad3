"""Group by group: the descent under a block-diagonal H, never worse, and better than the weighted search."""

import numpy as np
import pytest

from ov_weight_compression.quantization import Spec, decode_rows, encode_rows
from ov_weight_compression.quantization.calibrated import curvature_of
from ov_weight_compression.quantization.calibrated.blocks import refine_blocks
from ov_weight_compression.quantization.calibrated.descent import descend
from ov_weight_compression.quantization.calibrated.draft import Grid, draft_of
from tests.quantization.calibrated_cases import SPECS, gram_of, layer, output_error

GROUPED = [name for name, spec in SPECS.items() if spec.group_size > 0]


def blocks_of(gram: np.ndarray, group: int) -> np.ndarray:
    return np.stack([gram[i : i + group, i : i + group] for i in range(0, len(gram), group)])


def searched(weight: np.ndarray, spec: Spec, gram: np.ndarray):
    spec = Spec(spec.format, spec.group_size, spec.scale_type, 9)
    energy = np.diag(gram) / np.diag(gram).max()
    return encode_rows(weight, spec, importance=energy.astype(np.float32), weighting="data")


@pytest.mark.parametrize("name", GROUPED)
def test_no_group_gets_worse_and_all_together_better(name):
    weight, x = layer(rows=40)
    spec, gram = SPECS[name], gram_of(x)
    start = searched(weight, spec, gram)
    grams = blocks_of(gram, spec.group_size)
    refined = refine_blocks(weight, start, spec, grams)
    errors = []
    for encoded in (start, refined):
        difference = (decode_rows(encoded, spec) - weight).reshape(40, len(grams), -1)
        errors.append(np.einsum("rgi,gij,rgj->rg", difference, grams, difference))
    assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
    assert errors[1].sum() < 0.85 * errors[0].sum()
    assert output_error(weight, decode_rows(refined, spec), gram) < output_error(weight, decode_rows(start, spec), gram)


@pytest.mark.parametrize("name", ["int4_sym", "int4_asym", "nf4"])
def test_it_is_the_descent_under_a_block_diagonal_gram_matrix(name):
    weight, x = layer()
    spec, gram = Spec(SPECS[name].format, 16), gram_of(x)
    grams = blocks_of(gram, 16)
    diagonal = np.zeros_like(gram)
    for index, block in enumerate(grams):
        diagonal[index * 16 : index * 16 + 16, index * 16 : index * 16 + 16] = block
    start = encode_rows(weight, spec)
    refined = decode_rows(refine_blocks(weight, start, spec, grams, sweeps=2), spec)
    target = np.ascontiguousarray(weight.T)
    expected = descend(target, draft_of(start, spec), curvature_of(diagonal, damping=0.0), Grid(spec), 2).values().T
    assert np.isclose(refined, expected, rtol=1e-5).mean() > 0.98


def test_dead_channels_and_dead_groups():
    weight, x = layer()
    x[:, 7] = 0
    x[:, 32:64] = 0
    spec, gram = SPECS["int4_sym"], gram_of(x)
    start = encode_rows(weight, spec)
    refined = refine_blocks(weight, start, spec, blocks_of(gram, 32))
    values = decode_rows(refined, spec)
    assert np.isfinite(values).all()
    assert np.abs(values[:, 32:64] - weight[:, 32:64]).max() <= np.abs(start.scale.astype(np.float32)).max()


def test_grams_of_another_group_size_are_refused():
    weight, x = layer()
    spec = SPECS["int4_sym"]
    with pytest.raises(ValueError, match="6 Gram matrices for 3 groups"):
        refine_blocks(weight, encode_rows(weight, spec), spec, blocks_of(gram_of(x), 16))
