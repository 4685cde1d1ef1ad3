"""What the command says where: results on standard output, all else on standard error; recipes; what a run took."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ov_weight_compression.cli import main
from ov_weight_compression.cli.compress_command import Usage, Watch
from tests.cli.commands import failing
from tests.running import files_of


def test_a_recipe_makes_the_same_bytes_and_words_come_before_it(model: Path, tmp_path: Path) -> None:
    recipe, again = tmp_path / "r.json", tmp_path / "s.json"
    words = ["--mode", "int4_sym", "--group-size", "32", "--ratio", "0.5", "--rule", "*down_proj*=nf4:16", "--quiet"]
    assert main([str(model), "-o", str(tmp_path / "a.xml"), *words, "--save-recipe", str(recipe)]) == 0
    given = ["--recipe", str(recipe), "--quiet"]
    assert main([str(model), "-o", str(tmp_path / "b.xml"), *given, "--save-recipe", str(again)]) == 0
    assert files_of(tmp_path / "a.xml") == files_of(tmp_path / "b.xml")
    assert recipe.read_bytes() == again.read_bytes()
    words = ["--group-size", "64", "--rule", "*down_proj*=int8_sym"]
    assert main([str(model), "--dry-run", *given, *words, "--save-recipe", str(again)]) == 0
    options = json.loads(again.read_text())["options"]
    assert (options["mode"], options["group_size"]) == ("int4_sym", 64)
    assert options["rules"] == [["*down_proj*", "int8_sym"], ["*down_proj*", {"mode": "nf4", "group_size": 16}]]


def test_a_recipe_that_is_none_stops_before_any_work(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failing(capsys, 2, model, "-o", tmp_path / "a.xml", "--recipe", tmp_path / "nothing.json")
    assert "nothing.json cannot be read: No such file or directory" in said
    assert not (tmp_path / "a.xml").exists()


def test_json_alone_is_on_standard_output(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "-o", str(tmp_path / "a.xml"), "--mode", "int4_sym", "--verify", "--json"]) == 0
    output, errors = capsys.readouterr()
    told = json.loads(output)
    assert told["target"] == str(tmp_path / "a.xml")
    assert set(told["run"]) == {"seconds", "peak_bytes", "bytes_per_second"}
    assert re.search(r"^ov-compress: done in \d+\.\d s, .*B/s of weights, .*B of memory at its peak$", errors, re.M)
    assert str(tmp_path / "a.xml") in errors, "what --verify says"
    file = tmp_path / "d.json"
    assert main(["decompress", str(tmp_path / "a.xml"), "-o", str(tmp_path / "f.xml"), "--json", str(file)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'f.xml'}: ")
    assert set(json.loads(file.read_text())) == {"source", "target", "weights", "bytes_before", "bytes_after"}


def test_no_colours_where_no_terminal_is(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "--dry-run", "--mode", "int4_sym"]) == 0
    output, errors = capsys.readouterr()
    assert "\x1b" not in output + errors
    assert "What the weights would become" in output
    assert "planned in" in errors


def test_what_a_run_took() -> None:
    with Watch() as watch:
        held = bytearray(b"x") * 200_000_000
    assert watch.usage.peak_bytes is not None
    assert watch.usage.peak_bytes > len(held)
    assert Usage(2.0, 3_000_000).told(10_000_000) == "2.0 s, 5.00 MB/s of weights, 3.00 MB of memory at its peak"
    assert Usage(0.5, None).told(0) == "0.5 s"
    assert Usage(2.0, 5).to_dict(10) == {"seconds": 2.0, "peak_bytes": 5, "bytes_per_second": 5}
