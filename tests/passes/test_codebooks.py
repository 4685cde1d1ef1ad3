"""Codebooks: the caller's table, and tables fitted to each weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.passes import OptionError, WeightCompression
from tests.models import llama


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
        ({"mode": "codebook", "codebook": "text"}, "codebook: must be a list of numbers"),
        ({"mode": "codebook", "codebook": [1, 2], "codebook_type": "u4"}, "codebook_type: 'u4' is not one of"),
    ],
)
def test_tables_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        WeightCompression(**options)
