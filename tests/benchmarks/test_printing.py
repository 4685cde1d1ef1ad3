"""The tables that the benchmarks print."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import accuracy, accuracy_goals, accuracy_table, processes, speed, speed_runs, speed_table, tables
from benchmarks.jobs import Done, Job

OWN = speed_runs.Contender("this package", "own", {"mode": "int8_asym"})
RIVAL = speed_runs.Contender("NNCF", "nncf", {"mode": "int8_asym"})
STAGES = {"import": 0.5, "read": 0.1, "pass": 0.2, "save": 1.2, "total": 2.0}


def row(contender: speed_runs.Contender, *totals: float) -> speed_runs.Row:
    return speed_runs.Row(contender, STAGES, 100e6, 200e6, 1.2e9, totals)


def test_columns_are_aligned() -> None:
    text = tables.markdown(("name", "s"), [["a", "1"], ["longer", "10.5"]])
    assert {len(line) for line in text.splitlines()} == {len("| longer | 10.5 |")}
    assert text.splitlines()[1] == "|--------|-----:|"


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        tables.markdown(("name", "s"), [["a"]])


def test_ratio_is_the_median_over_rounds() -> None:
    rows = [row(OWN, 1.0, 2.0, 4.0), row(RIVAL, 20.0, 20.0, 20.0)]
    assert speed_table.ratio_to(rows, rows[0]) == 10.0
    assert speed_table.ratio_to(rows, rows[1]) is None
    assert speed_table.ratio_to(rows[:1], rows[0]) is None


def test_comparison_has_every_contender_and_the_floor() -> None:
    failed = speed_runs.Row(RIVAL, {}, 0, 0, 0, (), "exit code -9: killed")
    text = speed_table.comparison([row(OWN, 2.0), failed], speed_runs.Floor(0.6, 0.4))
    assert "NNCF: exit code -9: killed" in text
    assert "| this package " in text
    assert "together 0.50 of this package" in text


def test_growth_and_limit_tables() -> None:
    text = speed_table.growth_table([(1.2, 2.5e9, row(OWN, 2.5)), (3.2, 6.4e9, row(OWN, 6.4))])
    assert text.count("1.00") == 2
    limited = speed_table.limit_table([("3.2 B", row(OWN, 6.4))])
    assert "6.40 s" in limited


def test_contenders_do_the_same_work() -> None:
    arguments = speed.parse(["--modes", "int4_asym,int8_asym", "--search", "off,auto", "--form", "library,command"])
    four = speed.contenders("int4_asym", arguments, with_peer=True)
    assert [each.name for each in four if each.tool == "nncf"] == ["NNCF"]
    assert len(four) == 5
    for each in four:
        assert {**each.options, "scale_search": "off"} == {**four[-1].options, "scale_search": "off"}
    assert [each.options for each in speed.contenders("int8_asym", arguments, with_peer=False)] == [
        {"mode": "int8_asym"}
    ] * 2


def test_command_line_names_every_option() -> None:
    words = speed_runs.command_line(Job(Path("in.xml"), Path("out.xml"), {"mode": "nf4", "group_size": 64}))
    assert words[-4:] == ["--mode", "nf4", "--group-size", "64"]


def test_a_failed_run_says_why() -> None:
    run = processes.Run(1.0, 1.0, 0.0, 0, 0, 2, "Traceback\nunknown mode 'x'\n")
    assert Done(run, None, 0).failure == "exit code 2: unknown mode 'x'"


FIGURES = {
    "smollm/int4_sym/g64/nncf/plain": {"kl": 0.6, "bytes": 88e6, "seconds": 10},
    "smollm/int4_sym/g64/nncf/gptq": {"kl": 0.3, "bytes": 88e6, "seconds": 100},
    "smollm/int4_sym/g64/nncf/lora_correction": {"kl": 0.1, "bytes": 92e6, "seconds": 100},
    "smollm/int4_sym/g64/nncf/awq": {"failed": "exit code 1"},
    "smollm/int4_sym/g64/own/auto": {"kl": 0.57, "bytes": 88e6, "seconds": 1},
    "smollm/int4_sym/g64/own/best": {"kl": 0.12, "bytes": 88e6, "seconds": 30},
}


def test_best_leaves_out_what_adds_bytes_and_what_failed() -> None:
    block = accuracy_table.blocks(FIGURES)["smollm", "int4_sym"]
    assert block.best == 0.3
    assert block.plain == 0.6
    text = accuracy_table.render(FIGURES)
    best = next(line for line in text.splitlines() if line.startswith("| best "))
    assert "0.1200" in best
    assert "0.400" in best
    assert "failed" in next(line for line in text.splitlines() if line.startswith("| awq "))


def test_goals_are_met_or_missed() -> None:
    text = accuracy_goals.render(FIGURES)
    lines = {tuple(cell.strip() for cell in line.split("|")[2:4]): line for line in text.splitlines()[2:]}
    assert "met" in lines["auto", "plain"]
    assert "met" in lines["best", "its best"]
    assert "missed" in accuracy_goals.render({**FIGURES, "smollm/int4_sym/g64/own/auto": {"kl": 0.6}})
    assert accuracy_goals.render({}) == ""


def test_figures_are_remembered_whole(tmp_path: Path) -> None:
    cache = tmp_path / "results" / "accuracy.json"
    with accuracy.remembered(cache) as figures:
        figures["a/b/g1/own/plain"] = {"kl": 1.0}
    with accuracy.remembered(cache) as figures:
        assert figures == {"a/b/g1/own/plain": {"kl": 1.0}}
    cache.unlink()
    with accuracy.remembered(cache) as figures:
        assert figures == {}
    assert not cache.exists()


def test_missing_models_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shared", str(tmp_path), "--cache", str(tmp_path / "accuracy.json"), "--tools", "own"]
    assert accuracy.main(arguments) == 0
    assert "pylm is left out" in capsys.readouterr().out


def test_an_unknown_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such model: gpt5"):
        accuracy.main(["--models", "gpt5", "--cache", str(tmp_path / "accuracy.json")])


def test_small_weights_are_saved_by_both_writers_and_compiled() -> None:
    names = [each.name for each in speed.small_contenders(with_peer=True)]
    assert names[::2] == [
        "this package, ov.save_model, search off",
        "this package, save_model, search off",
        "this package, compile_model, search off",
        "NNCF",
    ]
    text = speed_table.small_table([(100, row(OWN, 1.0)), (1000, row(OWN, 2.0))])
    assert text.splitlines()[0].count(" s ") == 4
    assert "100: pass and save, s" in text
