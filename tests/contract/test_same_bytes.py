"""One result: whatever computes it, when, how often, on how many threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

import ov_weight_compression
from ov_weight_compression.ir_utils import lazy_weight
from ov_weight_compression.ir_utils.file_io import reserve
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.worker_pool import Job, Pipeline
from ov_weight_compression.passes import Mode, WeightCompression, apply_weight_compression
from tests.models import embedding, llama
from tests.running import files_of, run, stored

REAL = Path(__file__).parents[2] / "samples" / "pylm" / "openvino_model.xml"
MODES = ["int8_asym", "int8_sym", "int4_asym", "int4_sym", "int3_sym", "int2_asym", "nf4", "mxfp4", "nvfp4", "cb4"]


def small() -> ov.Model:
    return llama(hidden=64, inner=96, dtype="f16")


def options_of(mode: str) -> dict[str, object]:
    return {"mode": mode} if mode.startswith("int8") else {"mode": mode, "all_layers": True}


@pytest.mark.parametrize("mode", MODES)
def test_laziness_threads_and_repetition_make_no_difference(mode: str, tmp_path: Path) -> None:
    options = options_of(mode)
    first = stored(apply_weight_compression(small(), **options), tmp_path, "lazy")
    for name, extra in {"plain": {"lazy": False}, "one": {"threads": 1}, "three": {"threads": 3}}.items():
        assert stored(apply_weight_compression(small(), **options, **extra), tmp_path, name) == first, name
    model = apply_weight_compression(small(), **options, threads=2)
    assert [stored(model, tmp_path, f"again{number}") for number in range(2)] == [first, first]


def test_a_clone_stays_lazy_and_saves_the_same(tmp_path: Path) -> None:
    model = apply_weight_compression(small(), mode="int4_sym")
    clone = model.clone()
    assert stored(clone, tmp_path, "clone") == stored(model, tmp_path, "model")
    assert "PostponedConstant" in [node.get_type_name() for node in clone.get_ops()]


def test_compiling_in_between_changes_nothing(tmp_path: Path) -> None:
    model = apply_weight_compression(small(), mode="int4_asym")
    first = stored(model, tmp_path, "before")
    before = run(model)
    assert stored(model, tmp_path, "after") == first
    assert all((one == other).all() for one, other in zip(run(tmp_path / "after.xml"), before, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_both_writers_give_the_same_weights_of_a_real_model(mode: str, tmp_path: Path) -> None:
    """The package's own, which computes after the graph is written, and OpenVINO's."""
    options = {"mode": mode} if mode.startswith("int8") else {"mode": mode, "group_size": -1 if mode == "cb4" else None}
    model = apply_weight_compression(ov.Core().read_model(REAL), **options)
    save_model(model, tmp_path / "own.xml")
    ov.serialize(model, tmp_path / "serialized.xml", tmp_path / "serialized.bin")
    assert files_of(tmp_path / "own.xml") == files_of(tmp_path / "serialized.xml")
    assert stored(model, tmp_path, "theirs")[1] == files_of(tmp_path / "own.xml")[1]


def test_both_writers_give_the_same_large_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which waits for OpenVINO's writer in a temporary file, put there through its mapping, or written where the disk
    does not promise the space."""
    asked: list[int] = []

    def not_promised(descriptor: int, size: int) -> bool:
        asked.append(size)
        reserve(descriptor, size)
        return False

    model = apply_weight_compression(embedding((33 << 10, 1 << 10), dtype="f16"), mode="int8_asym")
    save_model(model, tmp_path / "own.xml")
    for name in ("theirs", "again", "unreserved"):
        if name == "unreserved":
            monkeypatch.setattr(lazy_weight, "reserve", not_promised)
        assert stored(model, tmp_path, name)[1] == files_of(tmp_path / "own.xml")[1]
    assert asked == [33 << 20]


def test_one_copy_of_constants_that_lie_in_the_same_place(tmp_path: Path) -> None:
    """As an exporter leaves tied embeddings: two constants of one stretch of the file."""
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float16)
    weight, again = op.constant(values), op.constant(values)
    x = op.parameter([-1, 64], np.float32)
    hidden = op.matmul(x, op.convert(weight, "f32"), False, True)
    model = ov.Model([op.result(op.matmul(hidden, op.convert(again, "f32"), False, True))], [x])
    ov.save_model(model, tmp_path / "source.xml")
    sizes = []
    for count, source in enumerate((model, ov.Core().read_model(tmp_path / "source.xml"))):
        save_model(apply_weight_compression(source, mode="int8_sym"), tmp_path / f"{count}.xml")
        sizes.append((tmp_path / f"{count}.bin").stat().st_size)
    assert sizes[1] < 1.1 * 64 * 64 + 128 + 64


def test_the_own_writer_computes_into_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[Job] = []
    run_all = Pipeline.run_all
    monkeypatch.setattr(Pipeline, "run_all", lambda self, each: (jobs.extend(each), run_all(self, each))[1])
    model = apply_weight_compression(ov.Core().read_model(REAL), mode="int4_asym", group_size=32)
    save_model(model, tmp_path / "m.xml")
    assert len({job.encoding.name for job in jobs}) == 43
    assert {part for job in jobs for part in job.sinks} == {"codes", "scale", "zero_point"}
    assert not any(job.tensors for job in jobs)


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    for mode in ("int4_sym", "int8_asym", "nf4", "mxfp4"):
        model = apply_weight_compression(small(), mode=mode)
        first = stored(model, tmp_path)
        second = WeightCompression(mode="int8_sym")
        assert second.run_on_model(model) is False
        assert not second.report.rows
        assert {skip.reason.split(" (")[0] for skip in second.report.skips} >= {"already compressed"}
        assert stored(model, tmp_path) == first
        reread = WeightCompression(mode="int8_sym")
        assert reread.run_on_model(ov.Core().read_model(tmp_path / "model.xml")) is False


@pytest.mark.parametrize("reread", [False, True])
def test_a_second_run_does_not_share_out_again_what_ratio_left(reread: bool, tmp_path: Path) -> None:
    """Of what the first run has left alone `ratio` would take its share once more, and so on."""
    options = {"mode": "int4_sym", "ratio": 0.5, "backup_mode": "none", "group_size": 32}
    model = apply_weight_compression(small(), **options)
    if reread:
        save_model(model, tmp_path / "m.xml")
        model = ov.Core().read_model(tmp_path / "m.xml")
    second = WeightCompression(**options)
    assert second.run_on_model(model) is False
    assert "left alone when the model was compressed with this ratio" in {skip.reason for skip in second.report.skips}
    assert WeightCompression(**{**options, "ratio": 0.9}).run_on_model(model) is True


def test_the_model_says_how_it_was_made(tmp_path: Path) -> None:
    model = apply_weight_compression(small(), mode="int4_sym", group_size=32, rules=[("*down_proj*", "int8_sym")])
    stored(model, tmp_path)
    read = ov.Core().read_model(tmp_path / "model.xml")
    keys = ("mode", "group_size", "rules", "version", "openvino_version")
    said = [read.get_rt_info(["weight_compression", key]).astype(str) for key in keys]
    assert said == ["int4_sym", "32", "*down_proj*=int8_sym", ov_weight_compression.__version__, ov.get_version()]


def test_the_input_model_is_changed_in_place_and_returned() -> None:
    model = small()
    original = model.clone()
    assert apply_weight_compression(model, mode="int8_sym") is model
    assert "PostponedConstant" in [node.get_type_name() for node in model.get_ops()]
    assert "PostponedConstant" not in [node.get_type_name() for node in original.get_ops()]


def test_modes_come_in_any_spelling(tmp_path: Path) -> None:
    first = stored(apply_weight_compression(small(), mode="int4_sym"), tmp_path)
    for spelling in ("INT4_SYM", " Int4_Sym", Mode.INT4_SYM):
        assert stored(apply_weight_compression(small(), mode=spelling), tmp_path) == first


def test_lazy_makes_no_copy_of_the_weights(tmp_path: Path) -> None:
    """The pass must not compute: whatever it takes is far less than one pass over the codes."""
    model = ov.Core().read_model(REAL)
    compression = WeightCompression(mode="int4_asym")
    calls = []
    compression.run_on_model(model)
    compression.on_weight_finished(lambda job: calls.append(job.name))
    assert calls == []
    ov.save_model(model, tmp_path / "m.xml")
    assert len(calls) == len(compression.report.rows) == 43
    assert len(set(calls)) == 43


def test_values_survive_the_source_model(tmp_path: Path) -> None:
    """A lazy model keeps what it needs of its source alive, and only that."""
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    x = ov.op.Parameter(ov.Type.f32, ov.PartialShape([-1, 64]))
    source = ov.Model([op.matmul(x, op.constant(weights), False, True)], [x])
    model = apply_weight_compression(source.clone(), mode="int8_sym")
    expected = run(apply_weight_compression(source, mode="int8_sym", lazy=False))[0]
    del source, weights
    assert (run(model)[0] == expected).all()
