"""`ov-compress plan`: the curve in the terminal, as a page and as JSON, and nothing else is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import openvino as ov
import pytest

from ov_weight_compression.cli import main
from tests.models import layers


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.xml"
    ov.save_model(layers(count=4, columns=128), path)
    return path


def test_the_plan_is_a_page_and_json_and_writes_no_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(model.parent.iterdir())
    page, said = model.parent / "plan.html", model.parent / "plan.json"
    assert main(["plan", str(model), "--target-bits", "4.4", "--html", str(page), "--json", str(said)]) == 0
    printed, errors = capsys.readouterr()
    assert "What the weights would become" in printed
    assert re.search(
        r"^Asked for 4\.4 bits a weight: 4\.\d+ bits, \.bin of [\d ]+ bytes; predicted loss", printed, re.M
    )
    assert re.search(r"^.* of weights → .*: nothing written$", printed, re.M)
    assert re.search(r"^ov-compress: planned in \d+\.\d s, .*B of memory at its peak$", errors, re.M)
    assert "What other sizes would cost" in printed
    budget = json.loads(said.read_text())["budget"]
    assert budget["option"] == "target_bits"
    assert budget["bits"] <= 4.4
    assert len(budget["curve"]) > 3
    assert budget["curve"][0]["divergence"] > budget["curve"][-1]["divergence"]
    html = page.read_text()
    assert html.startswith("<!doctype html>")
    assert "What the weights would become" in html
    assert html.count("<polyline") == 1
    assert all(f">{name}<" in html for name in ("layer_0", "layer_3"))
    assert sorted(model.parent.iterdir()) == sorted([*before, page, said])


def test_without_a_target_it_is_four_and_a_half_bits(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(model), "--json"]) == 0
    budget = json.loads(capsys.readouterr().out)["budget"]
    assert (budget["option"], budget["target"]) == ("target_bits", 4.5)


def test_what_compress_writes_is_what_was_planned(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(model), "--target-size", "48kB", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["budget"]["bytes"]
    assert main(["compress", str(model), "-o", str(model.parent / "out.xml"), "--target-size", "48kB", "--quiet"]) == 0
    assert (model.parent / "out.bin").stat().st_size == planned <= 48_000


def test_a_recipe_makes_the_same_bytes_also_when_it_was_edited(model: Path) -> None:
    recipe, folder = model.parent / "plan.json", model.parent
    plan = ["--target-bits", "4.4", "--accuracy", "fast", "--quiet", "--save-recipe", str(recipe)]
    assert main(["plan", str(model), *plan]) == 0
    assert main(["compress", str(model), "-o", str(folder / "one.xml"), *plan[:5]]) == 0
    assert main(["compress", str(model), "-o", str(folder / "two.xml"), "--recipe", str(recipe), "--quiet"]) == 0
    assert (folder / "one.bin").read_bytes() == (folder / "two.bin").read_bytes()
    said = json.loads(recipe.read_text())
    assert set(said["layers"]) == {f"weight_{number}_compressed" for number in range(4)}
    assert not {"target_bits", "target_size"} & set(said["options"])
    said["layers"]["weight_0_compressed"] = "int8_sym"
    recipe.write_text(json.dumps(said))
    found = folder / "report.json"
    edited = ["compress", str(model), "--dry-run", "--recipe", str(recipe), "--json", str(found)]
    assert main(edited) == 0
    rows = {row["name"]: row["mode"] for row in json.loads(found.read_text())["weights"]}
    assert rows["weight_0_compressed"] == "int8_sym"


def test_the_first_screen_of_help_has_what_a_plan_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    printed = capsys.readouterr().out
    needed = ("--target-size", "--target-bits", "--target-divergence", "--formats", "--max-slowdown", "--accuracy")
    assert all(f"{word} " in printed for word in needed)
    assert not any(f"{word} " in printed for word in ("--mode", "--ratio", "--group-size"))


def test_models_of_one_name_in_two_folders_keep_what_each_got(tmp_path: Path) -> None:
    for number, part in enumerate(("unet", "transformer")):
        ov.save_model(layers(count=3 + number, columns=128), tmp_path / "in" / part / "openvino_model.xml")
    words = ["--target-bits", "4.4", "--save-recipe", str(tmp_path / "recipe.json"), "--quiet"]
    assert main([str(tmp_path / "in"), "-o", str(tmp_path / "one"), *words]) == 0
    assert (
        main([str(tmp_path / "in"), "-o", str(tmp_path / "two"), "--recipe", str(tmp_path / "recipe.json"), "--quiet"])
        == 0
    )
    for part in ("unet", "transformer"):
        one, two = (tmp_path / name / part / "openvino_model.bin" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_folder_of_models_is_planned_model_by_model_but_has_no_one_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, part in enumerate(("unet", "transformer")):
        ov.save_model(layers(count=3 + number, columns=128), tmp_path / part / "openvino_model.xml")
    assert main(["plan", str(tmp_path), "--target-bits", "4.4"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("What the weights would become") == printed.count("What other sizes would cost") == 2
    assert main(["plan", str(tmp_path), "--target-size", "90kB"]) == 2
    assert "the folder has 2 models: use target_bits, or give it to one of them" in capsys.readouterr().err


def test_a_model_that_is_compressed_already_leaves_nothing_to_choose(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model), "-o", str(model.parent / "out.xml"), "--quiet"]) == 0
    assert main(["plan", str(model.parent / "out.xml")]) == 0
    printed = capsys.readouterr().out
    assert "Asked for 4.5 bits a weight: there is no weight to choose a format for." in printed
    assert "What other sizes would cost" not in printed
