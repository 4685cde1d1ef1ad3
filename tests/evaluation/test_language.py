"""Comparing language models: the figures against plain arithmetic, and everything that can be in the way."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.evaluation import Comparison, compare
from ov_weight_compression.evaluation import ComparisonProtocol as Protocol
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from tests.evaluation.small import (
    VOCABULARY,
    found_figures,
    language_model,
    log_softmax,
    logits_of,
    plain_figures,
)

TOKENS = np.random.default_rng(9).integers(0, VOCABULARY, 700)


def agree(found: Comparison, wanted: dict[str, float]) -> None:
    assert found.language is not None
    figures = found_figures(found.language)
    for name, value in wanted.items():
        assert figures[name] == pytest.approx(value, rel=1e-7), name


@pytest.mark.parametrize("stateful", [True, False])
def test_figures_equal_plain_arithmetic(stateful: bool) -> None:
    base, other = (language_model(noise=noise, stateful=stateful) for noise in (0, 0.05))
    found = compare(base, other, TOKENS, window=64, layers=False)
    agree(found, plain_figures(base, other, TOKENS[:640].reshape(10, 64)))
    assert found.language is not None
    assert (found.language.positions, found.language.predicted) == (640, 630)
    assert (found.data.samples, found.data.window, found.data.synthesised) == (10, 64, False)


def test_every_window_starts_from_an_empty_state() -> None:
    base, other = language_model(), language_model(noise=0.05)
    twice = np.stack([TOKENS[:64], TOKENS[:64]])
    once = compare(base, other, TOKENS[None, :64], layers=False).language
    both = compare(base, other, twice, layers=False).language
    assert once is not None
    assert both is not None
    assert both.kl.mean.value == once.kl.mean.value


def test_the_same_call_gives_the_same_figures() -> None:
    base, other = language_model(), language_model(noise=0.05)
    assert compare(base, other, TOKENS).to_dict() == compare(base, other, TOKENS).to_dict()


def test_context_and_last_position() -> None:
    base, other = language_model(), language_model(noise=0.05)
    found = compare(
        base, other, TOKENS, window=50, layers=False, protocol=Protocol(context=20, score_last=False)
    ).language
    divergences = []
    for tokens in TOKENS.reshape(14, 50):
        log_p, log_q = log_softmax(logits_of(base, tokens)), log_softmax(logits_of(other, tokens))
        divergences.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1)[20:49])
    assert found is not None
    assert found.kl.mean.value == pytest.approx(np.mean(divergences), rel=1e-9)
    assert found.positions == found.predicted == 14 * 29


def test_equal_models_lose_nothing() -> None:
    found = compare(language_model(), language_model(), TOKENS, layers=False).language
    assert found is not None
    assert abs(found.kl.maximum) < 1e-12
    assert found.same_top.value == 1
    assert found.perplexity_ratio.value == 1
    assert found.delta_p_rms.value == 0


def test_a_cache_among_the_inputs_is_empty() -> None:
    base, other = (language_model(noise=noise, stateful=False, past=True) for noise in (0, 0.05))
    plain = plain_figures(*(language_model(noise=noise, stateful=False) for noise in (0, 0.05)), TOKENS[None, :256])
    agree(compare(base, other, TOKENS[:256], layers=False), plain)


def test_inputs_by_name_and_what_the_mask_hides() -> None:
    base, other = (language_model(noise=noise, extra="audio") for noise in (0, 0.05))
    mask = np.ones((1, 40), dtype=np.int64)
    mask[:, 30:] = 0
    audio = np.zeros((1, 5), dtype=np.float32)
    items = [{"input_ids": TOKENS[None, :40], "attention_mask": mask, "audio": audio}] * 2
    found = compare(base, other, iter(items), layers=False).language
    wanted = plain_figures(language_model(), language_model(noise=0.05), TOKENS[None, :30])
    assert found is not None
    assert (found.positions, found.predicted) == (60, 58)
    assert found.kl.mean.value == pytest.approx(wanted["kl"], rel=1e-7)
    assert found.perplexity.value == pytest.approx(wanted["perplexity"], rel=1e-7)


def test_unknown_inputs_are_named() -> None:
    model = language_model(extra="audio")
    with pytest.raises(OptionError, match="also needs 'audio'"):
        compare(model, model.clone(), [{"input_ids": TOKENS[None, :40]}])
    with pytest.raises(OptionError, match="has no input 'image'"):
        compare(model, model.clone(), [{"input_ids": TOKENS[None, :40], "image": TOKENS}])


def test_without_data_the_base_model_writes_the_text() -> None:
    """Its perplexity is then that of text that it believes in, not of random ids."""
    found = compare(language_model(), language_model(noise=0.05), layers=False, window=32)
    assert found.data.synthesised
    assert found.data.source == "text that the base model wrote itself"
    assert any("The base model wrote the text itself" in note for note in found.notes)
    assert found == compare(language_model(), language_model(noise=0.05), layers=False, window=32)
    random = np.random.default_rng(0).integers(0, VOCABULARY, (8, 32))
    on_random = compare(language_model(), language_model(noise=0.05), random, layers=False)
    assert found.language is not None
    assert on_random.language is not None
    assert found.language.perplexity_base.value < 0.8 * on_random.language.perplexity_base.value
    assert found.language is not None
    assert found.language.positions == 8 * 32


def test_worst_places_are_the_worst() -> None:
    base, other = language_model(), language_model(noise=0.3)
    found = compare(base, other, TOKENS, window=100, layers=False)
    assert found.language is not None
    assert found.worst_positions[0].kl == found.language.kl.maximum
    worst = found.worst_positions[0]
    window = TOKENS[:700].reshape(7, 100)[worst.window]
    log_q = log_softmax(logits_of(other, window))[worst.position]
    assert worst.top == log_q.argmax()
    assert worst.top_p == pytest.approx(np.exp(log_q.max()))
    assert worst.before[-1] == window[worst.position]
    if worst.right is not None:
        assert worst.right == window[worst.position + 1]
        assert worst.right_p == pytest.approx(np.exp(log_q[worst.right]))
    means = [passage.mean_kl for passage in found.worst_passages]
    assert means == sorted(means, reverse=True)
    assert found.worst_passages[0].kl[0] is None


def test_logits_are_never_all_in_memory() -> None:
    base, other = (language_model(noise=noise, vocabulary=2048) for noise in (0, 0.05))
    compare(base, other, TOKENS[:64], layers=False)
    tracemalloc.start()
    try:
        compare(base, other, np.tile(TOKENS, 15), layers=False, window=150)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000, "one model's logits for all 70 windows are 86 MB"


class TestErrors:
    def test_tokens_of_another_tokenizer(self) -> None:
        with pytest.raises(OptionError, match=f"token id {VOCABULARY} in window 0 is beyond the vocabulary"):
            compare(language_model(), language_model(), np.array([1, 2, VOCABULARY]))

    def test_other_vocabularies(self) -> None:
        with pytest.raises(ModelError, match="different vocabularies: base 50, compressed 40"):
            compare(language_model(), language_model(vocabulary=40), TOKENS)

    def test_other_inputs(self) -> None:
        with pytest.raises(ModelError, match="different inputs"):
            compare(language_model(), language_model(extra="audio"), TOKENS)

    def test_nan(self) -> None:
        broken = language_model(sharpness=float("nan"))
        with pytest.raises(WorkError, match="the compressed model gives NaN"):
            compare(language_model(), broken, TOKENS)
        with pytest.raises(WorkError, match="the base model gives NaN"):
            compare(broken, language_model(), TOKENS)

    def test_a_device_that_is_not_there(self) -> None:
        with pytest.raises(OptionError, match=r"device='TPU': OpenVINO finds no such device here, it finds .*CPU"):
            compare(language_model(), language_model(), TOKENS, device="TPU")

    def test_no_prediction_at_all(self) -> None:
        ones = [{"input_ids": np.array([[3]])}]
        with pytest.raises(OptionError, match="no token with a next one"):
            compare(language_model(), language_model(), ones)


class TestKeptLogits:
    def test_figures_are_the_same(self, tmp_path: Path) -> None:
        base, other = language_model(), language_model(noise=0.05)
        kept = tmp_path / "base.logits"
        fresh = compare(base, other, TOKENS, window=64, protocol=Protocol(save_base=kept))
        again = compare(base, other, TOKENS, window=64, protocol=Protocol(base_logits=kept))
        assert again.to_dict() == fresh.to_dict()
        assert [file.name for file in tmp_path.iterdir()] == ["base.logits"]

    def test_a_model_read_back_is_the_same_model(self, tmp_path: Path) -> None:
        base, other = language_model(), language_model(noise=0.05)
        ov.save_model(base, tmp_path / "base.xml", compress_to_fp16=False)
        kept = tmp_path / "base.logits"
        fresh = compare(base, other, TOKENS, layers=False, protocol=Protocol(save_base=kept))
        again = compare(tmp_path / "base.xml", other, TOKENS, layers=False, protocol=Protocol(base_logits=kept))
        assert again.language == fresh.language

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"data": TOKENS + 0 * TOKENS - (TOKENS > 0)}, "another text"),
            ({"window": 32}, "another text"),
            ({"protocol": {"context": 3}}, "context is 0, not 3"),
            ({"protocol": {"score_last": False}}, "last position"),
            ({"base": language_model(noise=0.01)}, "another base model"),
            ({"as_deployed": True}, "computed with CPU, f32"),
        ],
    )
    def test_of_something_else(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        kept = tmp_path / "base.logits"
        arguments = {"base": language_model(), "data": TOKENS, "window": 64, "layers": False}
        compare(compressed=language_model(noise=0.05), protocol=Protocol(save_base=kept), **arguments)
        protocol = Protocol(base_logits=kept, **change.pop("protocol", {}))
        with pytest.raises(OptionError, match=message):
            compare(compressed=language_model(noise=0.05), protocol=protocol, **{**arguments, **change})

    def test_damaged_files(self, tmp_path: Path) -> None:
        kept = tmp_path / "base.logits"
        arguments = {"base": language_model(), "compressed": language_model(), "data": TOKENS, "layers": False}
        compare(protocol=Protocol(save_base=kept), **arguments)
        kept.write_bytes(kept.read_bytes()[:-4])
        with pytest.raises(ModelError, match="it is damaged"):
            compare(protocol=Protocol(base_logits=kept), **arguments)
        kept.write_bytes(b"PK\x03\x04 something else altogether")
        with pytest.raises(ModelError, match="not a file of base logits"):
            compare(protocol=Protocol(base_logits=kept), **arguments)
        with pytest.raises(OptionError, match="no such file"):
            compare(protocol=Protocol(base_logits=tmp_path / "nothing"), **arguments)

    def test_a_failure_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(WorkError):
            compare(
                language_model(),
                language_model(sharpness=float("nan")),
                TOKENS,
                protocol=Protocol(save_base=tmp_path / "a.logits"),
            )
        assert list(tmp_path.iterdir()) == []

    def test_options_that_exclude_each_other(self, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="save_base, base_logits: give one of them"):
            Protocol(save_base=tmp_path / "a", base_logits=tmp_path / "b")
        with pytest.raises(OptionError, match="there is no folder"):
            Protocol(save_base=tmp_path / "no" / "a")


def test_as_deployed_is_said_and_done() -> None:
    base, other = language_model(), language_model(noise=0.05)
    exact, deployed = (compare(base, other, TOKENS, layers=False, as_deployed=flag) for flag in (False, True))
    assert dict(exact.arithmetic.properties)["INFERENCE_PRECISION_HINT"] == "f32"
    assert deployed.arithmetic.properties == ()
    assert "as deployed" in deployed.arithmetic.describe()
    assert set(deployed.to_dict()["arithmetic"]["defaults"]) == set(dict(exact.arithmetic.properties))
    assert "as deployed" not in exact.arithmetic.describe()


def test_a_compressed_model_that_is_still_postponed() -> None:
    from ov_weight_compression.passes import apply_weight_compression

    base = language_model()
    compressed = apply_weight_compression(language_model(), mode="int8_sym")
    lazily = compare(base, compressed, TOKENS)
    settled = apply_weight_compression(language_model(), mode="int8_sym", lazy=False)
    assert lazily.to_dict()["language"] == compare(base, settled, TOKENS).to_dict()["language"]
    assert {layer.mode for layer in lazily.layers} == {"int8_sym"}


def test_why_tokens_are_shown_as_ids_is_said(tmp_path: Path) -> None:
    models = language_model(), language_model(noise=0.05)
    nowhere = compare(*models, TOKENS, layers=False)
    assert nowhere.worst_positions[0].text is None
    assert nowhere.notes == ("Tokens are shown as ids: there is no tokenizer beside the models.",)
    (tmp_path / "tokenizer.json").write_text("{")
    damaged = compare(*models, TOKENS, layers=False, tokenizer=tmp_path)
    assert damaged.notes[-1].startswith(
        f"Tokens are shown as ids: tokenizer {tmp_path / 'tokenizer.json'} cannot be read"
    )


def test_a_protocol_is_one_of_its_kind() -> None:
    with pytest.raises(OptionError, match=r"protocol: must be a ComparisonProtocol, got \{'stride': 3\}"):
        compare(language_model(), language_model(), TOKENS, protocol={"stride": 3})  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="stride: must be a whole number of at least 1, got 0"):
        Protocol(stride=0)
