"""What goes wrong while weights are computed reaches the caller with the weight's name, whoever asked for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.ir_utils.weight_source import Slab, ValueRange, WeightSource
from ov_weight_compression.passes import CompressionError, WorkError, apply_weight_compression
from ov_weight_compression.patterns import Weight
from tests.models import layers, llama
from tests.running import run, stored


class Failing(WeightSource):
    """A weight of ones that cannot be read while it is stored, unless it is mended."""

    element_type = "f32"

    def __init__(self, weight: Weight) -> None:
        self.layout = weight.layout
        self.mended = False

    def scan(self) -> ValueRange:
        return ValueRange(1.0, 0)

    def read(self, slab: Slab) -> Array:
        if not self.mended:
            raise ArithmeticError("no luck")
        return np.ones((slab.stop - slab.start, self.layout.columns), np.float32)


def failing(weight: Weight) -> WeightSource | None:
    """The second layer's weight fails, the others are the model's."""
    return Failing(weight) if weight.name == "weight_1" else None


def test_when_openvino_saves(tmp_path: Path) -> None:
    model = apply_weight_compression(layers(3), mode="int8_sym", sources=failing)
    with pytest.raises(RuntimeError, match="weight_1: ArithmeticError: no luck"):
        ov.save_model(model, tmp_path / "m.xml")


def test_when_a_model_is_compiled() -> None:
    model = apply_weight_compression(layers(3), mode="int8_sym", sources=failing)
    with pytest.raises(RuntimeError, match="weight_1: ArithmeticError: no luck"):
        ov.Core().compile_model(model, "CPU")


def test_at_once_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = layers(3)
    before = stored(model.clone(), tmp_path / "before")
    with pytest.raises(WorkError, match="weight_1: ArithmeticError: no luck"):
        apply_weight_compression(model, mode="int8_sym", lazy=False, sources=failing)
    assert stored(model, tmp_path / "after") == before


def test_after_a_failure_the_model_can_be_used(tmp_path: Path) -> None:
    made: list[Failing] = []

    def given(weight: Weight) -> WeightSource | None:
        if weight.name == "weight_1":
            made.append(Failing(weight))
            return made[-1]
        return None

    model = apply_weight_compression(layers(3), mode="int8_sym", sources=given)
    with pytest.raises(RuntimeError, match="weight_1: ArithmeticError: no luck"):
        stored(model, tmp_path / "failed")
    made[0].mended = True
    again = apply_weight_compression(layers(3), mode="int8_sym", sources=given)
    made[1].mended = True
    assert stored(model, tmp_path / "again") == stored(again, tmp_path / "expected")
    assert run(model)[0].shape[-1] == 64


def test_everything_that_is_raised_on_purpose_has_one_root() -> None:
    from ov_weight_compression import passes

    for name in ("ModelError", "OptionError", "WorkError", "MissingExtraError"):
        assert issubclass(getattr(passes, name), CompressionError)
    assert issubclass(passes.OptionError, ValueError)
    assert issubclass(passes.ModelError, ValueError)
    assert issubclass(passes.WorkError, RuntimeError)
    assert issubclass(passes.MissingExtraError, ImportError)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks there for what is a mapped file")
@pytest.mark.parametrize("how", ["ov.save_model(model, path)", "ov.serialize(model, path)"])
def test_openvino_saving_over_the_source_is_an_error_that_names_it(how: str, tmp_path: Path) -> None:
    """It empties the file before the weights are read from it: that ended the process. Where a small model's have all
    been read ahead by then, the file is right."""
    path, elsewhere = tmp_path / "m.xml", tmp_path / "n.xml"
    ov.save_model(llama(dtype="f16"), path)
    ov.save_model(apply_weight_compression(llama(dtype="f16"), mode="int4_sym", group_size=32), elsewhere)
    script = (
        "import openvino as ov\nfrom ov_weight_compression.passes import apply_weight_compression\n"
        f"path = {str(path)!r}\nmodel = ov.Core().read_model(path)\n"
        f"apply_weight_compression(model, mode='int4_sym', group_size=32)\n{how}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 0 and how.startswith("ov.save_model"):
        assert path.with_suffix(".bin").read_bytes() == elsewhere.with_suffix(".bin").read_bytes()
        return
    assert done.returncode == 1, done.stderr
    assert "m.bin: became shorter while it was read" in done.stderr.splitlines()[-1]
