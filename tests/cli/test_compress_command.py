"""`ov-compress MODEL -o OUT`: what it writes, what it says, and its exit code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.cli import main
from tests.cli.commands import failing
from tests.models import layers, no_weights
from tests.running import files_of, run


def test_a_file_to_a_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "int4.xml"
    assert main([str(model), "-o", str(out), "--mode", "int4_sym", "--group-size", "32"]) == 0
    printed = capsys.readouterr().out
    assert "int4_sym" in printed
    assert "int8_asym" in printed
    assert str(out) in printed
    assert sorted(path.name for path in out.parent.iterdir()) == ["int4.bin", "int4.xml"]
    assert out.with_suffix(".bin").stat().st_size < model.with_suffix(".bin").stat().st_size / 2
    assert np.isfinite(run(out)[0]).all()


def test_a_file_to_a_folder(model: Path, tmp_path: Path) -> None:
    assert main([str(model), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert (tmp_path / "out" / "openvino_model.bin").exists()


def test_the_word_compress_may_be_left_out(model: Path, tmp_path: Path) -> None:
    assert main(["compress", str(model), "-o", str(tmp_path / "a.xml"), "--quiet"]) == 0
    assert main([str(model), "-o", str(tmp_path / "b.xml"), "--quiet"]) == 0
    assert files_of(tmp_path / "a.xml") == files_of(tmp_path / "b.xml")


def test_a_folder_to_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(folder), "-o", str(out), "--mode", "int4_sym", "--group-size", "32"]) == 0
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == sorted(
        [
            "README.md",
            "config.json",
            "openvino_config.json",
            "openvino_detokenizer.bin",
            "openvino_detokenizer.xml",
            "openvino_model.bin",
            "openvino_model.xml",
            "openvino_tokenizer.bin",
            "openvino_tokenizer.xml",
            "vae/config.json",
            "vae/openvino_model.bin",
            "vae/openvino_model.xml",
        ]
    )
    for name in ("openvino_tokenizer.bin", "openvino_detokenizer.xml", "config.json", "vae/config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    for name in ("openvino_model.bin", "vae/openvino_model.bin"):
        assert (out / name).stat().st_size < (folder / name).stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "out"]
    assert "vae" in capsys.readouterr().out
    assert np.isfinite(run(out / "vae" / "openvino_model.xml")[0]).all()


def test_one_broken_model_of_a_folder_leaves_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "vae" / "openvino_model.bin").write_bytes(b"")
    said = failing(capsys, 2, folder, "-o", tmp_path / "out", "--mode", "int4_sym")
    assert "vae/openvino_model.bin: truncated" in said
    (folder / "vae" / "openvino_model.bin").unlink()
    said = failing(capsys, 2, folder, "-o", tmp_path / "out", "--mode", "int4_sym")
    assert "vae/openvino_model.bin" in said
    assert "missing" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported"]


def test_quiet_prints_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model), "-o", str(tmp_path / "a.xml"), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_quiet_warns_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quiet is about progress: what is not as it was asked for is said."""
    ov.save_model(layers(3, 96), tmp_path / "a.xml")
    words = [str(tmp_path / "a.xml"), "-o", str(tmp_path / "b.xml"), "--mode", "int4_sym", "--all-layers"]
    assert main([*words, "--group-size", "48", "--quiet"]) == 0
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith(
        "ov-compress: warning: 'weight_0_compressed' does not have the group_size that was asked for: CPUs"
    )
    assert errors.count("\n") == 1
    assert main([*words, "--group-size", "48", "--force"]) == 0
    output, errors = capsys.readouterr()
    assert "What the weights became" in output
    assert errors.splitlines()[0].startswith("ov-compress: warning: 'weight_0_compressed' does not have the group_size")
    assert errors.splitlines()[-1].startswith("ov-compress: done in ")


def test_a_dry_run_writes_nothing_and_tells_the_sizes_to_the_byte(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    options = ["--mode", "int4_asym", "--group-size", "32"]
    report = tmp_path.parent / f"{tmp_path.name}.json"
    assert main([str(model), "--dry-run", "--report", str(report), *options]) == 0
    assert "nothing written" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    planned = json.loads(report.read_text())
    assert main([str(model), "-o", str(tmp_path / "a.xml"), "--report", str(report), "--quiet", *options]) == 0
    written = json.loads(report.read_text())
    report.unlink()
    assert planned["weights"] == written["weights"]
    assert planned["totals"] == written["totals"]
    codes = {"u4": 0.5, "u8": 1, "f16": 2, "f32": 4}
    read = ov.Core().read_model(tmp_path / "a.xml")
    names = {row["name"] for row in written["weights"]}
    stored = sum(
        codes[node.get_output_element_type(0).get_type_name()] * np.prod(list(node.get_output_shape(0)))
        for node in read.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_friendly_name().split("/")[0] in names
        and node.get_friendly_name().split("/")[-1] in (*names, "scale", "zero_point")
    )
    assert stored == written["totals"]["bytes_after"]


def test_the_report_of_a_folder(folder: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    assert main([str(folder), "-o", str(tmp_path / "o"), "--report", str(report), "--quiet"]) == 0
    models = json.loads(report.read_text())["models"]
    assert [Path(entry["target"]) for entry in models] == [
        tmp_path / "o" / "openvino_model.xml",
        tmp_path / "o" / "vae" / "openvino_model.xml",
    ]
    assert models[0]["recipe"]["mode"] == "int8_asym"


def test_every_option_arrives(model: Path, tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    words = ["--mode", "INT4_SYM", "--group-size", "32", "--ratio", "0.5", "--all-layers", "--backup-mode", "int8_sym"]
    words += ["--group-size-fallback", "ignore", "--scale-search", "off", "--threads", "1", "--device", "CPU"]
    words += [
        "--rule",
        "*down_proj*=nf4:16",
        "--rule",
        "*gate*=none",
        "--ignore",
        "re:.*q_proj.*",
        "--ignore",
        "type:Add",
    ]
    words += ["--ignore", "name:nobody", "--no-validate", "--sensitivity-metric", "weight_quantization_error"]
    assert main([str(model), "--dry-run", "--report", str(report), "--quiet", *words]) == 0
    told = json.loads(report.read_text())
    recipe = told["recipe"]
    assert (recipe["mode"], recipe["ratio"], recipe["group_size"]) == ("int4_sym", "0.5", "32")
    assert (recipe["backup_mode"], recipe["all_layers"], recipe["device"]) == ("int8_sym", "True", "CPU")
    assert (recipe["group_size_fallback"], recipe["scale_search"]) == ("ignore", "off")
    modes = {row["name"]: row["mode"] for row in told["weights"]}
    assert modes["model.layers.0.mlp.down_proj.weight"] == "nf4"
    assert not any("gate" in name or "q_proj" in name for name in modes)
    assert set(modes.values()) == {"nf4", "int4_sym", "int8_sym"}


def test_an_onnx_model_with_external_data(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    values = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 48])],
        [onnx.numpy_helper.from_array(values, "w")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "m.onnx"
    onnx.save(made, path, save_as_external_data=True, all_tensors_to_one_file=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size >= values.nbytes
    assert main([str(path), "-o", str(tmp_path / "out.xml"), "--mode", "int8_sym", "--quiet"]) == 0
    found = run(tmp_path / "out.xml", {0: np.eye(64, dtype=np.float32)})[0]
    assert 0 < np.abs(found - values).max() < 0.02 * np.abs(values).max()


class TestRefusals:
    """Bad input: one line that names the thing, exit code 2, nothing written."""

    def test_no_output(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--dry-run" in failing(capsys, 2, model)

    def test_an_unknown_mode(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        said = failing(capsys, 2, model, "-o", tmp_path / "o.xml", "--mode", "int5")
        assert "mode: 'int5' is not one of int8_asym" in said
        assert not (tmp_path / "o.xml").exists()

    def test_no_such_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert f"{tmp_path}/none.xml: there is no such file" in failing(capsys, 2, tmp_path / "none.xml", "-o", "x.xml")

    def test_a_corrupt_xml(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        whole = model.read_bytes()
        for damaged in (
            whole[: len(whole) // 2],
            b"no xml at all",
            b"",
            whole.replace(b'type="MatMul"', b'type="Mat"'),
        ):
            model.write_bytes(damaged)
            assert str(model) in failing(capsys, 2, model, "-o", tmp_path / "o.xml")
        assert not (tmp_path / "o.xml").exists()

    def test_a_missing_and_a_truncated_bin(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = model.with_suffix(".bin")
        weights.write_bytes(weights.read_bytes()[:-100])
        assert f"{weights}: truncated" in failing(capsys, 2, model, "-o", tmp_path / "o.xml")
        weights.unlink()
        assert f"{weights}: the weights of openvino_model.xml are missing" in failing(
            capsys, 2, model, "-o", tmp_path / "o.xml"
        )

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in (model, model.with_suffix(".bin")):
            path.chmod(0)
            assert str(path) in failing(capsys, 2, model, "-o", tmp_path / "o.xml")
            path.chmod(0o644)

    def test_no_model_at_all(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = tmp_path / "notes.txt"
        text.write_text("hello")
        also = "(to compress also a checkpoint's folder, with config.json and *.safetensors)"
        for output in ("o.xml", "o"):
            said = failing(capsys, 2, text, "-o", tmp_path / output)
            assert (
                f"notes.txt: not a model; expected an .xml or .onnx file, or a folder with openvino_*.xml files {also}"
                in said
            )
        empty = tmp_path / "empty"
        empty.mkdir()
        said = failing(capsys, 2, empty, "-o", tmp_path / "o")
        assert f"no openvino_*.xml with weights in this folder; give the model's .xml or .onnx itself {also}" in said
        folder = tmp_path / "folder.xml"
        folder.mkdir()
        assert str(folder) in failing(capsys, 2, folder, "-o", tmp_path / "o")

    @pytest.mark.parametrize("command", ["inspect", "verify"])
    def test_nobodys_home(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert "MODEL: ~nobody-here/m.xml: there is no such home" in failing(capsys, 2, command, "~nobody-here/m.xml")

    def test_a_broken_onnx(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(b"\x08\x09garbage" * 10)
        assert str(path) in failing(capsys, 2, path, "-o", tmp_path / "o.xml")

    def test_existing_output(
        self, model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "o.xml"
        out.write_text("mine")
        assert "exists; write somewhere else, or add --force" in failing(capsys, 2, model, "-o", out)
        assert out.read_text() == "mine"
        full = tmp_path / "full"
        full.mkdir()
        (full / "mine.txt").write_text("mine")
        assert "exists" in failing(capsys, 2, folder, "-o", full)
        assert [path.name for path in full.iterdir()] == ["mine.txt"]

    def test_a_stray_bin_is_not_overwritten_either(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "o.bin").write_text("mine")
        assert "o.bin exists" in failing(capsys, 2, model, "-o", tmp_path / "o.xml")
        assert (tmp_path / "o.bin").read_text() == "mine"

    def test_the_input_itself(self, model: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "is the input" in failing(capsys, 2, model, "-o", model)
        assert "is the input" in failing(capsys, 2, folder, "-o", folder)
        assert "is the input" in failing(capsys, 2, model, "-o", model.parent / "." / model.name)
        assert "lies inside the input folder" in failing(capsys, 2, folder, "-o", folder / "int4", "--force")
        assert "holds the input" in failing(capsys, 2, folder, "-o", folder.parent, "--force")
        assert (folder / "openvino_model.xml").exists()

    def test_a_rule_that_is_none(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--rule" in failing(capsys, 2, model, "--dry-run", "--rule", "x")
        assert "'nobody' matches no weight" in failing(capsys, 2, model, "--dry-run", "--rule", "nobody=int8_sym")

    def test_an_ignored_name_that_is_none(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "name 'nobody'" in failing(capsys, 2, model, "--dry-run", "--ignore", "nobody")

    def test_unknown_words(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for words in (["--mdoe", "int8"], ["one", "two"], ["--ratio"], ["--mode", "int4_sym", "x\n" * 10000]):
            with pytest.raises(SystemExit) as left:
                main([str(model), *words])
            assert left.value.code == 2
            said = capsys.readouterr().err
            assert re.fullmatch(r"ov-compress: .{10,270}; ov-compress( compress)? --help lists what there is\n", said)

    def test_a_word_where_a_number_belongs(self, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for option, name in (("--group-size", "group_size"), ("--threads", "threads"), ("--ratio", "ratio")):
            for word in ("many", "²", "1" * 5000, "0x10", ""):
                assert f"ov-compress: {name}: must be" in failing(capsys, 2, model, "--dry-run", option, word)

    def test_a_report_that_cannot_be_written(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = tmp_path / "none" / "r.json"
        assert str(report.parent) in failing(capsys, 2, model, "--dry-run", "--quiet", "--report", report)


def test_force_replaces(model: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.xml"
    out.write_text("mine")
    assert main([str(model), "-o", str(out), "--force", "--quiet"]) == 0
    assert np.isfinite(run(out)[0]).all()
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    assert main([str(folder), "-o", str(full), "--force", "--quiet"]) == 0
    assert "mine.txt" not in [path.name for path in full.iterdir()]


def test_force_over_the_input_itself(model: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected.xml"
    assert main([str(model), "-o", str(expected), "--mode", "int4_sym", "--quiet"]) == 0
    assert main([str(model), "-o", str(model), "--mode", "int4_sym", "--quiet", "--force"]) == 0
    assert files_of(model) == files_of(expected)
    assert sorted(path.name for path in model.parent.iterdir()) == ["openvino_model.bin", "openvino_model.xml"]


def test_force_over_the_input_folder_itself(folder: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    assert main([str(folder), "-o", str(expected), "--mode", "int4_sym", "--quiet"]) == 0
    assert main([str(folder), "-o", str(folder), "--mode", "int4_sym", "--quiet", "--force"]) == 0
    for path in expected.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(expected)).read_bytes() == path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "exported"]


def test_an_empty_folder_is_a_fine_output(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    assert main([str(folder), "-o", str(tmp_path / "o"), "--quiet"]) == 0
    assert (tmp_path / "o" / "openvino_model.xml").exists()


def test_a_model_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ov.save_model(no_weights(), tmp_path / "m.xml")
    assert main([str(tmp_path / "m.xml"), "-o", str(tmp_path / "o.xml")]) == 0
    assert "No weight was compressed" in capsys.readouterr().out
    assert run(tmp_path / "o.xml")[0].shape == run(tmp_path / "m.xml")[0].shape


def test_a_second_run_keeps_the_bytes(model: Path, tmp_path: Path) -> None:
    assert main([str(model), "-o", str(tmp_path / "a.xml"), "--mode", "int4_sym", "--quiet"]) == 0
    assert main([str(tmp_path / "a.xml"), "-o", str(tmp_path / "b.xml"), "--mode", "int8_sym", "--quiet"]) == 0
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes()
