"""Models on disk that the command is tried on."""

from __future__ import annotations

from pathlib import Path

import openvino as ov
import pytest

from tests.models import convolution, layers, llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model on disk."""
    path = tmp_path / "source" / "openvino_model.xml"
    path.parent.mkdir()
    ov.save_model(llama(dtype="f16"), path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as exporters write it: two models, one of them in a subfolder, a tokenizer and other files."""
    path = tmp_path / "exported"
    (path / "vae").mkdir(parents=True)
    ov.save_model(llama(dtype="f16"), path / "openvino_model.xml")
    ov.save_model(convolution(), path / "vae" / "openvino_model.xml")
    for name in ("openvino_tokenizer", "openvino_detokenizer"):
        ov.save_model(layers(1), path / f"{name}.xml")
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "vae" / "config.json").write_text("{}")
    return path
