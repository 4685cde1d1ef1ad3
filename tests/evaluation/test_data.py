"""Everything that may be given as data."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.calibration import make_samples, read_data
from ov_weight_compression.calibration.generate import fitting_window
from ov_weight_compression.calibration.model_inputs import ModelInputs, read_language_model
from ov_weight_compression.evaluation import compare
from ov_weight_compression.evaluation.models import Pair, arithmetic_for, load
from ov_weight_compression.evaluation.samples import CompareRequest, Data, open_data, prepare
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from tests.evaluation.small import VOCABULARY, language_model, perceptron

TOKENS = np.arange(40) % VOCABULARY


def read(data: object, model: ov.Model | None = None, batch: int | None = None) -> Data:
    loaded = load(model or language_model(), "base")
    return open_data(data, loaded.inputs, [], batch)


def test_token_ids_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", TOKENS)
    np.savez(tmp_path / "b.npz", TOKENS, TOKENS[:7])
    np.savez(tmp_path / "c.npz", input_ids=TOKENS.reshape(4, 10))
    assert [len(array) for array in read(tmp_path / "a.npy").tokens] == [40]
    assert [len(array) for array in read(str(tmp_path / "b.npz")).tokens] == [40, 7]
    assert [array.shape for array in read(tmp_path / "c.npz").tokens] == [(4, 10)]


def test_token_ids_in_memory() -> None:
    assert read(TOKENS).tokens[0] is TOKENS
    assert [len(array) for array in read([TOKENS, TOKENS[:5]]).tokens] == [40, 5]
    assert [array.tolist() for array in read([3, 1, 2]).tokens] == [[3, 1, 2]]
    assert [len(array) for array in read(part for part in (TOKENS, TOKENS)).tokens] == [40, 40]


def test_inputs_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", input_ids=TOKENS[None], attention_mask=np.ones((1, 40), dtype=int))
    (inputs,) = read(tmp_path / "a.npz").inputs or ()
    assert sorted(inputs) == ["attention_mask", "input_ids"]


def test_an_additional_axis_holds_samples() -> None:
    model = perceptron()
    shapes = [inputs["x"].shape for inputs in read(np.zeros((5, 2, 24)), model).inputs or ()]
    assert shapes == [(2, 24)] * 5
    assert [inputs["x"].shape for inputs in read(np.zeros((5, 24)), model).inputs or ()] == [(5, 24)]
    assert [inputs["x"].shape for inputs in read({"x": np.zeros((5, 24))}, model, 2).inputs or ()] == [
        (2, 24), (2, 24), (1, 24),
    ]  # fmt: skip
    assert [inputs["x"].shape for inputs in read([np.zeros((5, 24))] * 2, model).inputs or ()] == [(5, 24)] * 2


def test_calibration_reads_the_same_file_as_the_same_inputs(tmp_path: Path) -> None:
    model = language_model()
    mask = np.tri(4, 10, 6, dtype=int)
    np.savez(tmp_path / "named.npz", input_ids=TOKENS.reshape(4, 10), attention_mask=mask)
    np.savez(tmp_path / "streams.npz", TOKENS, TOKENS[:20])
    here = read(tmp_path / "named.npz", model, 1).inputs or ()
    there = make_samples(model, read_data(tmp_path / "named.npz", tmp_path))
    for ours, theirs in zip(here, there, strict=True):
        for name, array in ours.items():
            np.testing.assert_array_equal(theirs[name], array)
    windows = make_samples(model, read_data(tmp_path / "streams.npz", tmp_path), context_length=10)
    together = np.concatenate([window["input_ids"] for window in windows])
    tokens = read(tmp_path / "streams.npz", model).tokens
    np.testing.assert_array_equal(together, np.concatenate([array.reshape(-1, 10) for array in tokens]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not numpy at all", "cannot be read as numpy arrays"),
        (b"", "cannot be read as numpy arrays"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("a.npy", "a.npz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OptionError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("no_path", ["x" * 5000, ""])
def test_data_that_is_no_path(no_path: str) -> None:
    model = language_model()
    with pytest.raises(OptionError, match="data: must be a path"):
        compare(model, model, no_path)


def test_data_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no such file"):
        read(tmp_path / "nothing.npy")
    with pytest.raises(OptionError, match="int is not a file"):
        read(3)
    np.savez(tmp_path / "a.npz", picture=np.zeros((1, 3)))
    with pytest.raises(OptionError, match=r"its arrays \(picture\) are not inputs of the model"):
        read(tmp_path / "a.npz")
    two = language_model(extra="audio")
    with pytest.raises(OptionError, match="one array is not enough"):
        read(TOKENS, two)
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(OptionError, match="text is for models that take input_ids alone"):
        read(tmp_path / "a.txt", perceptron())
    with pytest.raises(OptionError, match="text needs a tokenizer"):
        read(tmp_path / "a.txt")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(OptionError, match="cannot be read"):
        read(tmp_path / "object.npy")


def test_what_a_callers_own_iterable_raises_is_an_error_of_the_data() -> None:
    class Loader:
        def __iter__(self) -> Iterator[object]:
            raise ZeroDivisionError("no workers\nleft")

    said = "it cannot be read: ZeroDivisionError: no workers left$"
    with pytest.raises(OptionError, match=f"^data: {said}"):
        read(Loader())
    with pytest.raises(OptionError, match=f"^dataset: {said}"):
        make_samples(language_model(), Loader())


def test_models_are_found_in_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load(tmp_path / "a.xml", "base")
    with pytest.raises(ModelError, match="holds no OpenVINO model"):
        load(tmp_path, "base")
    (tmp_path / "openvino_tokenizer.xml").write_text("<net/>")
    ov.save_model(language_model(), tmp_path / "decoder.xml")
    assert load(tmp_path, "base").path == tmp_path / "decoder.xml"
    ov.save_model(language_model(), tmp_path / "encoder.xml")
    with pytest.raises(ModelError, match=r"several models \(decoder.xml, encoder.xml\)"):
        load(tmp_path, "base")
    ov.save_model(language_model(), tmp_path / "openvino_model.xml")
    found = load(tmp_path, "base")
    assert (found.path, found.name) == (tmp_path / "openvino_model.xml", tmp_path.name)
    (tmp_path / "decoder.bin").unlink()
    with pytest.raises(ModelError, match="decoder\\.bin is missing"):
        load(tmp_path / "decoder.xml", "base")
    (tmp_path / "encoder.xml").write_text("<net")
    with pytest.raises(ModelError, match=r"the base model .*encoder\.xml cannot be read"):
        load(tmp_path / "encoder.xml", "base")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelError, match=r"the base model .*notes\.txt is not a model; expected a folder, or a file"):
        load(tmp_path / "notes.txt", "base")


def test_the_window_that_a_model_was_made_for(tmp_path: Path) -> None:
    ov.save_model(language_model(), tmp_path / "openvino_model.xml")
    assert load(tmp_path, "base").longest_window is None
    (tmp_path / "config.json").write_text('{"n_positions": 16, "model_type": "gpt2"}')
    assert load(tmp_path, "base").longest_window == 16
    found = compare(tmp_path, language_model(noise=0.1), TOKENS, layers=False)
    assert (found.data.window, found.data.samples) == (16, 2)
    longer = compare(tmp_path, language_model(noise=0.1), TOKENS, layers=False, window=32)
    assert "longer than the 16" in longer.notes[0]


def test_made_up_windows_fit_the_model() -> None:
    assert fitting_window(language_model(), 256) == 256
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    table = op.constant(np.zeros((VOCABULARY, 8), dtype=np.float32))
    added = op.add(op.gather(table, ids, np.int64(0)), op.constant(np.ones((100, 8), dtype=np.float32)))
    short = ov.Model([op.multiply(added, op.constant(np.ones((100, 8), dtype=np.float32)))], [ids])
    with pytest.raises(WorkError, match="cannot be run"):
        compare(short, short.clone(), np.arange(40) % VOCABULARY)
    fixed = language_model(stateful=False)
    fixed.reshape({"input_ids": [1, 300], "attention_mask": [1, 300], "position_ids": [1, 300], "beam_idx": [1]})
    assert load(fixed, "base").usual_window == 300
    found = compare(fixed, fixed.clone(), np.arange(700) % VOCABULARY, layers=False)
    assert (found.data.window, found.data.samples) == (300, 2)


def test_a_graph_is_looked_at_once() -> None:
    """Reading how a model is fed takes tens of milliseconds where it has thousands of operations."""
    calls: Counter[object] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls[frame.f_code] += 1

    models = language_model(), language_model(noise=0.1)
    sys.setprofile(count)
    try:
        found = compare(*models, TOKENS, window=20)
    finally:
        sys.setprofile(None)
    assert found.layers == ()
    assert calls[ModelInputs.__init__.__code__] == calls[read_language_model.__code__] == 2


def test_the_first_inputs_are_known_before_any_is_run() -> None:
    pair = Pair(load(perceptron(), "base"), load(perceptron(), "compressed"), arithmetic_for("CPU", False))
    data = ({"x": np.full((2, 24), number, dtype=np.float32)} for number in range(4))
    samples = prepare(pair, data, CompareRequest(layer_samples=3))
    assert [inputs["x"][0, 0] for inputs in samples.first] == [0, 1, 2]
    assert [inputs["x"][0, 0] for inputs in samples.sets] == [0, 1, 2, 3]
    assert prepare(pair, np.zeros((5, 2, 24)), CompareRequest(layers=False)).first == ()
