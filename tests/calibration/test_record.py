"""Recording what a pipeline's models are given, and calibrating with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression import CompressionWarning, OptionError, apply_weight_compression, compare, record_inputs
from ov_weight_compression.calibration import make_samples
from ov_weight_compression.calibration.data_files import RecordedSamples, recorded_data
from ov_weight_compression.cli import main
from tests.calibration.small import EXACT, VOCABULARY, language_model
from tests.models import layers

ENCODER, DECODER = "openvino_encoder_model.xml", "openvino_decoder_model.xml"
LANGUAGE, EMBEDDINGS = "openvino_language_model.xml", "openvino_text_embeddings_model.xml"
INT4 = {"mode": "int4_sym", "group_size": 32, "all_layers": True}


def named(model: ov.Model, name: str) -> ov.Model:
    model.inputs[0].get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({"output"})
    return model


def looking_decoder() -> ov.Model:
    """The language model, which also adds what an encoder has seen to its vectors."""
    model = language_model()
    states = op.parameter([-1, -1, 64], np.float32)
    states.output(0).set_names({"encoder_hidden_states"})
    weight = op.constant(np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32) * 0.1)
    seen = op.matmul(op.reduce_mean(states, op.constant(np.array([1])), True), weight, False, True)
    first = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Add")
    looking = op.add(first, seen)
    for target in list(first.output(0).get_target_inputs()):
        if target.get_node() is not looking:
            target.replace_source_output(looking.output(0))
    looking.input(0).replace_source_output(first.output(0))
    model.add_parameters([states])
    model.validate_nodes_and_infer_types()
    return model


def parted_language_model(folder: Path) -> None:
    """The language model as a vision-language pipeline has it: the table of vectors is a model of its own."""
    model = language_model()
    gather = next(node for node in model.get_ordered_ops() if node.get_type_name() == "Gather" and _is_table(node))
    ids = op.parameter([-1, -1], np.int64)
    ids.output(0).set_names({"input"})
    table = op.gather(op.constant(gather.input_value(0).get_node().data), ids, op.constant(np.int64(0)))
    ov.save_model(ov.Model([op.result(table)], [ids], "table"), folder / EMBEDDINGS, compress_to_fp16=False)
    vectors = op.parameter([-1, -1, 32], np.float32)
    vectors.output(0).set_names({"inputs_embeds"})
    for target in list(gather.output(0).get_target_inputs()):
        target.replace_source_output(vectors.output(0))
    rows = next(node for node in model.get_parameters() if "input_ids" in node.output(0).get_names())
    for target in list(rows.output(0).get_target_inputs()):  # of the batch: the vectors' own
        target.replace_source_output(op.squeeze(op.slice(vectors, [0], [1], [1], [2]), [2]).output(0))
    model.add_parameters([vectors])
    model.remove_parameter(rows)
    model.validate_nodes_and_infer_types()
    ov.save_model(model, folder / LANGUAGE, compress_to_fp16=False)


def _is_table(node: ov.Node) -> bool:
    return list(node.get_input_partial_shape(0).to_shape() if node.get_input_partial_shape(0).is_static else []) == [
        VOCABULARY,
        32,
    ]


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    folder = tmp_path / "speech"
    folder.mkdir()
    ov.save_model(named(layers(4), "input_features"), folder / ENCODER, compress_to_fp16=False)
    ov.save_model(looking_decoder(), folder / DECODER, compress_to_fp16=False)
    return folder


class Pipeline:
    """As optimum-intel runs an encoder and a decoder: states reset before each sample, one token at a time."""

    def __init__(self, folder: Path) -> None:
        core = ov.Core()
        self.encoder = core.compile_model(folder / ENCODER, "CPU", EXACT)
        self.decoder = core.compile_model(folder / DECODER, "CPU", EXACT).create_infer_request()

    def run(self, frames: np.ndarray, length: int = 8) -> None:
        states = self.encoder(frames)[0][None]
        self.decoder.reset_state()
        ids = np.array([[1, 2]], np.int64)
        read = 0
        while read < length:
            self.decoder.start_async(step(ids, read, encoder_hidden_states=states), share_inputs=True)
            self.decoder.wait()
            read += ids.shape[1]
            ids = np.argmax(self.decoder.get_output_tensor(0).data[:, -1:], -1).astype(np.int64)


def step(ids: np.ndarray, past: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    rows, length = ids.shape
    positions = np.broadcast_to(np.arange(past, past + length, dtype=np.int64), (rows, length))
    mask = np.ones((rows, past + length), np.int64)
    own = {"attention_mask": mask, "position_ids": np.array(positions), "beam_idx": np.zeros(rows, np.int32)}
    return {"input_ids": ids, **own, **more}


def sounds(count: int, seed: int) -> Iterator[np.ndarray]:
    """Frames of which a few channels are large, and together."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((6, 64)).astype(np.float32)
    for _ in range(count):
        frames = random.standard_normal((24, 6)).astype(np.float32) @ mixing
        yield frames + 0.1 * random.standard_normal((24, 64)).astype(np.float32)


def test_inputs_of_every_model_are_recorded(speech: Path) -> None:
    pipeline, given = Pipeline(speech), list(sounds(3, 0))
    before = vars(ov.InferRequest).copy()
    with record_inputs(speech) as samples:
        for frames in given:
            pipeline.run(frames)
    assert vars(ov.InferRequest) == before
    pipeline.run(given[0])  # no longer recorded
    assert list(samples) == [DECODER, ENCODER]
    assert len(samples[ENCODER]) == len(samples[DECODER]) == 3
    for one, frames in zip(samples[ENCODER], given, strict=True):
        np.testing.assert_array_equal(one["input_features"], frames)
    sequence = samples[DECODER][0]
    assert sequence["input_ids"].shape == (1, 8)
    assert sequence["position_ids"].tolist() == [list(range(8))]
    assert sequence["encoder_hidden_states"].shape == (1, 24, 64)
    with pytest.raises(
        OptionError, match=r"'openvino_model.xml' is no model of .*speech; it has openvino_decoder_model"
    ):
        samples["openvino_model.xml"]


def test_no_more_is_kept_than_wanted(speech: Path) -> None:
    pipeline, given = Pipeline(speech), list(sounds(12, 0))
    with record_inputs(speech, most_samples=4) as samples:
        for frames in given:
            pipeline.encoder(frames)
    kept = [next(n for n, one in enumerate(given) if (one == row["input_features"]).all()) for row in samples[ENCODER]]
    assert len(set(kept)) == 4
    assert max(kept) > 4  # not simply the first
    with pytest.raises(OptionError, match=r"nothing was recorded for openvino_decoder_model.xml: it was not run"):
        samples[DECODER]
    big = np.zeros((2048, 64), np.float32)
    with (
        pytest.warns(CompressionWarning, match=r"record_inputs: 2 samples were left out: the others take \d+ bytes"),
        record_inputs(speech, most_bytes=1 << 20) as samples,
    ):
        pipeline.encoder(big), pipeline.encoder(big), pipeline.encoder(big)
    assert len(samples[ENCODER]) == 1


def test_every_way_to_run_a_model(speech: Path) -> None:
    compiled, given = ov.Core().compile_model(speech / ENCODER, "CPU", EXACT), list(sounds(5, 0))
    queue = ov.AsyncInferQueue(compiled, 2)
    with record_inputs(speech) as samples:
        compiled(given[0], share_inputs=False)  # shared memory is written over by the next request of OpenVINO 2026.4
        compiled.infer_new_request({0: given[1]})
        request = compiled.create_infer_request()
        request.set_input_tensor(ov.Tensor(given[2]))
        request.infer()
        request.start_async([given[3]])
        queue.start_async({"input_features": given[4]})
    for one, frames in zip(samples[ENCODER], given, strict=True):
        np.testing.assert_array_equal(one["input_features"], frames)


def test_a_request_that_goes_ends_its_sequence(speech: Path) -> None:
    compiled = ov.Core().compile_model(speech / DECODER, "CPU", EXACT)
    states = np.ones((1, 4, 64), np.float32)
    with record_inputs(speech) as samples:
        for token in (3, 4):
            request = compiled.create_infer_request()
            request.infer(step(np.array([[token, token]]), 0, encoder_hidden_states=states))
            request.infer(step(np.array([[9]]), 2, encoder_hidden_states=states))
            del request
    assert [one["input_ids"].tolist() for one in samples[DECODER]] == [[[3, 3, 9]], [[4, 4, 9]]]


def test_what_runs_elsewhere_is_said(speech: Path) -> None:
    with (
        pytest.warns(CompressionWarning, match="no model of .* was run in Python. openvino-genai's pipelines run in C"),
        record_inputs(speech),
    ):
        pass


def test_models_that_look_alike_are_not_mixed_up(tmp_path: Path) -> None:
    for name in ("openvino_first_model", "openvino_second_model"):
        ov.save_model(named(layers(1), "x"), tmp_path / f"{name}.xml", compress_to_fp16=False)
    compiled = ov.Core().compile_model(tmp_path / "openvino_first_model.xml", "CPU")
    with (
        pytest.warns(
            CompressionWarning, match=r"first_model.xml and .*second_model.xml have the same inputs and outputs"
        ),
        record_inputs(tmp_path) as samples,
    ):
        compiled(np.ones((2, 64), np.float32))
    with pytest.raises(OptionError, match="cannot be told apart"):
        samples["openvino_first_model.xml"]


def error(folder: Path, name: str, data: Any, **options: Any) -> float:
    """Relative error of the outputs on data that calibration did not see."""
    core = ov.Core()
    base, model = core.read_model(folder / name), core.read_model(folder / name)
    apply_weight_compression(model, **INT4, **options)
    requests = [core.compile_model(one, "CPU", EXACT).create_infer_request() for one in (base, model)]
    lost = total = 0.0
    for sample in data:
        outputs = []
        for request in requests:
            request.reset_state()
            request.infer({key: value for key, value in sample.items()})
            outputs.append(np.array(request.get_output_tensor(0).data))
        lost += float(np.square(outputs[1] - outputs[0]).sum())
        total += float(np.square(outputs[0]).sum())
    return float(np.sqrt(lost / total))


@pytest.mark.parametrize("name", [ENCODER, DECODER])
def test_recorded_inputs_lower_the_error(speech: Path, name: str, tmp_path: Path) -> None:
    pipeline = Pipeline(speech)
    with record_inputs(speech) as samples:
        for frames in sounds(12, 0):
            pipeline.run(frames, 24)
    with record_inputs(speech) as held:
        for frames in sounds(4, 1):
            pipeline.run(frames, 24)
    without = error(speech, name, held[name])
    assert error(speech, name, held[name], dataset=samples[name], gptq=True) < 0.85 * without
    samples.save(tmp_path / "recorded")
    assert error(speech, name, held[name], dataset=tmp_path / "recorded", gptq=True) < 0.85 * without
    with pytest.raises(OptionError, match="exists; write somewhere else"):
        samples.save(tmp_path / "recorded")


def test_the_commands_take_recordings(speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, recorded = Pipeline(speech), tmp_path / "recorded"
    with record_inputs(speech) as samples:
        for frames in sounds(6, 0):
            pipeline.run(frames)
    samples.save(recorded)
    words = ["--mode", "int4_sym", "--group-size", "32", "--all-layers", "--quiet", "--data", str(recorded)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main([str(speech), "-o", str(tmp_path / "out"), "--gptq", *words]) == 0
    found = compare(speech / ENCODER, tmp_path / "out" / ENCODER, data=recorded)
    again = compare(speech / ENCODER, tmp_path / "out" / ENCODER, data=samples[ENCODER])
    assert found.outputs == again.outputs
    assert 0 < found.outputs[0].relative_l2 < 0.2
    (recorded / "openvino_encoder_model").rename(recorded / "elsewhere")
    assert main([str(speech), "-o", str(tmp_path / "again"), *words]) == 2
    said = "no samples in this folder for openvino_encoder_model.xml: expected openvino_encoder_model/*.npz"
    assert said in capsys.readouterr().err


def test_a_language_model_of_vectors_calibrates_as_others_do(tmp_path: Path) -> None:
    parted_language_model(tmp_path)
    model = ov.Core().read_model(tmp_path / LANGUAGE)
    ids = np.arange(40, dtype=np.int64)
    window = next(iter(make_samples(model, ids, context_length=20)))
    assert {name: array.shape for name, array in window.items()} == {
        "attention_mask": (2, 20),
        "position_ids": (2, 20),
        "beam_idx": (2,),
        "inputs_embeds": (2, 20, 32),
    }
    table = ov.Core().compile_model(tmp_path / EMBEDDINGS, "CPU", EXACT)
    np.testing.assert_array_equal(window["inputs_embeds"][1:], table(ids[None, 20:])[0])
    whole = ov.Core().compile_model(language_model(), "CPU", EXACT)
    parted = ov.Core().compile_model(model, "CPU", EXACT)
    expected = whole(step(np.stack([ids[:20], ids[20:]]), 0) | {"beam_idx": window["beam_idx"]})[0]
    np.testing.assert_allclose(parted(window)[0], expected, atol=1e-5)
    written = make_samples(model, "self", subset_size=3, context_length=12)
    assert written.description == "3 windows, 36 tokens that the model wrote itself"
    held = list(make_samples(model, "self", subset_size=8, context_length=24, seed=1))
    assert error(tmp_path, LANGUAGE, held, accuracy="balanced") < 0.9 * error(tmp_path, LANGUAGE, held)


def test_a_model_in_a_folder_of_its_own_is_found_wherever_the_pipeline_lies(tmp_path: Path) -> None:
    own = tmp_path / "unet" / "openvino_model"
    own.mkdir(parents=True)
    np.savez(own / "00000.npz", sample=np.ones((1, 4)))
    for path in ("unet/openvino_model.xml", "made/int4/unet/openvino_model.xml", "/made/unet/openvino_model.xml"):
        found = recorded_data(tmp_path, [Path(path)])
        assert isinstance(found, RecordedSamples)
        assert len(found) == 1
    with pytest.raises(
        OptionError, match=r"no samples in this folder for vae/openvino_model.xml: expected vae/openvin"
    ):
        recorded_data(tmp_path, [Path("vae/openvino_model.xml")])


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    for what in ("nothing", __file__):
        with pytest.raises(OptionError, match=r"^folder: .* is no folder"), record_inputs(what):
            pass
