"""The command `compare`, its exit codes, and the files that it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.cli import main
from ov_weight_compression.passes import apply_weight_compression
from tests.evaluation.small import language_model, perceptron


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model, a compressed one, and token ids."""
    folder = tmp_path_factory.mktemp("command")
    ov.save_model(language_model(), folder / "base.xml", compress_to_fp16=False)
    ov.save_model(apply_weight_compression(language_model(), mode="int8_sym"), folder / "int8.xml")
    ov.save_model(perceptron(), folder / "other.xml")
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 50, 400))
    return folder


def run(*words: object) -> int:
    return main(["compare", *map(str, words)])


def test_everything_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(
        folder / "base.xml", folder / "int8.xml", "--data", folder / "tokens.npy", "--window", 50,
        "--json", tmp_path / "a.json", "--html", tmp_path / "a.html", "--save-base", tmp_path / "a.logits",
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0
    assert "mean KL divergence" in printed.out
    assert printed.err == ""
    read = json.loads((tmp_path / "a.json").read_text())
    assert read["data"]["samples"] == 8
    assert read["language"]["positions"] == 400
    assert read["arithmetic"]["properties"]["INFERENCE_PRECISION_HINT"] == "f32"
    assert len(read["layers"]) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.html", "a.json", "a.logits"]
    again = run(
        folder / "base.xml", folder / "int8.xml", "--data", folder / "tokens.npy", "--window", 50,
        "--json", tmp_path / "b.json", "--base-logits", tmp_path / "a.logits", "--quiet",
    )  # fmt: skip
    assert again == 0
    assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "b.json").read_text()) == read


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.xml", "int8.xml"], r"the base model .*missing\.xml does not exist"),
        (["base.xml", "other.xml"], "the models take different inputs"),
        (["base.xml", "int8.xml", "--data", "missing.npy"], "there is no such file"),
        (
            ["base.xml", "int8.xml", "--data", "tokens.npy", "--window", "1"],
            "window: must be a whole number of at least 2, got 1",
        ),
        (["base.xml", "int8.xml", "--device", "ABACUS"], "device='ABACUS'"),
        (["base.xml", "int8.xml", "--json", "no/such/a.json"], "there is no folder"),
        (
            ["base.xml", "int8.xml", "--layer-samples", "-1"],
            "layer_samples: must be a whole number of at least 0, got -1",
        ),
        (["base.xml", "int8.xml", "--batch", "0"], "batch: must be a whole number of at least 1, got 0"),
        (["base.xml", "int8.xml", "--tokenizer", "nowhere"], "tokenizer='nowhere': there is no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert run(*words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ov-compress: ")
    assert len(printed.err.splitlines()) == 1
    assert re.search(message, printed.err)


def test_a_failure_while_working_is_exit_code_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ov.save_model(language_model(sharpness=float("nan")), tmp_path / "broken.xml")
    assert run(folder / "base.xml", tmp_path / "broken.xml", "--data", folder / "tokens.npy") == 1
    assert "gives NaN" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x", "x=", "x=1,b", "=1,2", "x=0,3"])
def test_shapes_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("a.xml", "b.xml", "--shape", text)
    assert stopped.value.code == 2
    assert "is not of the form input=1,3,224,224" in capsys.readouterr().err


def test_the_page_needs_nothing_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    run(folder / "base.xml", folder / "int8.xml", "--html", tmp_path / "a.html", "--quiet")
    page = (tmp_path / "a.html").read_text()
    assert not re.search(r"(?i)(src|href)\s*=|@import|url\(|<script|https?://", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 2
    assert "The base model wrote the text itself" in page
