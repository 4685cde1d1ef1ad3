"""Recipes: what was asked for of a run, in a file and back, and what a file cannot say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from ov_weight_compression import OptionError, WeightCompression
from ov_weight_compression.passes.recipe import Recipe, read_recipe, save_recipe
from tests.models import llama


def written(path: Path, said: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"recipe": 1, **said}))
    return path


def test_options_come_back_as_they_were_meant(tmp_path: Path) -> None:
    asked = {
        "mode": "NF4",
        "group_size": 64,
        "ratio": 0.5,
        "rules": [("*down_proj*", {"mode": "int4_sym", "group_size": 32}), ("*gate*", None)],
        "ignored_scope": {"names": ["one"], "patterns": [], "types": ["Add"], "validate": False},
        "codebook": [-1.0, 0.0, 1.0],
        "threads": 3,
        "quiet": False,
        "statistics_path": tmp_path / "kept",
    }
    save_recipe(tmp_path / "r.json", Recipe(asked, data="self", task="text-generation"))
    said = json.loads((tmp_path / "r.json").read_text())
    assert said["options"] == {
        "mode": "nf4",
        "group_size": 64,
        "ratio": 0.5,
        "rules": [["*down_proj*", {"mode": "int4_sym", "group_size": 32}], ["*gate*", None]],
        "ignored_scope": {"names": ["one"], "types": ["Add"], "validate": False},
        "codebook": [-1.0, 0.0, 1.0],
    }
    read = read_recipe(tmp_path / "r.json")
    assert (read.data, read.task, read.pipeline_defaults, read.remarks) == ("self", "text-generation", True, ())
    assert read.options == said["options"]
    save_recipe(tmp_path / "again.json", read)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "r.json").read_bytes()


def test_layers_decide_before_everything_else(tmp_path: Path) -> None:
    decided = WeightCompression(mode="int4_sym", group_size=32, ratio=0.5).preview(llama())
    layers = {row.name: (row.mode, row.group_size) for row in decided.rows}
    ignored = next(iter(layers))
    save_recipe(tmp_path / "r.json", Recipe({"mode": "int8_sym"}), {"": {**layers, ignored: ("none", -1)}})
    said = json.loads((tmp_path / "r.json").read_text())["layers"]
    assert said[ignored] == "none"
    assert {"int4_sym:32", "int8_asym"} <= set(said.values())
    made = WeightCompression(**read_recipe(tmp_path / "r.json").options).preview(llama())
    assert {row.name: (row.mode, row.group_size) for row in made.rows} == {
        name: target for name, target in layers.items() if name != ignored
    }


def test_a_file_of_data_is_found_beside_the_recipe_and_known_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("to be")
    save_recipe(tmp_path / "r.json", Recipe({}, data=str(tmp_path / "text.txt")))
    assert json.loads((tmp_path / "r.json").read_text())["data"]["file"] == "text.txt"
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("r.json", "text.txt"):
        (tmp_path / name).rename(moved / name)
    assert read_recipe(moved / "r.json").data == str(moved / "text.txt")
    (moved / "text.txt").write_text("or not")
    with pytest.raises(OptionError, match=r"r.json: the data .*text.txt are not those that it was made with"):
        read_recipe(moved / "r.json")
    (moved / "text.txt").unlink()
    with pytest.raises(OptionError, match=r"^data: .*text.txt cannot be read: No such file"):
        read_recipe(moved / "r.json")


def test_parts_of_a_folder_have_their_own(tmp_path: Path) -> None:
    files = {"openvino_vision_*.xml": {"mode": "int8_asym", "data": "random"}}
    layers = {"openvino_vision_model.xml": {"layer": ("nf4", 64)}}
    save_recipe(tmp_path / "r.json", Recipe({"mode": "nf4"}, files=files, pipeline_defaults=False), layers)
    read = read_recipe(tmp_path / "r.json")
    own = {"mode": "int8_asym", "data": "random"}
    assert read.files == {
        "openvino_vision_model.xml": {**own, "rules": [("layer", {"mode": "nf4", "group_size": 64})]},
        "openvino_vision_*.xml": own,
    }
    assert list(read.files) == ["openvino_vision_model.xml", "openvino_vision_*.xml"], "the name counts first"
    assert not read.pipeline_defaults


def test_another_version_is_remarked(tmp_path: Path) -> None:
    read = read_recipe(written(tmp_path / "r.json", {"made_with": {"openvino": "2020.1"}}))
    here = ".".join(ov.get_version().split(".")[:2])
    assert read.remarks == (f"the recipe was made with openvino '2020.1', this is {here}: bytes may differ",)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"recipe": 2}, "is none: it must be a JSON object with \"recipe\": 1"),
        ({"option": {}}, "unknown key 'option'; there are recipe, options, data, layers"),
        ({"options": {"group": 1}}, "group"),
        ({"options": {"dataset": "self"}}, "dataset is none of a recipe's options"),
        ({"options": []}, r"options must be an object, got \[\]"),
        ({"layers": {"a": 4}}, "layers: 'a' must get MODE, MODE:GROUP or none, got 4"),
        ({"layers": {"a": "nf4:x"}}, "layers: 'a' must get MODE, MODE:GROUP or none, got 'nf4:x'"),
        ({"data": 3}, "data must be \"self\", \"random\" or"),
        ({"files": {"a": {"mode": "nf4"}}}, "unknown key 'mode'; there are options, data, layers"),
        ({"task": 1}, "task must be a word"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_said(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        read_recipe(written(tmp_path / "r.json", said))


def test_objects_of_a_program_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^roles: is an object of the program's own, which no recipe can hold$"):
        save_recipe(tmp_path / "r.json", Recipe({"roles": {("My", 1): None}}))
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(OptionError, match=r"^recipe: .*r.json is no JSON"):
        read_recipe(tmp_path / "r.json")
