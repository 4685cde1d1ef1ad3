"""Written whole or not at all, and in pieces where a weight is large."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight, here, postponed_constant
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.worker_pool import Job, Part, Pipeline, Sink, Task
from tests.models import in_if, in_loop, layers, linear
from tests.running import run


class Piecewise:
    """A weight that is written in pieces, with its values known so that they can be compared."""

    nbytes, together = 0, None

    def __init__(self, name: str, shape: tuple[int, ...] = (64, 64), identity: object = None) -> None:
        self.name, self.identity = name, identity
        self.values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
        self.parts = {"codes": Part("f32", shape)}
        self.written = 0

    def begin(self, jobs: Sequence[Job]) -> tuple[Sequence[Task], Task]:
        return [partial(self.write, jobs[0].sink("codes"))], lambda: None

    def write(self, sink: Sink) -> None:
        self.written += 1
        flat = self.values.reshape(-1)
        for start in range(0, flat.size, 1000):
            sink.write(start * 4, flat[start : start + 1000])

    def constant(self) -> Any:
        return LazyWeight(Pipeline(threads=2), self).constant("codes")


def model_of(*weights: Piecewise) -> ov.Model:
    x = op.parameter([-1, 64], np.float32)
    hidden: ov.Node = x
    for weight in weights:
        node = weight.constant()
        node.set_friendly_name(weight.name)
        hidden = op.matmul(hidden, node, False, True)
    return ov.Model([op.result(hidden)], [x])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_model_is_written_as_openvino_writes_it(tmp_path: Path) -> None:
    for number, model in enumerate((layers(2, dtype="f16"), in_if(), in_loop())):
        save_model(model, tmp_path / f"{number}.xml")
        ov.serialize(model, tmp_path / "their.xml", tmp_path / "their.bin")
        for suffix in (".xml", ".bin"):
            assert (tmp_path / f"{number}{suffix}").read_bytes() == (tmp_path / f"their{suffix}").read_bytes()


def test_pieces_end_up_where_they_belong(tmp_path: Path) -> None:
    weights = [Piecewise("one"), Piecewise("three"), Piecewise("longer")]
    model = model_of(*weights)
    save_model(model, tmp_path / "m.xml")
    assert [weight.written for weight in weights] == [1, 1, 1]
    read = ov.Core().read_model(tmp_path / "m.xml")
    stored = {node.get_friendly_name(): node for node in read.get_ops() if node.get_type_name() == "Constant"}
    for weight in weights:
        assert (stored[weight.name].data == weight.values).all()
    assert (run(read)[0] == run(model)[0]).all()
    assert names_in(tmp_path) == ["m.bin", "m.xml"]


def test_saved_twice_and_in_other_ways_it_is_the_same(tmp_path: Path) -> None:
    model = model_of(Piecewise("one"), Piecewise("three"))
    save_model(model, tmp_path / "a.xml")
    save_model(model, tmp_path / "b.xml")
    ov.serialize(model, tmp_path / "c.xml", tmp_path / "c.bin")
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "b.bin").read_bytes() == (tmp_path / "c.bin").read_bytes()


def test_plain_constants_lie_between(tmp_path: Path) -> None:
    """All offsets are those that OpenVINO gives when it writes the constants themselves."""
    first, second = Piecewise("one"), Piecewise("three", (64, 3))
    one = model_of(first)
    hidden = op.add(one.outputs[0].get_node().input_value(0), op.constant(np.arange(64, dtype=np.float32)))
    node = second.constant()
    hidden = op.add(op.matmul(hidden, node, False, False), op.constant(np.float32([1, 2, 3])))
    model = ov.Model(
        [op.result(op.add(hidden, op.constant(np.full((5, 3), 7, np.float32))))], one.get_parameters(), "m"
    )
    save_model(model, tmp_path / "a.xml")
    ov.serialize(model, tmp_path / "b.xml", tmp_path / "b.bin")
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("known", [True, False])
def test_what_is_the_same_is_stored_and_computed_once(known: bool, tmp_path: Path) -> None:
    weights = [Piecewise("one", identity="same" if known else None), Piecewise("two", identity="same" if known else 1)]
    model = model_of(*weights)
    save_model(model, tmp_path / "m.xml")
    assert sum(weight.written for weight in weights) == (1 if known else 2)
    assert (tmp_path / "m.bin").stat().st_size == (1 if known else 2) * 64 * 64 * 4
    assert (run(tmp_path / "m.xml")[0] == run(model)[0]).all()


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    save_model(linear(), tmp_path / "a" / "b" / "m.xml")
    assert names_in(tmp_path / "a" / "b") == ["m.bin", "m.xml"]


class TestFailures:
    """The old pair or none, and nothing else in the folder."""

    @pytest.fixture
    def there(self, tmp_path: Path) -> tuple[Path, list[bytes]]:
        save_model(linear(), tmp_path / "m.xml")
        return tmp_path / "m.xml", [(tmp_path / f"m{suffix}").read_bytes() for suffix in (".xml", ".bin")]

    def check(self, there: tuple[Path, list[bytes]]) -> None:
        path, before = there
        assert names_in(path.parent) == ["m.bin", "m.xml"]
        assert [path.read_bytes(), path.with_suffix(".bin").read_bytes()] == before

    def test_in_a_maker(self, there: tuple[Path, list[bytes]]) -> None:
        def broken() -> ov.Tensor:
            raise WorkError("one: no luck")

        node = postponed_constant(ov.Type.f32, ov.Shape([64, 64]), broken)
        with pytest.raises(WorkError, match="one: no luck"):
            save_model(ov.Model([op.result(node)], []), there[0])
        self.check(there)

    def test_while_pieces_are_written(self, there: tuple[Path, list[bytes]]) -> None:
        class Broken(Piecewise):
            def write(self, sink: Sink) -> None:
                super().write(sink)
                raise OSError(28, "No space left on device")

        with pytest.raises(WorkError, match=r"m\.xml: cannot be written: No space left on device"):
            save_model(model_of(Broken("one")), there[0])
        self.check(there)

    def test_interrupted(self, there: tuple[Path, list[bytes]]) -> None:
        class Interrupted(Piecewise):
            def write(self, sink: Sink) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            save_model(model_of(Interrupted("one")), there[0])
        self.check(there)

    def test_after_writing(self, there: tuple[Path, list[bytes]]) -> None:
        def refuse() -> None:
            raise WorkError("too inaccurate")

        with pytest.raises(WorkError, match="too inaccurate"):
            save_model(linear(96), there[0], after_write=refuse)
        self.check(there)

    def test_a_file_cut_short(self, there: tuple[Path, list[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
        def short(model: ov.Model, xml: str, weights: str) -> None:
            serialize(model, xml, weights)
            Path(weights).write_bytes(Path(weights).read_bytes()[:-1])

        serialize = ov.serialize
        monkeypatch.setattr(ov, "serialize", short)
        with pytest.raises(WorkError, match="the disk is full"):
            save_model(linear(96), there[0])
        self.check(there)

    def test_a_place_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(WorkError, match="cannot be written"):
            save_model(linear(), tmp_path / "file" / "m.xml")
        assert names_in(tmp_path) == ["file"]

    def test_no_stubs_are_left_behind(self, there: tuple[Path, list[bytes]]) -> None:
        self.test_interrupted(there)
        assert here.stub is None


def test_the_destination_is_whole_at_every_moment(tmp_path: Path) -> None:
    """Until the files take their names the old pair is there, complete."""
    path = tmp_path / "m.xml"
    save_model(linear(32), path)
    before = run(path)[0]
    seen = []
    save_model(linear(96), path, after_write=lambda: seen.append(run(path)[0]))
    assert (seen[0] == before).all()
    assert run(path)[0].shape[-1] == 96


def test_saving_over_the_mapped_source(tmp_path: Path) -> None:
    path = tmp_path / "m.xml"
    save_model(layers(3, 256), path)
    expected = run(path)[0]
    model = ov.Core().read_model(path)
    save_model(model, path)
    assert (run(path)[0] == expected).all()
    assert (run(model)[0] == expected).all()
