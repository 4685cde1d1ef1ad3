"""What goes wrong while weights are computed reaches the caller with the weight's name, whoever asked for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import openvino as ov
import pytest

from ov_weight_compression.passes import CompressionError, WorkError, apply_weight_compression
from tests.models import layers, llama
from tests.running import run, stored

ENCODE = "ov_weight_compression.passes.encode_job.WeightJob._encode"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the second layer cannot be computed."""
    from ov_weight_compression.passes.encode_job import WeightJob

    original = WeightJob._encode

    def encode(self: WeightJob, *arguments: object) -> object:
        if self.name == "weight_1":
            raise ArithmeticError("no luck")
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(WeightJob, "_encode", encode)


@pytest.mark.usefixtures("broken")
def test_when_openvino_saves(tmp_path: Path) -> None:
    model = apply_weight_compression(layers(3), mode="int8_sym")
    with pytest.raises(RuntimeError, match="weight_1: ArithmeticError: no luck"):
        ov.save_model(model, tmp_path / "m.xml")


@pytest.mark.usefixtures("broken")
def test_when_a_model_is_compiled() -> None:
    model = apply_weight_compression(layers(3), mode="int8_sym")
    with pytest.raises(RuntimeError, match="weight_1: ArithmeticError: no luck"):
        ov.Core().compile_model(model, "CPU")


@pytest.mark.usefixtures("broken")
def test_at_once_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = layers(3)
    before = stored(model.clone(), tmp_path / "before")
    with pytest.raises(WorkError, match="weight_1: ArithmeticError: no luck"):
        apply_weight_compression(model, mode="int8_sym", lazy=False)
    assert stored(model, tmp_path / "after") == before


def test_after_a_failure_the_model_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = apply_weight_compression(layers(3), mode="int8_sym")
    with monkeypatch.context() as patch:
        patch.setattr(ENCODE, lambda *_: 1 / 0)
        with pytest.raises(RuntimeError, match="weight_0: ZeroDivisionError"):
            stored(model, tmp_path / "failed")
    expected = stored(apply_weight_compression(layers(3), mode="int8_sym"), tmp_path / "expected")
    assert stored(model, tmp_path / "again") == expected
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
    """It empties the file before the weights are read from it: that ended the process."""
    path = tmp_path / "m.xml"
    ov.save_model(llama(dtype="f16"), path)
    script = (
        "import openvino as ov\nfrom ov_weight_compression.passes import apply_weight_compression\n"
        f"path = {str(path)!r}\nmodel = ov.Core().read_model(path)\n"
        f"apply_weight_compression(model, mode='int4_sym', group_size=32)\n{how}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "m.bin: became shorter while it was read" in done.stderr.splitlines()[-1]
