"""Statistics as data: their arithmetic, their file, the fingerprint of their model."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.calibration import Statistics, collect, grams, load_statistics, make_samples, save_statistics
from ov_weight_compression.calibration.statistics import Accumulator, fingerprint
from ov_weight_compression.ir_utils.errors import MissingExtraError, ModelError
from tests.calibration import small

TOKENS = np.random.default_rng(7).integers(0, small.VOCABULARY, 100)


def collected(model: ov.Model) -> Statistics:
    return collect(model, small.weights_of(model), make_samples(model, TOKENS))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = small.language_model()
    before = collected(model)
    file = save_statistics(before, tmp_path / "new" / "q.safetensors")
    after = load_statistics(file, model)
    assert list(tmp_path.rglob("*")) == [tmp_path / "new", file]
    assert (after.fingerprint, after.data) == (before.fingerprint, before.data)
    assert list(after) == list(before)
    for name in before:
        assert after[name].numbers() == before[name].numbers()
        np.testing.assert_array_equal(after[name].sum_square, before[name].sum_square)
    assert after["q_0"] is after["k_0"]


def test_what_layers_share_is_stored_once(tmp_path: Path) -> None:
    from safetensors import safe_open

    file = save_statistics(collected(small.language_model()), tmp_path)
    assert file == tmp_path / "statistics.safetensors"
    with safe_open(file, framework="numpy") as opened:
        owners = {key.rpartition("/")[0] for key in opened.keys()}  # noqa: SIM118
        assert json.loads(opened.metadata()["ov_weight_compression"])["layers"]["k_0"] in owners
    assert len(owners) == 9
    assert len({"q_0", "k_0", "v_0"} & owners) == 1


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    model = small.language_model()
    file = save_statistics(collected(model), tmp_path)
    values = np.array(next(w for w in small.weights_of(model) if w.name == "down_1").constant.data)
    values[0, 0] += 1
    with pytest.raises(ModelError, match="these statistics were collected from another model"):
        load_statistics(file, small.with_constants(model, {"down_1": values}))
    assert len(load_statistics(file)) == len(load_statistics(file, model.clone())) == 15


def test_the_fingerprint_survives_saving_renaming_and_other_shapes(tmp_path: Path) -> None:
    model = small.language_model()
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    again = ov.Core().read_model(tmp_path / "model.xml")
    for number, node in enumerate(again.get_ordered_ops()):
        node.set_friendly_name(f"renamed_{number}")
    assert fingerprint(again) == fingerprint(model)
    again.reshape({"input_ids": [1, 8]})
    assert fingerprint(again) == fingerprint(model)
    assert fingerprint(small.language_model(dtype="f16")) != fingerprint(model)


def test_the_fingerprint_sees_codes() -> None:
    prints = []
    for code in (3, 4):
        codes = np.full((64, 64), code, np.uint8)
        x = ov.opset13.parameter([-1, 64], np.float32, name="x")
        weight = ov.opset13.convert(ov.opset13.constant(codes), "f32")
        layer = ov.opset13.matmul(x, weight, False, True)
        prints.append(fingerprint(ov.Model([layer], [x], "codes")))
    assert prints[0] != prints[1]


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(ModelError, match="there is no such file of statistics"):
        load_statistics(tmp_path)
    file = save_statistics(collected(small.language_model()), tmp_path)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x04pickle"):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match="not a file of statistics"):
            load_statistics(file)
    header = {"version": 1, "numbers": {}, "layers": {}, "fingerprint": "", "data": ""}
    save_file({"a": np.zeros(3)}, file, {"ov_weight_compression": json.dumps(header)})
    with pytest.raises(ModelError, match="not a file of statistics that this version writes: collect them again"):
        load_statistics(file)
    save_file({"a": np.zeros(3)}, file)
    with pytest.raises(ModelError, match="not a file of statistics that this version writes"):
        load_statistics(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("field", ["sum_square", "max_variance"])
def test_statistics_that_are_no_numbers_are_refused(tmp_path: Path, field: str, value: float) -> None:
    name, good = next(iter(collected(small.language_model()).items()))
    sums = good.sum_square.copy()
    sums[3] = value
    bad = replace(good, **{field: sums if field == "sum_square" else value})
    save_statistics(Statistics({name: bad}, "", ""), tmp_path)
    with pytest.raises(ModelError, match=f"the statistics of '{name}' hold NaN or the like: collect them again"):
        load_statistics(tmp_path)


def test_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = collected(small.language_model())
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    for action in (partial(save_statistics, statistics), load_statistics):
        with pytest.raises(MissingExtraError, match=r"pip install 'ov-weight-compression\[calibration\]'"):
            action(tmp_path)


def test_wide_gram_matrices_are_made_of_panels() -> None:
    rng, width = np.random.default_rng(0), 1030  # a panel has 1024 rows
    windows = [rng.standard_normal((30, width)).astype(np.float32) for _ in range(3)]
    sums = grams.GramSums(width, {})
    for x in windows:
        sums.add(x[None], 3 * x[None])
    seen, rows = sums.result(), np.concatenate(windows)
    assert seen.drift is not None
    np.testing.assert_allclose(seen.gram, rows.T @ rows, atol=1e-3)
    np.testing.assert_array_equal(seen.gram, seen.gram.T)
    np.testing.assert_allclose(seen.drift, 2 * rows.T @ rows, atol=1e-3)


def test_sums_of_two_sets_of_rows() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((1, 1, tokens, 32)).astype(np.float32) for tokens in (5, 11)]
    sums = [Accumulator(32) for _ in range(3)]
    for which, x in ((0, parts[0]), (1, parts[1]), (2, parts[0]), (2, parts[1])):
        sums[which].add(x)
    first, second, both = (one.result() for one in sums)
    added = first + second
    assert added.numbers() == pytest.approx(both.numbers())
    np.testing.assert_allclose(added.sum_square, both.sum_square, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "batch", "transposed", "expected"),
    [
        ((8,), (), False, (1, 1, 1, 8)),
        ((5, 8), (), False, (1, 1, 5, 8)),
        ((8, 5), (), True, (1, 1, 5, 8)),
        ((2, 5, 8), (), False, (1, 2, 5, 8)),
        ((2, 3, 5, 8), (), False, (1, 6, 5, 8)),
        ((3, 5, 8), (3,), False, (3, 1, 5, 8)),
        ((2, 3, 5, 8), (3,), False, (3, 2, 5, 8)),
        ((1, 5, 8), (3,), False, (1, 1, 5, 8)),
        ((5, 8), (3,), False, (1, 1, 5, 8)),
        ((2, 3, 5, 8), (2, 3), False, (6, 1, 5, 8)),
        ((0, 8), (), False, (1, 1, 0, 8)),
    ],
)
def test_rows_by_expert(
    shape: tuple[int, ...], batch: tuple[int, ...], transposed: bool, expected: tuple[int, ...]
) -> None:
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    experts = tuple(zip(range(-2 - len(batch), -2), batch, strict=True))
    found = grams.rows_by_expert(x, (-2,) if transposed else (-1,), experts)
    assert found.shape == expected
    if transposed:
        np.testing.assert_array_equal(found[0, 0], x.T)
    elif len(batch) == 1 and len(shape) == 4:
        np.testing.assert_array_equal(found[1, 1], x[1, 1])
    else:
        np.testing.assert_array_equal(found.reshape(-1), x.reshape(-1))


def test_rows_by_expert_of_an_operation_with_dimensions_of_its_own() -> None:
    """Channels on two axes, experts behind them: `[sequence, a, b, token, expert]`."""
    x = np.arange(2 * 3 * 4 * 5 * 6, dtype=np.float32).reshape(2, 3, 4, 5, 6)
    found = grams.rows_by_expert(x, (-4, -3), ((-1, 6),))
    assert found.shape == (6, 2, 5, 12)
    np.testing.assert_array_equal(found[4, 1, 3], x[1, :, :, 3, 4].reshape(-1))
