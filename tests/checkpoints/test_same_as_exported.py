"""Options on a checkpoint: the bytes that the same options give on what optimum-intel exports.

Both are exported once; what is looked at is that whatever reads a model's weights gets the same from the checkpoint's
files, also where they are widened: when it calibrates, allocates bits, matches rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ov_weight_compression.checkpoints import opening as export_module
from ov_weight_compression.checkpoints.opening import missing_package
from ov_weight_compression.cli import main
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.passes.recipe import Recipe

pytestmark = [
    pytest.mark.skipif(missing_package() is not None, reason=f"needs {missing_package()}: the extra 'checkpoint'"),
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers and optimum-intel there is no end
]

INT4 = {"mode": "int4_sym", "group_size": 32}
_TEXT = "the cat sat on the mat, and a checkpoint is a folder of files. "


@pytest.fixture(scope="module", autouse=True)
def in_process() -> Iterator[None]:
    """Importing torch and all the rest once is enough."""
    from ov_weight_compression.checkpoints import export_worker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "run_worker", lambda arguments, log: export_worker.work(arguments))
        yield


def both(name: str, folder: Path) -> tuple[Path, Path]:
    """An architecture's checkpoint in bf16, and what optimum-intel exports."""
    from benchmarks.architectures import ARCHITECTURES, build, export_checkpoint

    checkpoint = build(name, "bfloat16", folder / "hf")
    export_checkpoint(checkpoint, folder / "exported", ARCHITECTURES[name].task)
    return checkpoint, folder / "exported"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return both("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Text, and token ids."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "text.txt").write_text(_TEXT * 100)
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(5, 300, 800))
    return {"text": str(folder / "text.txt"), "ids": str(folder / "ids.npy")}


@pytest.fixture(scope="module")
def plain(llama: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights without any further option."""
    out = tmp_path_factory.mktemp("plain") / "out"
    compress_path(llama[1], out, Recipe(INT4))
    return (out / "openvino_model.bin").read_bytes()


def differing(checkpoint: Path, exported: Path, work: Path, options: dict[str, Any], **more: Any) -> list[str]:
    """What differs between compressing the one and the other."""
    from benchmarks.checkpoints import differences

    compress_path(checkpoint, work / "straight", Recipe(options, **more))
    compress_path(exported, work / "exported first", Recipe(options, **more))
    return differences(work / "straight", work / "exported first")


@pytest.mark.parametrize(
    ("options", "dataset"),
    [
        ({**INT4}, "text"),
        ({**INT4, "accuracy": "fast"}, "ids"),
        ({"mode": "nf4", "group_size": 32, "accuracy": "best"}, "ids"),
        ({**INT4, "awq": True}, None),
        ({**INT4, "rules": {"*mlp*": "int8_asym", "*layers.1.*q_proj*": "nf4"}}, None),
        ({"target_bits": 5.0}, "ids"),
    ],
    ids=["data", "fast", "best", "awq", "rules", "target_bits"],
)
def test_every_option_gives_the_same_bytes(
    options: dict[str, Any],
    dataset: str | None,
    llama: tuple[Path, Path],
    data: dict[str, str],
    plain: bytes,
    tmp_path: Path,
) -> None:
    given = None if dataset is None else data[dataset]
    assert differing(*llama, tmp_path, options, data=given) == []
    assert (tmp_path / "straight/openvino_model.bin").read_bytes() != plain


def test_weights_that_the_exporter_widens_are_calibrated_alike(data: dict[str, str], tmp_path: Path) -> None:
    """An encoder's, in bf16 in the checkpoint and in f32 in the graph."""
    checkpoint, exported = both("bert", tmp_path)
    options = {**INT4, "accuracy": "fast"}
    assert differing(checkpoint, exported, tmp_path, options, data=data["text"]) == []


def test_what_is_verified_is_what_was_written(
    llama: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for source in llama:
        words = [str(source), "-o", str(tmp_path / source.name), "--mode", "int4_sym", "--verify", "--quiet"]
        assert main(words) == 0
        said.append(capsys.readouterr().out.replace(source.name, "NAME"))
    assert said[0] == said[1]
    configs = [json.loads((tmp_path / source.name / "openvino_config.json").read_text()) for source in llama]
    assert configs[0] == configs[1]
