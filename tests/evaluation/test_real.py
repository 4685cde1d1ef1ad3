"""The small trained model and its tokenizers, and the models of the zoo, each with its compressed self."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.calibration import data_files
from ov_weight_compression.calibration.data_files import find_tokenizer
from ov_weight_compression.evaluation import ComparisonProtocol, compare
from ov_weight_compression.ir_utils.errors import MissingExtraError, ModelError, OptionError
from ov_weight_compression.passes import apply_weight_compression
from tests.evaluation.small import VOCABULARY, found_figures, language_model, plain_figures

TEXT = "def add(left, right):\n    return left + right  # naïve, “quoted” and 漢字\n" * 3


@pytest.fixture(scope="module")
def pylm(shared: Path) -> Path:
    return shared / "models" / "pylm"


@pytest.fixture(scope="module")
def compressed(pylm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ov.Core().read_model(pylm / "openvino_model.xml")
    file = tmp_path_factory.mktemp("pylm") / "openvino_model.xml"
    ov.save_model(apply_weight_compression(model, mode="int4_sym", group_size=64), file)
    return file


def test_figures_of_a_real_model(pylm: Path, compressed: Path, shared: Path) -> None:
    text = shared / "texts" / "python_eval.npy"
    found = compare(pylm, compressed, text, window=128, windows=2, layers=False)
    base, other = (ov.Core().read_model(file) for file in (pylm / "openvino_model.xml", compressed))
    wanted = plain_figures(base, other, np.load(text)[:256].reshape(2, 128))
    assert found.language is not None
    figures = found_figures(found.language)
    for name, value in wanted.items():
        assert figures[name] == pytest.approx(value, rel=1e-6), name
    assert found.compressed.bytes < 0.35 * found.base.bytes
    assert found.worst_positions[0].text is not None
    passage = found.worst_passages[0]
    assert passage.text is not None
    assert len(passage.text) == len(passage.tokens)


@pytest.mark.parametrize("name", ["openvino_tokenizer.xml", "tokenizer.json"])
def test_text_through_both_kinds_of_tokenizer(pylm: Path, name: str) -> None:
    if find_spec("openvino_tokenizers" if name.endswith("xml") else "tokenizers") is None:
        pytest.skip("the package that this tokenizer needs is not installed")
    found = find_tokenizer([pylm / name])
    tokens = found.encode(TEXT).tolist()
    assert found.decode(tokens) == TEXT
    pieces = found.pieces(tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == TEXT
    assert found.encode("x" * 9000).size > 2048, "text must never be cut short"


def test_text_is_compared_as_its_tokens_are(pylm: Path, compressed: Path, tmp_path: Path) -> None:
    (tmp_path / "text.py").write_text(TEXT, encoding="utf-8")
    tokens = find_tokenizer([pylm]).encode(TEXT)
    as_text = compare(pylm, compressed, tmp_path / "text.py", window=64, layers=False)
    as_tokens = compare(pylm, compressed, tokens, window=64, layers=False)
    assert as_text.language == as_tokens.language
    assert as_text.data.source.startswith("text.py (through ")


def test_a_tokenizer_whose_package_is_missing(pylm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ov-weight-compression\[text\]'"):
        find_tokenizer([pylm])
    with pytest.raises(MissingExtraError, match=r"ov-weight-compression\[genai\]"):
        find_tokenizer([pylm / "openvino_tokenizer.xml"])
    monkeypatch.setattr(data_files, "find_spec", lambda name: name if name == "tokenizers" else None)
    assert find_tokenizer([pylm]).source.endswith("tokenizer.json")


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer .*tokenizer\.json cannot be read"):
        find_tokenizer([tmp_path])
    assert find_tokenizer([None]) is None
    (tmp_path / "vocabulary.txt").write_text("a")
    with pytest.raises(OptionError, match=r"must be an openvino_tokenizer\.xml or a tokenizer\.json"):
        find_tokenizer([tmp_path / "vocabulary.txt"])
    tokens, same = np.arange(40) % VOCABULARY, language_model()
    found = compare(same, same, tokens, tokenizer=tmp_path / "vocabulary.txt", layers=False)
    assert found.notes[-1].startswith("Tokens are shown as ids: tokenizer=")


LANGUAGE = ("gpt2", "opt", "bloom", "mamba", "gemma2", "gpt_oss", "qwen2_moe", "whisper/openvino_decoder_model.xml")


@pytest.mark.parametrize("name", [*LANGUAGE, "bert", "clip", "resnet", "whisper/openvino_encoder_model.xml"])
def test_every_kind_of_model_as_it_comes(shared: Path, name: str) -> None:
    """Without any data: every input is recognised or made up, and 8 bits cost little."""
    file = shared / "zoo" / name
    file = file if file.suffix else file / "openvino_model.xml"
    other = apply_weight_compression(ov.Core().read_model(file), mode="int8_asym")
    found = compare(
        file, other, windows=1, window=None if name == "bert" else 24, protocol=ComparisonProtocol(layer_samples=1)
    )
    assert found.data.synthesised
    assert (found.language is not None) == (name in LANGUAGE)
    if found.language is not None:
        assert 0 < found.language.kl.mean.value < 0.01
    for one in found.outputs:
        assert 30 < one.snr_db < 80
    assert found.layers
    for layer in found.layers:
        assert layer.weight_snr_db is not None
        assert 35 < layer.weight_snr_db < 65
    measured = [layer for layer in found.layers if layer.own_snr_db is not None]
    assert len(measured) > 0.8 * len(found.layers)
    assert all((layer.own_snr_db or 0) > 30 for layer in measured)
