"""Hints that travel in a model: what is written, that OpenVINO reads it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from ov_weight_compression import OptionError, apply_weight_compression, inspect, save_model
from ov_weight_compression.cli import main
from ov_weight_compression.passes.options import read_options
from tests.cli.commands import failing
from tests.models import layers

HINTS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 64, "KV_CACHE_PRECISION": "u8", "ACTIVATIONS_SCALE_FACTOR": 8}
SECTION = "runtime_options"


def section_of(model: ov.Model) -> dict[str, str]:
    return {name: str(value) for name, value in model.get_rt_info(SECTION).value.items()}


def test_openvino_reads_what_a_saved_model_hints(tmp_path: Path) -> None:
    model = apply_weight_compression(layers(), mode="int4_sym", group_size=32, runtime_hints=HINTS)
    save_model(model, tmp_path / "model.xml")
    read = ov.Core().read_model(tmp_path / "model.xml")
    written = {
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "64",
        "KV_CACHE_PRECISION": "u8",
        "ACTIVATIONS_SCALE_FACTOR": "8.0",
    }
    assert section_of(read) == written
    compiled = ov.Core().compile_model(read, "CPU")
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 64
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.u8
    assert inspect(tmp_path / "model.xml").recipe[SECTION] == written


def test_hints_that_a_model_has_stay_unless_they_are_asked_for_otherwise() -> None:
    model = layers()
    for name, value in {"KV_CACHE_PRECISION": "f16", "ACTIVATIONS_SCALE_FACTOR": "8.0"}.items():
        model.set_rt_info(value, [SECTION, name])
    apply_weight_compression(model)
    assert section_of(model) == {"KV_CACHE_PRECISION": "f16", "ACTIVATIONS_SCALE_FACTOR": "8.0"}
    apply_weight_compression(model, runtime_hints={"kv_cache_precision": ov.Type.u4})  # nothing is left to compress
    assert section_of(model) == {"KV_CACHE_PRECISION": "u4", "ACTIVATIONS_SCALE_FACTOR": "8.0"}


def test_a_whole_token_is_the_largest_size_that_openvino_knows() -> None:
    model = apply_weight_compression(layers(), runtime_hints={"DYNAMIC_QUANTIZATION_GROUP_SIZE": -1})
    compiled = ov.Core().compile_model(model, "CPU")
    assert compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 2**64 - 1


@pytest.mark.parametrize(
    ("hints", "told"),
    [
        (
            {"KV_CACHE_PRECISON": "u8"},
            "runtime_hints: 'KV_CACHE_PRECISON' is not one of DYNAMIC_QUANTIZATION_GROUP_SIZE",
        ),
        ({"KV_CACHE_PRECISON": "u8"}, "did you mean KV_CACHE_PRECISION?"),
        ({"KV_CACHE_PRECISION": "int8"}, "runtime_hints: KV_CACHE_PRECISION: 'int8' is not one of u8, u4, f16"),
        (
            {"KEY_CACHE_PRECISION": "i8"},
            "KEY_CACHE_PRECISION: a CPU takes u8, u4, f16, bf16, f32, dynamic and compiles",
        ),
        ({"VALUE_CACHE_PRECISION": 8}, "VALUE_CACHE_PRECISION: 8 is not one of"),
        ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": "x"}, "must be a whole number of at least 0, got 'x'"),
        ({"DYNAMIC_QUANTIZATION_GROUP_SIZE": True}, "must be a whole number of at least 0, got True"),
        ({"KEY_CACHE_GROUP_SIZE": -1}, "KEY_CACHE_GROUP_SIZE: must be a whole number of at least 0, got -1"),
        ({"ACTIVATIONS_SCALE_FACTOR": "nan"}, "ACTIVATIONS_SCALE_FACTOR: must be a number from 0 to 65504, got nan"),
        (["KV_CACHE_PRECISION=u8"], "runtime_hints: must be a dict of runtime hints' names and values"),
    ],
)
def test_what_openvino_would_refuse_is_refused(hints: Any, told: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_options(runtime_hints=hints)
    assert told in str(caught.value)


def test_another_device_takes_other_types_of_cache() -> None:
    options = read_options(device="GPU", runtime_hints={"KV_CACHE_PRECISION": "i8"})
    assert options.runtime_hints == {"KV_CACHE_PRECISION": "i8"}
    assert options.as_recipe()["runtime_hints"] == "KV_CACHE_PRECISION=i8"


def test_the_command_takes_hints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ov.save_model(layers(), tmp_path / "model.xml", compress_to_fp16=False)
    words = [str(tmp_path / "model.xml"), "-o", str(tmp_path / "out.xml"), "--quiet"]
    hint = ["--runtime-hint", "KV_CACHE_PRECISION=u8", "--runtime-hint", "DYNAMIC_QUANTIZATION_GROUP_SIZE=32"]
    assert main([*words, *hint]) == 0
    written = section_of(ov.Core().read_model(tmp_path / "out.xml"))
    assert written == {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}
    assert "expected NAME=VALUE, got 'KV_CACHE_PRECISION'" in failing(
        capsys, 2, *words, "--force", "--runtime-hint", "KV_CACHE_PRECISION"
    )
