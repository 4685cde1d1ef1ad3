"""What each model of a folder gets: rules for one file, options for some files, and a pipeline's defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.cli import main
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.cli.file_options import FileOptions, given_to_passes
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.model_folder import names_file, part_of, pipeline_of, split_file
from ov_weight_compression.passes.recipe import Recipe
from tests.cli.commands import failing
from tests.models import layers

VISION_LANGUAGE = ("openvino_language_model", "openvino_text_embeddings_model", "openvino_vision_embeddings_model")
INT4 = {"mode": "int4_sym", "group_size": 32}


def folder_of(path: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        ov.save_model(layers(2), path / f"{name}.xml", compress_to_fp16=False)
    return path


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "exported", VISION_LANGUAGE)


def modes(folder: Path, **given: Any) -> dict[str, list[str]]:
    """The modes of each part's weights, by the part's name."""
    options = {**INT4, "all_layers": True, **given.pop("options", {})}
    results = compress_path(folder, None, Recipe(options, **given))
    return {part_of(str(one.source.relative_to(folder))): [row.mode for row in one.report.rows] for one in results}


def test_a_pipelines_small_parts_get_8_bits_and_the_report_says_so(pipeline: Path) -> None:
    assert modes(pipeline) == {
        "language_model": ["int4_sym"] * 2,
        "text_embeddings_model": ["int8_asym"] * 2,
        "vision_embeddings_model": ["int8_asym"] * 2,
    }
    language, _, vision = compress_path(pipeline, None, Recipe({**INT4, "backup_mode": "int8_sym", "gptq": False}))
    assert language.report.note == ""
    assert vision.report.note == (
        "the vision-language pipeline's vision_embeddings_model gets int8_sym, not int4_sym: it is small, or all the "
        "rest goes by it (--no-pipeline-defaults gives every part the same)"
    )
    assert vision.report.note in str(vision.report)
    assert vision.report.to_dict()["note"] == vision.report.note
    assert {mode for given in modes(pipeline, pipeline_defaults=False).values() for mode in given} == {"int4_sym"}


@pytest.mark.parametrize(
    ("names", "main"),
    [
        (("openvino_encoder_model", "openvino_decoder_model"), {"encoder_model", "decoder_model"}),
        (("unet/openvino_model", "vae_decoder/openvino_model", "text_encoder/openvino_model"), {"unet"}),
        (("transformer/openvino_model", "text_encoder_2/openvino_model"), {"transformer"}),
        (("openvino_vision_encoder", "openvino_prompt_encoder_mask_decoder"), {"vision_encoder"}),
        (("openvino_model", "other/openvino_model"), {"model", "other"}),  # no pipeline that is known
    ],
)
def test_which_parts_get_the_mode(tmp_path: Path, names: tuple[str, ...], main: set[str]) -> None:
    found = modes(folder_of(tmp_path, names))
    assert {part for part, given in found.items() if set(given) == {"int4_sym"}} == main
    assert {mode for part, given in found.items() if part not in main for mode in given} <= {"int8_asym"}


def test_8_bits_everywhere_and_a_file_alone_have_no_defaults(pipeline: Path) -> None:
    (report,) = {one.report.note for one in compress_path(pipeline, None, Recipe({"mode": "int8_sym"}))}
    assert report == ""
    (one,) = compress_path(
        pipeline / "openvino_vision_embeddings_model.xml", None, Recipe({**INT4, "all_layers": True})
    )
    assert {row.mode for row in one.report.rows} == {"int4_sym"}


def test_a_rule_may_name_the_file(pipeline: Path) -> None:
    rules = [("openvino_language_model.xml:*0*", "int8_sym"), ("openvino_vision*.xml:re:.*1", None), ("*1*", "nf4")]
    assert modes(pipeline, options={"rules": rules}) == {
        "language_model": ["int8_sym", "nf4"],
        "text_embeddings_model": ["int8_asym", "nf4"],
        "vision_embeddings_model": ["int8_asym"],
    }


def test_a_rule_for_all_files_has_to_match_in_one_of_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "exported", VISION_LANGUAGE[:1])
    ov.save_model(layers(5), folder / "openvino_vision_embeddings_model.xml", compress_to_fp16=False)
    found = modes(folder, options={"rules": [("*4*", "int8_sym")], "ignored_scope": {"patterns": [".*3.*"]}})
    assert found == {"language_model": ["int4_sym"] * 2, "vision_embeddings_model": ["int8_asym"] * 3 + ["int8_sym"]}
    with pytest.raises(
        OptionError, match=r"rules: '\*none\*' matches nothing in any of the folder's models: openvino_l"
    ):
        modes(folder, options={"rules": [("*none*", "int8_sym")]})
    with pytest.raises(OptionError, match="ignored_scope: name 'gone' matches nothing in any of the folder's models"):
        modes(folder, options={"ignored_scope": ["gone"]})
    with pytest.raises(
        OptionError, match=r"rules: 'a.xml:\*' is for a file that the folder does not have; its models: "
    ):
        modes(folder, options={"rules": [("a.xml:*", "int8_sym")]})
    with pytest.raises(OptionError, match=r"rules\[0\]: '\*none\*' matches no weight of the model"):
        modes(folder, options={"rules": [("openvino_language_model.xml:*none*", "nf4")]})


def test_options_for_some_files(pipeline: Path) -> None:
    files = {
        "vision_embeddings_model": {"mode": "nf4", "rules": [("*0*", "int8_sym")]},
        "*_text_*": {"mode": "fp8_e4m3"},
    }
    assert modes(pipeline, files=files, options={"rules": [("*", None)]})["vision_embeddings_model"] == ["int8_sym"]
    assert modes(pipeline, files=files) == {
        "language_model": ["int4_sym"] * 2,
        "text_embeddings_model": ["fp8_e4m3"] * 2,
        "vision_embeddings_model": ["int8_sym", "nf4"],
    }
    with pytest.raises(
        OptionError, match=r"files: 'audio\*' names no model of the folder; it has openvino_language_mod"
    ):
        modes(pipeline, files={"audio*": {"mode": "nf4"}})


def test_a_budget_is_for_the_large_parts(pipeline: Path) -> None:
    language, embeddings, _ = compress_path(
        pipeline, None, Recipe({"target_bits": 5, "formats": ["int4_sym:32", "int8_asym"]})
    )
    assert language.report.bits_per_weight <= 5
    assert {row.mode for row in embeddings.report.rows} == {"int8_asym"}
    assert "gets int8_asym, not what target_bits leaves it" in embeddings.report.note
    with pytest.raises(
        OptionError, match=r"target_size: is that of one model's .bin, and the folder has 3 models: use ta"
    ):
        compress_path(pipeline, None, Recipe({"target_size": "20kB"}))
    files = {"language_model": {"target_size": "10kB"}}
    (language, *_) = compress_path(pipeline, None, Recipe({"mode": "int4_sym", "group_size": 32}, files=files))
    assert language.report.bytes_after < 10_000


def test_data_for_some_files(pipeline: Path) -> None:
    with pytest.raises(OptionError, match=r"data='own.txt': there is no such file"):
        modes(pipeline, files={"*_text_*": {"mode": "nf4", "data": "own.txt"}})
    with pytest.raises(OptionError, match=r"data='gone.txt': there is no such file"):
        modes(pipeline, data="gone.txt")
    in_8_bits = modes(pipeline, files={"*language*": {"mode": "int8_sym", "data": None}}, data="gone.txt")
    assert in_8_bits["language_model"] == ["int8_sym"] * 2  # and nobody reads the data


def test_the_command(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    words = [str(pipeline), "-o", str(tmp_path / "out"), "--mode", "int4_sym", "--group-size", "32", "--all-layers"]
    rule, ignored = "openvino_language_model.xml:*0*=int8_sym", "openvino_vision_embeddings_model.xml:re:.*1"
    more = ["--no-pipeline-defaults", "--rule", rule, "--ignore", ignored, "--report", str(report)]
    assert main([*words, *more, "--quiet"]) == 0
    found = [[row["mode"] for row in one["weights"]] for one in json.loads(report.read_text())["models"]]
    assert found == [["int8_sym", "int4_sym"], ["int4_sym", "int4_sym"], ["int4_sym"]]
    assert main([*words, "--force"]) == 0
    assert "text_embeddings_model gets int8_asym, not int4_sym" in capsys.readouterr().out
    said = json.loads((tmp_path / "out" / "openvino_config.json").read_text())
    assert said["weight_compression"]["mode"] == "int4_sym"  # the main part's
    assert "matches nothing in any" in failing(capsys, 2, *words, "--force", "--rule", "*none*=nf4")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"awq": True, "mode": "int4_asym"}, {"quant_method": "awq"}),
        (
            {"awq": True, "scale_estimation": True, "gptq": True},
            {"quant_method": "awq", "scale_estimation": True, "gptq": True},
        ),
        ({"accuracy": "best"}, {"quant_method": "default", "gptq": True}),
        ({"accuracy": "fast"}, {"quant_method": "default"}),
        ({"lora_correction": True}, {"quant_method": "default", "lora_correction": True}),
        ({"awq": True, "mode": "mxfp4", "group_size": None}, {"quant_method": "default"}),
    ],
)
def test_the_folder_says_what_ran_in_optimums_words(tmp_path: Path, given: Any, expected: Any) -> None:
    """And nothing that optimum-intel would refuse to load."""
    folder = folder_of(tmp_path / "exported", ("openvino_model",))
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32))
    options = {**INT4, **given, "all_layers": True}
    compress_path(folder, tmp_path / "out", Recipe(options, data=str(tmp_path / "data.npz")))
    said = json.loads((tmp_path / "out" / "openvino_config.json").read_text())["quantization_config"]
    algorithms = ("quant_method", "scale_estimation", "gptq", "lora_correction")
    assert {name: said[name] for name in algorithms if name in said} == expected


def test_each_model_gets_its_own_samples_of_a_folder(tmp_path: Path) -> None:
    """Whatever the models were made from: files, or a checkpoint."""
    for name in ("encoder", "decoder"):
        (tmp_path / f"openvino_{name}_model").mkdir()
        np.savez(tmp_path / f"openvino_{name}_model" / "0.npz", **{name: np.zeros(1)})
    given = given_to_passes(tmp_path)
    own = FileOptions({"mode": "nf4"}, str(tmp_path))
    for name in ("encoder", "decoder"):
        passed = given(own, f"openvino_{name}_model.xml")
        assert [list(sample) for sample in passed["dataset"]] == [[name]]
        assert passed["mode"] == "nf4"
    assert given(FileOptions({"mode": "nf4"}), "openvino_model.xml") == {"mode": "nf4"}


def test_names() -> None:
    assert pipeline_of(["openvino_model.xml"]) is None
    assert part_of("vae_decoder/openvino_model.xml") == "vae_decoder"
    omni = [f"openvino_{part}_model.xml" for part in ("language", "talker", "audio_encoder", "text_embeddings")]
    kind = pipeline_of(omni)
    assert kind is not None
    assert [kind.is_main(one) for one in omni] == [True, True, False, False]
    assert all(
        names_file(one, "a/openvino_model.xml") for one in ("a", "a/*", "openvino_model.xml", "a/openvino_model.xml")
    )
    assert not names_file("model", "a/openvino_model.xml")
    assert split_file("a.xml:re:b.xml:c") == ("a.xml", "re:b.xml:c")
    assert split_file("re:a.xml:b") == ("", "re:a.xml:b")
    assert split_file("a.xml:") == ("", "a.xml:")
