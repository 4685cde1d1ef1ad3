"""A storage format from outside the package: one row, and everything works with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.evaluation import inspect
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import WeightCompression, apply_weight_decompression
from ov_weight_compression.quantization import FORMATS, Format, Spec, decode_rows, encode_rows
from tests.models import linear
from tests.running import EXACT, constants

INT6 = Format("int6_sym", "u6", 6, zero_point="scalar", zero_value=32)


@pytest.fixture
def _added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, INT6.name, INT6)


@pytest.mark.usefixtures("_added")
def test_a_row_makes_a_mode(tmp_path: Path) -> None:
    model = linear(64, 128)
    (weight,) = [node.data for node in constants(model).values() if node.data.shape == (64, 128)]
    wanted = Spec(INT6, 32)
    expected = decode_rows(encode_rows(weight, wanted), wanted)
    compression = WeightCompression(mode="int6_sym", group_size=32, all_layers=True)
    compression.run_on_model(model)
    assert [row.mode for row in compression.report.rows] == ["int6_sym"]
    save_model(model, tmp_path / "m.xml")
    stored = ov.Core().read_model(tmp_path / "m.xml")
    assert [one.mode for one in inspect(stored).weights] == ["int6_sym"]
    x = np.random.default_rng(0).standard_normal((5, 128)).astype(np.float32)
    found = ov.Core().compile_model(stored, "CPU", EXACT)([x])[0]
    np.testing.assert_allclose(found, x @ expected.T, rtol=1e-4, atol=1e-4)
    apply_weight_decompression(stored, dtype="f32", lazy=False)
    floats = [node.data for node in constants(stored).values() if node.data.size == 64 * 128]
    np.testing.assert_array_equal(floats[0].reshape(64, 128), expected)


def test_what_nobody_has_added_is_no_mode() -> None:
    with pytest.raises(OptionError, match=r"mode: 'int13_sym' is not one of int8_asym, "):
        WeightCompression(mode="int13_sym")
