"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.ir_utils.device_facts import CPU_EXECUTED, GATHER, MATMUL
from ov_weight_compression.passes import Mode
from ov_weight_compression.quantization.formats import FORMATS
from tests.checkpoints.quantised_writers import tensor, write_checkpoint
from tests.running import constants

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for suffix in (".xml", ".bin"):
        shutil.copy(ROOT / "samples" / "pylm" / f"openvino_model{suffix}", tmp_path)
    function, manager, rules, transplant = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(function, names)
    assert (tmp_path / "int4" / "openvino_model.bin").stat().st_size < 4e6
    names["model"] = ov.Core().read_model("openvino_model.xml")
    exec(manager, names)
    assert "int4_sym" in capsys.readouterr().out
    exec(rules, names)
    assert len(names["rules"]) == 4
    model = ov.Core().read_model("openvino_model.xml")
    weights = {name: node for name, node in constants(model).items() if name.startswith("self.")}
    halves = {name[5:].removesuffix("_compressed"): tensor("F16", node.data / 2) for name, node in weights.items()}
    write_checkpoint(tmp_path / "Qwen3-8B-GPTQ-Int4", halves, {"model_type": "llama"})
    exec(transplant, {"model": model})
    assert (
        f"{next(iter(weights))} ← model.safetensors: {next(iter(halves))} (f16; by own name)" in capsys.readouterr().out
    )
    np.testing.assert_array_equal(constants(model)[next(iter(weights))].data, next(iter(halves.values())).data)


def test_its_table_has_every_mode() -> None:
    table = TEXT[TEXT.index("## Modes") : TEXT.index("## Rules")]
    for mode in Mode:
        assert f"`{mode.value}`" in table


def test_its_table_says_what_the_device_facts_say() -> None:
    table = TEXT[TEXT.index("## Modes") : TEXT.index("## Rules")]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        for name in re.findall(r"`(\w+)`", cells[1]) if len(cells) == 7 else ():
            row = FORMATS[name]
            matmul, gather = (
                row.codebook_type is None and row.storage in CPU_EXECUTED[layer] for layer in (MATMUL, GATHER)
            )
            assert (
                cells[5]
                == {
                    (True, True): "run on the codes",
                    (True, False): "MatMul runs on the codes, an embedding is expanded",
                    (False, False): "expanded",
                }[matmul, gather]
            ), name


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_two_commands_do_all_the_set_up() -> None:
    commands = re.findall(r"^python3 -m venv .*$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("samples/first_minute.py")
    assert commands[1].endswith("-m pytest")
