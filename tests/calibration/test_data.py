"""Whatever a caller gives as a dataset: what becomes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.calibration import make_samples, read_data
from ov_weight_compression.calibration.data_files import find_tokenizer
from ov_weight_compression.calibration.generate import _drawn
from ov_weight_compression.ir_utils.errors import MissingExtraError, OptionError
from ov_weight_compression.passes import WeightCompression, apply_weight_compression
from tests import models
from tests.calibration import small

TOKENS = np.random.default_rng(3).integers(0, small.VOCABULARY, 400)


def ids(samples: Any) -> np.ndarray:
    return np.concatenate([window["input_ids"] for window in samples])


def two_inputs() -> ov.Model:
    x, y = (op.parameter([-1, 64], np.float32, name=name) for name in "xy")
    x.output(0).set_names({"left"})
    return ov.Model([op.result(op.matmul(op.add(x, y), models.constant((48, 64)), False, True))], [x, y], "sum")


def test_flat_tokens_are_cut_into_windows() -> None:
    samples = make_samples(small.language_model(), TOKENS, context_length=20)
    np.testing.assert_array_equal(ids(samples), TOKENS.reshape(20, 20))
    assert samples.description == "20 windows, 400 tokens of given data"
    window = next(iter(samples))
    rows = len(window["input_ids"])
    assert {name: (array.shape, str(array.dtype)) for name, array in window.items()} == {
        "input_ids": ((rows, 20), "int64"),
        "attention_mask": ((rows, 20), "int64"),
        "position_ids": ((rows, 20), "int64"),
        "beam_idx": ((rows,), "int32"),
    }
    assert window["attention_mask"].all()
    np.testing.assert_array_equal(window["position_ids"], np.tile(np.arange(20), (rows, 1)))
    np.testing.assert_array_equal(window["beam_idx"], np.arange(rows))


def test_a_subset_of_flat_tokens_comes_from_all_over_them() -> None:
    samples = make_samples(small.language_model(), TOKENS, context_length=20, subset_size=3)
    np.testing.assert_array_equal(ids(samples), TOKENS.reshape(20, 20)[[0, 10, 19]])
    assert len(ids(make_samples(small.language_model(), np.tile(TOKENS, 20), context_length=20))) == 128


def test_few_tokens_are_one_short_window_and_a_list_of_numbers_will_do() -> None:
    np.testing.assert_array_equal(ids(make_samples(small.language_model(), TOKENS[:5].tolist())), TOKENS[None, :5])


def test_rows_of_tokens_stay_as_they_are() -> None:
    rows = TOKENS.reshape(20, 20).astype(np.int32)
    np.testing.assert_array_equal(ids(make_samples(small.language_model(), rows, subset_size=7)), rows[:7])


def test_a_flat_array_is_cut_as_the_model_takes_it() -> None:
    for length, context_length in [(16, 8), (16, 16), (16, 50)]:  # the usual length is not the model's
        model = small.language_model(batch=1, length=length)
        samples = ids(make_samples(model, TOKENS, context_length=context_length))
        np.testing.assert_array_equal(samples, TOKENS[: len(samples) * length].reshape(-1, length))
        assert len(samples) == TOKENS.size // length


def test_windows_of_one_length_are_run_together() -> None:
    windows = [TOKENS[:9], TOKENS[9:12], TOKENS[12:21], TOKENS[21:24].reshape(1, 3)]
    found = list(make_samples(small.language_model(), windows))
    assert [window["input_ids"].shape for window in found] == [(2, 9), (2, 3)]
    np.testing.assert_array_equal(found[0]["input_ids"], [windows[0], windows[2]])


def test_windows_follow_the_table_of_positions_and_the_shape_of_the_input() -> None:
    assert ids(make_samples(small.language_model(), TOKENS)).shape == (10, 40)
    model = small.language_model(batch=1, length=16)
    assert [window["input_ids"].shape for window in make_samples(model, TOKENS, subset_size=3)] == [(1, 16)] * 3
    model = small.language_model(batch=4, length=16)
    found = list(make_samples(model, TOKENS, subset_size=6))
    assert [window["input_ids"].shape for window in found] == [(4, 16)]
    assert [window["input_ids"].shape for window in make_samples(model, TOKENS, subset_size=3)] == [(4, 16)]


def test_empty_past_is_made_for_models_without_state() -> None:
    tokens = op.parameter([-1, -1], np.int64, name="input_ids")
    past = op.parameter([-1, 2, -1, 32], np.float32, name="past_key_values.0.key")
    hidden = op.gather(models.constant((96, 64)), tokens, op.constant(np.int64(0)))
    keys = op.transpose(op.reshape(hidden, [0, 0, 2, 32], True), [0, 2, 1, 3])
    whole = op.concat([past, keys], 2)
    results = [op.result(op.matmul(hidden, models.constant((96, 64), "weight_1"), False, True)), op.result(whole)]
    model = ov.Model(results, [tokens, past], "with_past")
    window = next(iter(make_samples(model, TOKENS, context_length=10)))
    assert window["past_key_values.0.key"].shape == (40, 2, 0, 32)
    written = ids(make_samples(model, "self", subset_size=3, context_length=6))
    assert written.shape == (3, 6)


def test_dictionaries_tuples_and_arrays() -> None:
    model = two_inputs()
    x, y = np.ones((3, 64), np.float64), np.zeros((3, 64), np.float32)
    for item in ({"left": x, "y": y}, {"x": x, "y": y}, (x, y), [x, y], {0: x, 1: y}, {"x": ov.Tensor(x), "y": y}):
        (window,) = make_samples(model, [item])
        assert set(window) == {"left", "y"}
        assert window["left"].dtype == np.float32
        np.testing.assert_array_equal(window["left"], x)
    (window,) = make_samples(models.linear(), [x])
    np.testing.assert_array_equal(window["x"], x)


def test_dictionaries_for_language_models_are_completed() -> None:
    mask = np.array([[0, 1, 1]])
    (window,) = make_samples(small.language_model(), [{"input_ids": [[1, 2, 3]], "attention_mask": mask}])
    np.testing.assert_array_equal(window["attention_mask"], mask)
    np.testing.assert_array_equal(window["position_ids"], [[0, 1, 2]])


def test_an_iterator_can_be_used_up_and_the_samples_still_repeat() -> None:
    samples = make_samples(
        models.linear(), (np.full((1, 64), number, np.float32) for number in range(5)), subset_size=3
    )
    for _ in range(2):
        assert [window["x"][0, 0] for window in samples] == [0, 1, 2]


def test_dataset_of_nncf() -> None:
    class Dataset:
        def get_inference_data(self) -> Iterator[Any]:
            return iter([{"x": np.full((1, 64), number, np.float32)} for number in range(4)])

    samples = make_samples(models.linear(), Dataset())
    for _ in range(2):
        assert [window["x"][0, 0] for window in samples] == [0, 1, 2, 3]


def test_dataset_of_torch() -> None:
    class Dataset:
        def __getitem__(self, number: int) -> Any:
            return {"x": np.full((1, 64), number, np.float32)}

        def __len__(self) -> int:
            return 3

    assert [window["x"][0, 0] for window in make_samples(models.linear(), Dataset())] == [0, 1, 2]


def test_draws_follow_the_softmax() -> None:
    logits = np.random.default_rng(1).standard_normal((1, 600)).astype(np.float32) * 2
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    drawn = _drawn(np.repeat(logits, 20_000, 0), np.random.default_rng(0))
    found = np.bincount(drawn, minlength=600) / len(drawn)
    assert len(found) == 600
    assert np.abs(found - expected).max() < 5 * np.sqrt(expected.max() / len(drawn))
    assert np.abs(found[512:].sum() - expected[512:].sum()) < 0.015


def test_random_tokens() -> None:
    model = small.language_model()
    drawn = ids(make_samples(model, "random", subset_size=100, context_length=40))
    assert drawn.shape == (100, 40)
    counts = np.bincount(drawn.reshape(-1), minlength=small.VOCABULARY)
    assert len(counts) == small.VOCABULARY
    assert counts.min() > 0.4 * counts.mean()
    assert counts.max() < 1.8 * counts.mean()
    np.testing.assert_array_equal(ids(make_samples(model, "random")), ids(make_samples(model, "random")))
    assert (ids(make_samples(model, "random", seed=1)) != ids(make_samples(model, "random"))).any()
    assert make_samples(model, "random").description == "4 windows, 160 random tokens"


def successor(spread: float) -> ov.Model:
    """A model that writes the id after the last one, or the one after that with a share of `1 / (1 + e^spread)`.

    It knows the last token from its input; the number of tokens before, which it keeps in a variable, must be that of
    the mask, or the logits are NaN.
    """
    table = np.full((50, 50), -100, np.float32)
    for number in range(50):
        table[number, (number + 1) % 50], table[number, (number + 2) % 50] = spread, 0
    tokens = op.parameter([-1, -1], np.int64, name="input_ids")
    mask = op.parameter([-1, -1], np.int64, name="attention_mask")
    logits = op.gather(op.constant(table), tokens, op.constant(np.int64(0)))
    past = op.read_value(op.constant(np.zeros((1, 1), np.float32)), "seen", ov.Type.f32, ov.PartialShape([1, 1]))
    lengths = [
        op.convert(op.gather(op.shape_of(node), [1], op.constant(np.int64(0))), "f32") for node in (tokens, mask)
    ]
    total = op.add(past, lengths[0])
    wrong = op.not_equal(op.reshape(total, [1, 1, 1], False), op.reshape(lengths[1], [1, 1, 1], False))
    checked = op.select(wrong, op.constant(np.float32(np.nan)), logits)
    return ov.Model([op.result(checked)], [op.assign(total, "seen")], [tokens, mask], "successor")


def test_written_tokens_follow_the_model() -> None:
    written = ids(make_samples(successor(np.log(3)), "self", subset_size=40, context_length=30))
    assert written.shape == (40, 30)
    steps = np.diff(written, axis=1) % 50
    assert set(np.unique(steps)) == {1, 2}
    assert abs((steps == 1).mean() - 0.75) < 0.05
    assert len(np.unique(written[:, 0])) > 15
    np.testing.assert_array_equal(
        written, ids(make_samples(successor(np.log(3)), "self", subset_size=40, context_length=30))
    )
    other = ids(make_samples(successor(np.log(3)), "self", subset_size=40, context_length=30, seed=1))
    assert (other != written).any()
    samples = make_samples(successor(1.0), "self", context_length=4)
    assert samples.description == "64 windows, 256 tokens that the model wrote itself"


def test_written_tokens_of_a_transformer() -> None:
    model = small.language_model()
    written = ids(make_samples(model, "self", subset_size=8, context_length=30))
    np.testing.assert_array_equal(written, ids(make_samples(model, "self", subset_size=8, context_length=30)))
    inputs = next(iter(make_samples(model, written)))
    logits = ov.Core().compile_model(model, "CPU", small.EXACT)(inputs)[0]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    likelihood = np.take_along_axis(np.log(shares[:, :-1]), written[:, 1:, None], 2).mean()
    entropy = -(shares * np.log(shares)).sum(-1).mean()
    assert entropy < 0.9 * np.log(small.VOCABULARY)
    assert abs(likelihood + entropy) < 0.2


def test_written_text_reads_like_the_model(shared: Path) -> None:
    model = ov.Core().read_model(shared / "models" / "pylm" / "openvino_model.xml")
    written = ids(make_samples(model, "self", subset_size=8, context_length=32))
    logits = ov.Core().compile_model(model, "CPU", small.EXACT)(next(iter(make_samples(model, written))))[0]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    likelihood = np.take_along_axis(logits[:, :-1], written[:, 1:, None], 2).mean()
    assert likelihood > -5 > -np.log(2048)


def values(samples: Any) -> list[np.ndarray]:
    return [array for window in samples for array in window.values()]


@pytest.mark.parametrize("count", [1, 3])
def test_what_can_be_read_once_is_read_as_often_as_wanted(count: int) -> None:
    listed = [np.full((1, 64), number, np.float32) for number in range(5)]
    again = SimpleNamespace(get_inference_data=lambda: iter(listed))  # says nothing of where its samples come from
    once = SimpleNamespace(get_inference_data=(entry for entry in listed).__iter__)
    foreign = SimpleNamespace(_data_source=(source := (entry for entry in listed)), get_inference_data=lambda: source)
    for dataset in ((entry for entry in listed), again, once, foreign):
        samples = make_samples(models.linear(), dataset, subset_size=count)
        for _ in range(2):
            np.testing.assert_array_equal(values(samples), listed[:count])


def test_no_more_samples_are_read_than_are_used() -> None:
    seen: list[int] = []

    def made() -> Iterator[np.ndarray]:
        for number in range(9):
            seen.append(number)
            yield np.full((1, 64), number, np.float32)

    assert len(values(make_samples(models.linear(), made(), subset_size=3))) == 3
    assert seen == [0, 1, 2]


def test_integers_are_inputs_where_the_model_takes_no_tokens() -> None:
    x = op.parameter([-1, 64], np.uint8, name="x")
    model = ov.Model([op.matmul(op.convert(x, np.float32), models.constant((48, 64)), False, True)], [x])
    images = [np.full((2, 64), number, np.uint8) for number in (7, 255)]
    for dataset in (images, np.stack(images), [ov.Tensor(image) for image in images]):
        found = values(make_samples(model, dataset))
        assert [(array.dtype, int(array[0, 0])) for array in found] == [(np.uint8, 7), (np.uint8, 255)]


def test_tensors_of_types_that_numpy_does_not_know() -> None:
    bits = np.full((1, 64), 0x3FC0, np.uint16)  # 1.5 in bfloat16
    tensor = ov.Tensor(bits.view(np.float16), ov.Shape([1, 64]), ov.Type.bf16)
    assert float(values(make_samples(models.linear(), [tensor]))[0][0, 0]) == 1.5


def test_floats_that_are_integers_and_the_key_that_resets() -> None:
    sample = {"input_ids": np.ones((1, 3)), "nncf_reset_state": True}
    window = next(iter(make_samples(small.language_model(), [sample])))
    assert window["input_ids"].dtype == np.int64
    assert "nncf_reset_state" not in window


LANGUAGE, PLAIN = small.language_model, models.linear
REFUSED = {
    "nothing": (LANGUAGE, [], "dataset: it is empty"),
    "no tokens": (LANGUAGE, np.zeros(0, np.int64), "dataset: it is empty"),
    "not iterable": (PLAIN, 7, "dataset: int is not a sequence of model inputs"),
    "an empty dictionary": (PLAIN, {}, "dataset: there is no array in it"),
    "arrays of other lengths": (
        two_inputs,
        {"x": np.ones((3, 64)), "y": np.ones((2, 64))},
        r"dataset: its arrays disagree about the number of rows, or have none: left \[3, 64\], y \[2, 64\]",
    ),
    "one array for two inputs": (two_inputs, np.ones((3, 64)), "dataset: one array is not enough .* left, y"),
    "floats for tokens": (LANGUAGE, np.ones((2, 5)), "token ids must be whole numbers, this array holds float64"),
    "another word": (LANGUAGE, "wiki", "dataset='wiki': allowed are 'random', 'self'"),
    "tokens for a plain model": (PLAIN, TOKENS, "no input for those: give dictionaries with the keys x"),
    "random for a plain model": (PLAIN, "random", "dataset='random': only a language model .* with the keys x"),
    "self for a plain model": (PLAIN, "self", "dataset='self': only a language model"),
    "id too large": (LANGUAGE, [[1, 2, 96]], "token id 96: the model's vocabulary has ids 0 to 95"),
    "negative id": (LANGUAGE, [[1, -2]], "token id -2"),
    "window too long": (LANGUAGE, TOKENS.reshape(8, 50), "a window of 50 tokens: the model takes at most 40"),
    "unknown name": (PLAIN, [{"pixels": np.ones((1, 64))}], "the model has no input 'pixels': its inputs are x"),
    "missing input": (
        two_inputs,
        [{"left": np.ones((1, 64))}],
        "the model also needs 'y': give dictionaries or an .npz file with the keys left, y",
    ),
    "too many arrays": (PLAIN, [(np.ones((1, 64)), np.ones(3))], "2 arrays for 1 inputs: x"),
    "wrong shape": (PLAIN, [np.ones((1, 32))], r"input 'x' is \[1, 32\], but the model takes \[\?,64\]"),
    "wrong type": (
        LANGUAGE,
        [{"input_ids": np.full((1, 3), 1.5)}],
        "takes i64, and the data is float64 with",
    ),
    "a state that is kept": (
        PLAIN,
        [{"x": np.ones((1, 64)), "nncf_reset_state": False}],
        "reset_state=False asks",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    build, dataset, message = REFUSED[case]
    with pytest.raises(OptionError, match=message):
        make_samples(build(), dataset)


@pytest.mark.parametrize("name", ["subset_size", "context_length"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}: must be a whole number of at least 1, got 0"):
        make_samples(small.language_model(), TOKENS, **{name: 0})


def test_what_does_not_follow_from_tokens_is_named(shared: Path) -> None:
    model = ov.Core().read_model(shared / "zoo" / "whisper" / "openvino_decoder_model.xml")
    with pytest.raises(
        OptionError, match=r"the model's input 'encoder_hidden_states' .* does not follow from token ids"
    ):
        make_samples(model, TOKENS)


def test_a_model_that_does_not_write_says_so(shared: Path) -> None:
    model = ov.Core().read_model(shared / "zoo" / "bert" / "openvino_model.xml")
    with pytest.raises(OptionError, match="dataset='self': the model does not write text"):
        make_samples(model, "self")


def test_files(tmp_path: Path) -> None:
    assert read_data("random", tmp_path) == "random"
    assert read_data("self", tmp_path) == "self"
    np.save(tmp_path / "tokens.npy", TOKENS)
    np.testing.assert_array_equal(read_data(tmp_path / "tokens.npy", tmp_path), TOKENS)
    np.savez(tmp_path / "tokens.npz", ids=TOKENS)
    read = read_data(tmp_path / "tokens.npz", tmp_path)
    np.testing.assert_array_equal(
        ids(make_samples(small.language_model(), read, context_length=20)).reshape(-1), TOKENS
    )
    np.savez(tmp_path / "inputs.npz", x=np.ones((3, 64), np.float32), y=np.zeros((3, 64), np.float32))
    windows = list(make_samples(two_inputs(), read_data(tmp_path / "inputs.npz", tmp_path)))
    assert [window["left"].shape for window in windows] == [(1, 64)] * 3


def test_refused_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no such file"):
        read_data(tmp_path / "absent.txt", tmp_path)
    (tmp_path / "broken.npy").write_bytes(b"not numpy")
    with pytest.raises(OptionError, match="cannot be read as numpy arrays"):
        read_data(tmp_path / "broken.npy", tmp_path)
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object))
    with pytest.raises(OptionError, match="cannot be read as numpy arrays"):
        read_data(tmp_path / "objects.npy", tmp_path)
    (tmp_path / "empty.txt").write_text("  \n")
    with pytest.raises(OptionError, match="holds no text"):
        read_data(tmp_path / "empty.txt", tmp_path)
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(OptionError, match=r"text needs a tokenizer, openvino_tokenizer.xml or tokenizer.json"):
        read_data(tmp_path / "text.txt", tmp_path)
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(OptionError, match=r"latin.txt': cannot be read as text .*position 1"):
        read_data(tmp_path / "latin.txt", tmp_path)


def test_text_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ov-weight-compression\[text\]'"):
        read_data(tmp_path / "text.txt", tmp_path)


def test_a_mark_that_a_tokenizer_begins_with_is_kept(tmp_path: Path) -> None:
    """Text is read as comparisons read it: as the tokenizer does by default, whole, and marked at its beginning."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    made.enable_truncation(3)
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("a b a c")
    assert read_data(tmp_path / "text.txt", tmp_path).tolist() == [0, 1, 2, 1, 3]
    assert find_tokenizer([tmp_path]).encode("a b a c").tolist() == [0, 1, 2, 1, 3]


def test_a_file_is_data_wherever_a_dataset_is(tmp_path: Path) -> None:
    """The tokenizer is the one beside the file that the model was read from."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<s>": 0, **{f"w{number}": number for number in range(1, 90)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    ov.save_model(small.language_model(), tmp_path / "openvino_model.xml", compress_to_fp16=False)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{number}" for number in range(1, 31)))
    model = ov.Core().read_model(tmp_path / "openvino_model.xml")
    for given in (text, str(text)):
        (window,) = make_samples(model, given, context_length=10)
        assert window["input_ids"].tolist() == np.arange(1, 31).reshape(3, 10).tolist()
    apply_weight_compression(model, mode="int4_sym", group_size=32, dataset=text, context_length=10)
    with pytest.raises(
        OptionError, match=r"text needs a tokenizer.*looked in nowhere: the models were not given as file"
    ):
        make_samples(small.language_model(), text)


def test_text_by_either_tokenizer(shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("openvino_tokenizers")
    folder = shared / "models" / "pylm"
    text = tmp_path / "text.py"
    text.write_text("def add(first, second):\n    return first + second\n" * 20)
    found = read_data(text, folder)
    (tmp_path / "only").mkdir()
    for name in ("openvino_tokenizer.xml", "openvino_tokenizer.bin"):
        (tmp_path / "only" / name).symlink_to(folder / name)
    other = read_data(text, tmp_path / "only")
    assert found.ndim == 1
    assert 200 < len(found) < 800
    np.testing.assert_array_equal(found, other)


def test_windows_fit_a_table_of_positions_that_no_input_names(shared: Path) -> None:
    model = ov.Core().read_model(shared / "zoo" / "bert" / "openvino_model.xml")
    for dataset in ("random", np.arange(1000) % 100):
        windows = list(make_samples(model, dataset))
        assert {window["input_ids"].shape[1] for window in windows} <= {128, 1000 % 128}
    with pytest.raises(OptionError, match="128"):
        make_samples(model, [np.arange(129)])


@pytest.mark.parametrize("name", ["whisper/openvino_decoder_model.xml", "clip/openvino_model.xml"])
def test_a_model_that_needs_more_than_token_ids_is_compressed_without_data(shared: Path, name: str) -> None:
    model = ov.Core().read_model(shared / "zoo" / name)
    compression = WeightCompression(mode="int4_sym", group_size=32, accuracy="fast")
    compression.run_on_model(model)
    assert compression.report.rows
    assert "data" not in compression.report.recipe
