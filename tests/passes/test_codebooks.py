"""Codebooks: the caller's table, and tables fitted to each weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.ir_utils.constant_values import ConstantValues
from ov_weight_compression.ir_utils.weight_source import Layout
from ov_weight_compression.passes import Codebook, OptionError, WeightCompression
from ov_weight_compression.passes.encoding import WeightEncoding
from ov_weight_compression.passes.options import read_options
from ov_weight_compression.patterns import find_compressed
from ov_weight_compression.quantization.formats import FORMATS, Spec, with_codebook
from tests.models import layers, llama, op


def tables(path: Path) -> dict[str, np.ndarray]:
    nodes = ov.Core().read_model(path).get_ops()
    return {n.get_friendly_name(): n.data for n in nodes if n.get_friendly_name().endswith("/table")}


def compress(tmp_path: Path, **options: object) -> tuple[WeightCompression, Path]:
    model = llama(hidden=64, inner=96, dtype="f16")
    compression = WeightCompression(all_layers=True, **options)
    compression.run_on_model(model)
    ov.save_model(model, tmp_path / "m.xml")
    return compression, tmp_path / "m.xml"


def test_every_weight_gets_a_table_of_its_own(tmp_path: Path) -> None:
    compression, path = compress(tmp_path, mode="adaptive_codebook", codebook_type="f16")
    found = tables(path)
    assert len({data.tobytes() for data in found.values()}) > len(compression.report.rows) // 2
    assert all(data.size <= 16 and data.dtype == np.float16 for data in found.values())


@pytest.mark.parametrize(("sharing", "count"), [("none", 16), ("block", 4), ("across_blocks", 9)])
def test_who_shares_a_table(sharing: str, count: int, tmp_path: Path) -> None:
    """Two blocks of seven layers, an embedding and a head."""
    compression, path = compress(tmp_path, mode="adaptive_codebook", codebook_type="f16", codebook_sharing=sharing)
    found = tables(path)
    assert len(found) == 16
    assert len({data.tobytes() for data in found.values()}) == count
    down = [found[f"model.layers.{block}.mlp.down_proj.weight/table"].tobytes() for block in range(2)]
    assert (down[0] == down[1]) == (sharing == "across_blocks")
    assert compression.report.recipe["codebook_sharing"] == sharing


@pytest.mark.parametrize("sharing", ["none", "block", "across_blocks"])
@pytest.mark.parametrize(("size", "kind"), [(5, "i8"), (16, "f8e4m3"), (40, "f16"), (300, "f32")])
def test_a_preview_knows_the_sizes_of_tables_that_are_not_fitted_yet(sharing: str, size: int, kind: str) -> None:
    options = {"codebook_size": size, "codebook_type": kind, "codebook_sharing": sharing}
    compression = WeightCompression(mode="adaptive_codebook", all_layers=True, **options)
    model = llama(hidden=64, inner=96, dtype="f16")
    before = compression.preview(model)
    compression.run_on_model(model)
    assert compression.report == before
    assert sum(one.bytes for one in find_compressed(model)) == before.bytes_after


def test_a_weight_of_one_value(tmp_path: Path) -> None:
    model = layers(2, 64, "f16")
    flat = next(node for node in model.get_ops() if node.get_friendly_name() == "weight_0")
    same = op.constant(np.full((64, 64), 0.25, np.float16))
    same.set_friendly_name("weight_0")
    flat.output(0).replace(same.output(0))
    WeightCompression(mode="adaptive_codebook", all_layers=True).run_on_model(model)
    ov.save_model(model, tmp_path / "m.xml")
    found = {one.name: one for one in find_compressed(ov.Core().read_model(tmp_path / "m.xml"))}
    np.testing.assert_allclose(ConstantValues(found["weight_0"].end.output(0)).whole(), 0.25, rtol=1e-3)


def test_fitted_tables_shared_or_not_are_better_than_a_fixed_one(tmp_path: Path) -> None:
    tried = [{}, {"codebook_sharing": "across_blocks"}, {"mode": "cb4", "codebook_type": None}]
    errors = []
    for options in tried:
        chosen = {"mode": "adaptive_codebook", "scale_search": "off", "codebook_type": "f16", **options}
        _, path = compress(tmp_path, **chosen)
        original = {n.get_friendly_name(): n for n in llama(hidden=64, inner=96, dtype="f16").get_ops()}
        pairs = (
            (ConstantValues(one.end.output(0)).whole(), original[one.name].data.astype(float))
            for one in find_compressed(ov.Core().read_model(path))
        )
        errors.append(sum(float(np.square(after - before).sum() / np.square(before).sum()) for after, before in pairs))
    own, shared, fixed = errors
    assert own < 1.01 * shared  # random weights are all of one make, so there is little to gain
    assert shared < 0.97 * fixed


def test_the_callers_table_is_stored_as_it_is(tmp_path: Path) -> None:
    wanted = np.array([-1, -0.5, -0.25, 0, 0.25, 0.5, 1])
    _, path = compress(tmp_path, mode="codebook", codebook=wanted, codebook_type="f16")
    assert {tuple(data.astype(float)) for data in tables(path).values()} == {tuple(wanted)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "codebook"}, "codebook: the mode codebook needs a table"),
        ({"mode": "int4_sym", "codebook": [1, 2]}, "codebook: means nothing with int4_sym"),
        ({"mode": "codebook", "codebook": [0, 0]}, "nothing but zeros"),
        ({"mode": "codebook", "codebook": [1, 1, 1]}, "nothing but 1 in f8e4m3; it needs two different values"),
        ({"mode": "codebook", "codebook": [1, 1.01]}, "nothing but 1 in f8e4m3; it needs two different values"),
        ({"mode": "codebook", "codebook": "text"}, "codebook: must be one list of finite numbers, got .text."),
        ({"mode": "codebook", "codebook": [1, 2], "codebook_type": "u4"}, "codebook_type: 'u4' is not one of"),
        ({"mode": "int4_sym", "codebook_type": "f16"}, "codebook_type: means nothing with int4_sym"),
        ({"mode": "cb4", "codebook_size": 8}, "codebook_size: means nothing with cb4"),
        ({"mode": "nf4", "codebook_sharing": "block"}, "codebook_sharing: means nothing with nf4"),
        (
            {"mode": "adaptive_codebook", "codebook_size": 65537},
            "codebook_size: must be a whole number from 2 to 65536",
        ),
        ({"mode": "adaptive_codebook", "codebook_sharing": "all"}, "'all' is not one of none, block, across_blocks"),
    ],
)
def test_tables_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        WeightCompression(**options)


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (Codebook([-1.0, 0.0, 1.0], type="f16"), {"codebook": [-1.0, 0.0, 1.0], "codebook_type": "f16"}),
        (Codebook(np.array([-3, 0, 5], np.int8)), {"codebook": [-3.0, 0.0, 5.0], "codebook_type": "i8"}),
        (
            Codebook(size=8, sharing="block", type="i8"),
            {"codebook_size": 8, "codebook_sharing": "block", "codebook_type": "i8"},
        ),
        (Codebook(), {}),
    ],
)
def test_one_object_says_everything_about_tables(group: Codebook, options: dict[str, object]) -> None:
    mode = "codebook" if group.values is not None else "adaptive_codebook"
    assert read_options(mode=mode, codebook=group) == read_options(mode=mode, **options)


def test_what_is_said_twice_is_refused() -> None:
    with pytest.raises(OptionError, match=r"^codebook_type: is said twice, the Codebook has it too"):
        WeightCompression(mode="codebook", codebook=Codebook([0.0, 1.0], type="f16"), codebook_type="f16")
    with pytest.raises(OptionError, match=r"^codebook_size: must be a whole number from 2 to 65536, got 1"):
        WeightCompression(mode="adaptive_codebook", codebook=Codebook(size=1))


@pytest.mark.parametrize(("entries", "code_bytes"), [(200, 1), (300, 2)])
def test_codes_that_wait_for_their_axes_to_be_permuted_are_counted_in_full(entries: int, code_bytes: int) -> None:
    format = with_codebook(FORMATS["codebook"], np.linspace(-1, 1, entries).tolist(), "f32")
    across, along = (
        WeightEncoding("w", Layout.of(shape, axes), Spec(format, -1), 1.0)
        for shape, axes in (((128, 64), (0,)), ((64, 128), (1,)))
    )
    assert across.nbytes - along.nbytes == 64 * 128 * code_bytes
