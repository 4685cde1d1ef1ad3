"""optimum-intel's export without its weights: the same bytes as with them, and nothing missing.

The worker's own function runs here, in this process; `test_the_command_does_it_all` starts it as users do.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ov_weight_compression.checkpoints import from_checkpoint, read_checkpoint
from ov_weight_compression.checkpoints import opening as export_module
from ov_weight_compression.checkpoints.constant_origins import TensorPlaces, explain_constants
from ov_weight_compression.checkpoints.opening import missing_package
from ov_weight_compression.cli import main
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.ir_utils.errors import CompressionWarning, ModelError
from ov_weight_compression.passes.recipe import Recipe
from tests.checkpoints.files import write_tensors

pytestmark = [
    pytest.mark.skipif(missing_package() is not None, reason=f"needs {missing_package()}: the extra 'checkpoint'"),
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers and optimum-intel there is no end
]

OPTIONS = {"mode": "int4_sym", "group_size": 32}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch and all the rest once is enough."""
    from ov_weight_compression.checkpoints import export_worker

    monkeypatch.setattr(export_module, "run_worker", lambda arguments, log: export_worker.work(arguments))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from benchmarks.architectures import build

    return build("llama", "bfloat16", tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture
def spoilt(llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """The checkpoint in one file, with other tensors and another config."""

    def make(edit: Callable[[dict[str, np.ndarray]], None], **config: Any) -> Path:
        folder = tmp_path / "spoilt"
        folder.mkdir()
        read = read_checkpoint(llama)
        tensors = {name: np.array(tensor.values()) for name, tensor in read.tensors.items()}
        edit(tensors)
        write_tensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps({**read.config, **config}))
        return folder

    return make


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("name", "dtype"), [("gemma2", "bfloat16"), ("whisper", "float16"), ("bert", "float32"), ("distilbert", "bfloat16")]
)
def test_the_same_bytes_as_exporting_first(name: str, dtype: str, tmp_path: Path) -> None:
    from benchmarks.checkpoints import check

    assert not [line for line in check(name, dtype, tmp_path) if not line.startswith("(openvino_decoder_model")]


@pytest.mark.usefixtures("in_process")
def test_constants_are_the_files_and_the_report_says_which(llama: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(llama)
    explained = explain_constants(from_checkpoint(llama), TensorPlaces(checkpoint.tensors.values()))
    assert {stretch.tensor.name for _, stretch in explained.stored} == {
        name for name, tensor in checkpoint.tensors.items() if len(tensor.shape) == 2
    }
    (result,) = compress_path(llama, tmp_path / "out", Recipe(OPTIONS))
    origins = {row.name: row.origin for row in result.report.rows}
    assert (
        origins["self.model.layers.0.mlp.up_proj._openvino_orig_weight"]
        == "model-00002-of-00003.safetensors: model.layers.0.mlp.up_proj.weight"
    )
    assert all(origins.values())


def _linked(folder: Path) -> None:
    """As the hub's cache has it: links to files without endings."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../blobs/{number}")


def _with_others(folder: Path) -> None:
    """With weights that no loader looks at: Mistral's own, a shard that the index does not name, a pickle."""
    shard = next(iter(folder.glob("model-*.safetensors")))
    for name in ("consolidated.safetensors", "model-00009-of-00009.safetensors", "pytorch_model.bin"):
        shutil.copy(shard, folder / name)


def _with_nothing(folder: Path) -> None:
    """With a tensor of no elements, which the architecture does not have and which is a buffer."""
    write_tensors(folder / "empty.safetensors", {"model.rotary_emb.inv_freq": np.zeros((0, 8), np.float32)})
    index = folder / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    said["weight_map"]["model.rotary_emb.inv_freq"] = "empty.safetensors"
    index.write_text(json.dumps(said))


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("arrange", [_linked, _with_others, _with_nothing])
def test_arrangements_of_a_folder_that_change_nothing(
    arrange: Callable[[Path], None], llama: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(llama, folder)
    arrange(folder)
    written = []
    for source, out in ((llama, tmp_path / "plain"), (folder, tmp_path / "arranged")):
        compress_path(source, out, Recipe(OPTIONS))
        written.append((out / "openvino_model.bin").read_bytes())
    assert written[0] == written[1]


def test_the_command_does_it_all(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(llama), "-o", str(out), "--mode", "int4_sym", "--quiet"]) == 0
    names = {path.name for path in out.iterdir()}
    assert names >= {"openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json"}
    assert names >= {"openvino_tokenizer.xml", "openvino_detokenizer.xml", "tokenizer.json", "openvino_config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("in_process")
def test_a_tokenizer_that_cannot_be_converted_is_said_to_be(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """optimum-intel tells its log alone."""

    def fails(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("index '2' out of range")

    monkeypatch.setattr("openvino_tokenizers.convert_tokenizer", fails)
    with pytest.warns(CompressionWarning, match=r"its tokenizer could not be made into openvino_tokenizer\.xml"):
        (result,) = compress_path(llama, tmp_path / "out", Recipe(OPTIONS))
    assert not (tmp_path / "out" / "openvino_tokenizer.xml").exists()
    assert any("openvino-genai does not run the model" in text for text in result.report.warnings)


def _rotary(model: Any) -> np.ndarray:
    """The angles' steps: the one constant of half a head's numbers."""
    found = [one for one in model.get_ops() if one.get_type_name() == "Constant" and list(one.shape) == [1, 8, 1]]
    assert len(found) == 1
    return np.array(found[0].data)


@pytest.mark.usefixtures("in_process")
class TestNothingIsMissing:
    def test_a_tensor_that_is_not_there(self, spoilt: Callable[..., Path], tmp_path: Path) -> None:
        folder = spoilt(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
        with pytest.raises(ModelError, match=r"there is no tensor for model\.layers\.1\.mlp\.up_proj\.weight"):
            compress_path(folder, tmp_path / "out", Recipe(OPTIONS))
        assert not (tmp_path / "out").exists()

    def test_a_norm_that_is_not_there_is_seen_though_it_is_computed_with(self, spoilt: Callable[..., Path]) -> None:
        folder = spoilt(lambda tensors: tensors.pop("model.layers.1.input_layernorm.weight"))
        with pytest.raises(ModelError, match=r"no tensor for model\.layers\.1\.input_layernorm\.weight"):
            from_checkpoint(folder)

    def test_a_tensor_of_another_shape(self, spoilt: Callable[..., Path]) -> None:
        def widen(tensors: dict[str, np.ndarray]) -> None:
            tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((160, 66), np.uint16)

        with pytest.raises(
            ModelError, match=r"1\.mlp\.up_proj\.weight is \[160, 66\], and config\.json asks for \[160, 64\]"
        ):
            from_checkpoint(spoilt(widen))

    def test_a_tensor_that_nothing_reads(self, spoilt: Callable[..., Path]) -> None:
        folder = spoilt(lambda tensors: tensors.update({"model.layers.9.mlp.up_proj.weight": np.zeros(4, np.uint16)}))
        with pytest.raises(
            ModelError, match=r"model\.layers\.9\.mlp\.up_proj\.weight \(model\.safetensors\) is a tensor that the arch"
        ):
            from_checkpoint(folder)

    def test_what_is_known_to_be_of_no_use_is_listed(self, spoilt: Callable[..., Path], tmp_path: Path) -> None:
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        folder = spoilt(lambda tensors: tensors.update({name: np.zeros(8, np.float32)}))
        (result,) = compress_path(folder, None, Recipe(OPTIONS))
        assert result.report.unused.keys() == {name}
        assert name in str(result.report)
        assert result.report.to_dict()["unused"].keys() == {name}

    def test_rotary_embeddings_as_transformers_5_writes_them(self, spoilt: Callable[..., Path]) -> None:
        """A transformers 4 would take the default's angles for them."""
        folder = spoilt(lambda tensors: None, rope_theta=7e5)
        expected = _rotary(from_checkpoint(folder))
        config = json.loads((folder / "config.json").read_text())
        del config["rope_theta"]
        (folder / "config.json").write_text(json.dumps(config))
        assert not np.array_equal(_rotary(from_checkpoint(folder)), expected)
        new = {**config, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}
        (folder / "config.json").write_text(json.dumps(new))
        assert np.array_equal(_rotary(from_checkpoint(folder)), expected)

    def test_code_of_the_checkpoint_is_not_run(self, spoilt: Callable[..., Path], tmp_path: Path) -> None:
        own = {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
        folder = spoilt(lambda tensors: None, **own)
        (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        from_checkpoint(folder)  # transformers has this architecture
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
        with pytest.raises(
            ModelError, match=r"has no model_type 'own'; code that comes with a checkpoint \(auto_map\) is"
        ):
            from_checkpoint(folder)
        assert not (tmp_path / "ran").exists()
