"""The README.md of a compressed folder: what it says, and whose text it never touches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ov_weight_compression.cli import main
from tests.cli.commands import failing

FOUR = ["--mode", "int4_sym", "--group-size", "32", "--quiet"]


def compressed(folder: Path, target: Path, *words: str) -> str:
    assert main([str(folder), "-o", str(target), "--force", *words]) == 0
    return (target / "README.md").read_text()


def test_a_folder_says_how_it_was_made(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "owner/tiny-llama"}))
    text = compressed(folder, tmp_path / "out", *FOUR, "--rule", "*down_proj*=none")
    assert text.startswith("---\nlibrary_name: openvino\ntags:\n- openvino\nbase_model: owner/tiny-llama\n")
    assert "The weights of `owner/tiny-llama` were compressed with ov-weight-compression 0." in text
    assert "| int4_sym, group 32 | f16 |" in text
    assert "- left in floats: rule '*down_proj*' leaves it alone" in text
    assert "`vae/openvino_model.xml`" in text
    recipe = tmp_path / "recipe.json"
    recipe.write_text(text.partition("```json\n")[2].partition("```")[0])
    again = compressed(folder, tmp_path / "again", "--recipe", str(recipe), "--quiet")
    assert again == text
    for name in ("openvino_model.bin", "vae/openvino_model.bin"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_users_own_text_stays_and_goes_back_as_it_was(folder: Path, tmp_path: Path) -> None:
    own = b"---\nlicense: mit\n---\n# Mine\n\nNot \xff UTF-8.\n"
    (folder / "README.md").write_bytes(own)
    target = tmp_path / "out"
    assert main([str(folder), "-o", str(target), *FOUR]) == 0
    said = (target / "README.md").read_bytes()
    assert said.startswith(own)
    assert said.count(b"## How it was compressed") == 1
    assert main([str(target), "-o", str(tmp_path / "twice"), "--quiet"]) == 0
    assert (tmp_path / "twice" / "README.md").read_bytes() == said, "nothing was compressed again"
    assert main(["decompress", str(target), "-o", str(tmp_path / "floats"), "--quiet"]) == 0
    assert (tmp_path / "floats" / "README.md").read_bytes() == own


def test_a_card_that_says_nothing_else_goes_with_the_compression(folder: Path, tmp_path: Path) -> None:
    compressed(folder, tmp_path / "out", *FOUR)
    assert main(["decompress", str(tmp_path / "out"), "-o", str(tmp_path / "floats"), "--quiet"]) == 0
    assert not (tmp_path / "floats" / "README.md").exists()


def test_compare_writes_what_it_cost(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, base = tmp_path / "out", folder / "openvino_model.xml"
    compressed(folder, target, *FOUR)
    capsys.readouterr()
    said = failing(capsys, 2, "compare", base, target / "openvino_model.xml", "--card")
    assert "--card: " in said
    assert "is no folder, and a README.md belongs to one" in said
    for vae in (folder, target):
        for file in (vae / "vae").iterdir():
            file.unlink()
    assert main(["compare", str(folder), str(target), "--windows", "1", "--no-layers", "--card", "--quiet"]) == 0
    text = (target / "README.md").read_text()
    assert "| mean KL divergence | " in text or "| SNR of the output " in text
    assert text.index("## How it was compressed") < text.index("## What compression cost")
    assert main(["compare", str(folder), str(target), "--windows", "1", "--no-layers", "--card", "--quiet"]) == 0
    assert (target / "README.md").read_text() == text
