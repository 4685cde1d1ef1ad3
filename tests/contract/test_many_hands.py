"""One compressed model in many hands: clones in threads, in a forked process, edited, interrupted."""

from __future__ import annotations

import copy
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.ir_utils.weight_source import ConstantSource
from ov_weight_compression.ir_utils.worker_pool import Encoding
from ov_weight_compression.passes import DecompressWeights, WeightCompression, WorkError, apply_weight_compression
from ov_weight_compression.quantization import encode as kernels
from tests.models import llama
from tests.running import EXACT, constants, inputs_for

WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "package": save_model,
    "openvino": ov.save_model,
    "serialize": lambda model, path: ov.serialize(model, path, path.with_suffix(".bin")),
}


def small() -> ov.Model:
    return llama(hidden=64, inner=96, dtype="f16")


def lazy(**options: Any) -> ov.Model:
    return apply_weight_compression(small(), **{"mode": "int4_asym", "all_layers": True, "threads": 2, **options})


def written(model: ov.Model, folder: Path, writer: str, name: str = "m") -> bytes:
    WRITERS[writer](model, folder / f"{name}.xml")
    return (folder / f"{name}.bin").read_bytes()


def outputs(model: ov.Model) -> list[Any]:
    request = ov.Core().compile_model(model, "CPU", EXACT).create_infer_request()
    return [np.array(value) for value in request.infer(inputs_for(model)).values()]


def test_everything_at_once_from_many_threads(tmp_path: Path) -> None:
    model = lazy()
    expected = {writer: written(model, tmp_path, writer) for writer in WRITERS}
    values = outputs(model)
    wrong: list[object] = []

    def hand(number: int) -> None:
        try:
            mine = (model, model.clone(), copy.deepcopy(model))[number % 3]
            for turn in range(4):
                kind = [*WRITERS, "compile"][(number + turn) % 4]
                if kind == "compile":
                    same = all((one == other).all() for one, other in zip(outputs(mine), values, strict=True))
                else:
                    same = written(mine, tmp_path, kind, str(number)) == expected[kind]
                wrong.extend([] if same else [(number, turn, kind)])
                gc.collect()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=hand, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)


def in_a_child(work: Callable[[], object]) -> int:
    """What a forked process ends with: 0 where `work` returned something true, 9 where it took too long."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(9))
        signal.alarm(30)
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_saves_what_its_parent_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "COMPILE_AFTER", 0)
    model = lazy()
    expected = {writer: written(model, tmp_path, writer) for writer in WRITERS}
    for _ in range(3):
        for writer in WRITERS:
            assert in_a_child(lambda writer=writer: written(model, tmp_path, writer, "child") == expected[writer]) == 0
    with kernels.kept_kernels():
        assert written(model, tmp_path, "package") == expected["package"]
        assert kernels._cache.kernels
        assert in_a_child(lambda: not kernels._cache.kernels and not kernels._usable) == 0
        stop = threading.Event()

        def keep_saving() -> None:
            while not stop.is_set():
                written(model, tmp_path, "openvino", "parent")

        busy = threading.Thread(target=keep_saving)
        busy.start()
        try:
            codes = [
                in_a_child(lambda: written(model, tmp_path, "package", "child") == expected["package"])
                for _ in range(5)
            ]
        finally:
            stop.set()
            busy.join()
        assert codes == [0] * 5


class StopError(Exception):
    """What a progress bar raises."""


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_callback_raises_ends_the_save(writer: str, tmp_path: Path) -> None:
    compression = WeightCompression(mode="int4_asym", all_layers=True, threads=2)
    model = small()
    compression.run_on_model(model)
    told: list[str] = []

    def tell(weight: Encoding) -> None:
        told.append(weight.name)
        if len(told) == 5:
            raise StopError("enough")

    compression.on_weight_finished(tell)
    with pytest.raises(StopError, match="enough"):
        written(model, tmp_path, writer)
    compression.on_weight_finished(lambda job: None)
    assert written(model, tmp_path, writer, "again") == written(lazy(), tmp_path, writer, "fresh")


def test_what_a_callback_raises_ends_compiling() -> None:
    compression = WeightCompression(mode="int4_asym")
    model = small()
    compression.run_on_model(model)

    def tell(weight: Encoding) -> None:
        raise StopError("enough")

    compression.on_weight_finished(tell)
    core = ov.Core()
    with pytest.raises(StopError, match="enough"):
        core.compile_model(model, "CPU")


def edit(model: ov.Model, source: ov.Model) -> None:
    """Replace every float constant of both models by ones."""
    for one in (model, source):
        for node in one.get_ops():
            if node.get_type_name() == "Constant" and node.get_output_element_type(0) in (ov.Type.f16, ov.Type.f32):
                ones = op.constant(np.ones(list(node.shape), dtype=node.get_output_element_type(0).to_dtype()))
                for target in list(node.output(0).get_target_inputs()):
                    target.replace_source_output(ones.output(0))


@pytest.mark.parametrize("options", [{}, {"awq": True}, {"mode": "adaptive_codebook"}, {"mode": "int8_sym"}])
def test_nothing_is_read_from_the_graph_after_the_pass(options: dict[str, Any], tmp_path: Path) -> None:
    def codes(model: ov.Model, name: str) -> dict[str, bytes]:
        save_model(model, tmp_path / f"{name}.xml")
        read = constants(ov.Core().read_model(tmp_path / f"{name}.xml"))
        return {
            name: node.data.tobytes() for name, node in read.items() if node.get_output_element_type(0).bitwidth < 9
        }

    def compressed() -> tuple[ov.Model, ov.Model]:
        source = small()
        given = {"mode": "int4_asym", "all_layers": True} | options
        if given["mode"] == "int8_sym":
            del given["all_layers"]
        return apply_weight_compression(source.clone(), **given), source

    model, source = compressed()
    expected = codes(model, "as it was")
    model, source = compressed()
    edit(model, source)
    del source
    gc.collect()
    assert codes(model, "edited") == expected
    assert len(expected) > 8


@pytest.mark.parametrize("how", ["compile", "openvino", "package", "serialize"])
def test_ctrl_c_is_a_keyboard_interrupt(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = written(lazy(mode="int4_sym"), tmp_path, "package")
    read = ConstantSource.read
    reads: list[object] = []
    last = 0

    def slow(self: ConstantSource, *arguments: Any) -> Any:
        reads.append(self)
        if len(reads) == last:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)
        return read(self, *arguments)

    # (Freed in another thread than the one that loaded it, OpenVINO's CPU plugin takes the stack for signals with it.)
    core = ov.Core()
    core.compile_model(small(), "CPU")
    handler = signal.getsignal(signal.SIGINT)
    for number in (1, 3, 5, 7):
        last, model = number, lazy(mode="int4_sym")
        reads.clear()
        with monkeypatch.context() as patch:
            patch.setattr(ConstantSource, "read", slow)
            with pytest.raises(KeyboardInterrupt):
                core.compile_model(model, "CPU") if how == "compile" else written(model, tmp_path, how, "cut")
        assert len(reads) < len(constants(small()))
        assert signal.getsignal(signal.SIGINT) is handler
        assert sys.getprofile() is None
        assert written(model, tmp_path, "package") == expected
        assert outputs(model)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_weight_that_fails_leaves_the_model_usable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lazy()
    expected = written(model, tmp_path, "openvino")
    name = next(iter(constants(small())))

    def broken(self: ConstantSource, *arguments: Any) -> Any:
        raise ArithmeticError("no luck")

    for how in ("openvino", "package", "compile"):
        with monkeypatch.context() as patch:
            patch.setattr(ConstantSource, "read", broken)
            with pytest.raises(WorkError, match=r"^\S+: ArithmeticError: no luck$"):
                ov.Core().compile_model(model, "CPU") if how == "compile" else written(model, tmp_path, how, "bad")
        assert written(model, tmp_path, "openvino") == expected, (how, name)


def test_kernels_are_freed_and_use_no_threads_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "COMPILE_AFTER", 0)
    seen: set[tuple[int, int, int]] = set()
    run = ov.InferRequest.infer

    def infer(self: ov.InferRequest, *given: Any, **named: Any) -> Any:
        own = [self.get_compiled_model().get_property(name) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS")]
        seen.add((threading.get_ident(), int(own[0]), int(own[1])))
        return run(self, *given, **named)

    def alive() -> list[object]:
        return [one for one in gc.get_objects() if isinstance(one, kernels.Kernel)]

    monkeypatch.setattr(ov.InferRequest, "infer", infer)
    model = lazy(threads=1)
    for writer in WRITERS:
        seen.clear()
        written(model, tmp_path, writer)
        assert [own for _, *own in seen] == [[1, 1]]
        deadline = time.monotonic() + 10
        while alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive()


@pytest.mark.parametrize("writer", WRITERS)
def test_many_weights_take_constant_work_each(writer: str, tmp_path: Path) -> None:
    """How often the size of a job is looked at while a model is saved grows with the weights, not with their square."""
    from ov_weight_compression.ir_utils import worker_pool as module

    counts = []
    for weights in (40, 160):
        x = hidden = op.parameter([-1, 96], np.float32)
        for number in range(weights):
            values = np.random.default_rng(number).standard_normal((96, 96)).astype(np.float32)
            hidden = op.matmul(hidden, op.constant(values), False, True)
        model = apply_weight_compression(ov.Model([hidden], [x]), mode="int8_sym", threads=2)
        steps = 0

        class Counting(list):  # type: ignore[type-arg]
            def __getitem__(self, place: Any) -> Any:
                nonlocal steps
                steps += 1
                return super().__getitem__(place)

        owner = next(node for node in model.get_ops() if node.get_type_name() == "PostponedConstant")
        found = owner.m_maker.func.__self__.pipeline
        assert isinstance(found, module.Pipeline)
        assert len(found.batches.each) >= weights / 15
        found.batches.each = Counting(found.batches.each)
        found.batches.places = Counting(found.batches.places)
        written(model, tmp_path, writer)
        counts.append(steps)
    assert counts[1] <= 4 * counts[0] + 64


@pytest.mark.parametrize("mode", ["int8_asym", "int4_sym", "nf4", "mxfp4", "fp8_e4m3", "int3_sym"])
@pytest.mark.parametrize("where", ["file", "memory"])
def test_equal_weights_are_stored_once_by_every_writer(mode: str, where: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    other = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    x = op.parameter([2, 64], np.float32)
    weights = [op.constant(each.copy(), name=f"w{number}") for number, each in enumerate((values, other, values))]
    made = ov.Model([op.result(op.matmul(x, weight, False, True)) for weight in weights], [x])
    ov.serialize(made, tmp_path / "float.xml", tmp_path / "float.bin")
    options = {"mode": mode} if mode.startswith("int8") else {"mode": mode, "all_layers": True}

    def size(lazy: bool, writer: str) -> int:
        model = made.clone() if where == "memory" else ov.Core().read_model(tmp_path / "float.xml")
        return len(written(apply_weight_compression(model, **options, lazy=lazy), tmp_path, writer))

    for writer in WRITERS:
        assert size(True, writer) == size(False, writer)
    x = op.parameter([2, 64], np.float32)
    ends = [op.result(op.matmul(x, op.constant(each), False, True)) for each in (values, other)]
    two = apply_weight_compression(ov.Model(ends, [x]), **options)
    assert size(True, "package") <= len(written(two, tmp_path, "package")) + 64  # and a few shapes


def mixed(*weights: str) -> ov.Model:
    """A layer of each kind, each with an f32 bias that f16 would round."""
    r = np.random.default_rng(0)
    x, z, ids = op.parameter([2, 64], np.float32), op.parameter([1, 4, 8, 8], np.float32), op.parameter([3], np.int64)
    bias = op.constant(r.standard_normal((2, 64)).astype(np.float32), name="bias")
    ends, inputs = [], []
    if "matmul" in weights:
        layer = op.matmul(x, op.constant(r.standard_normal((64, 64)).astype(np.float32)), False, True)
        ends, inputs = [*ends, op.add(layer, bias)], [*inputs, x]
    if "convolution" in weights:
        kernel = op.constant(r.standard_normal((8, 4, 3, 3)).astype(np.float32))
        layer = op.convolution(z, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
        small = op.constant(r.standard_normal((1, 8, 1, 1)).astype(np.float32), name="small bias")
        ends, inputs = [*ends, op.add(layer, small)], [*inputs, z]
    if "embedding" in weights:
        table = op.constant(r.standard_normal((64, 64)).astype(np.float32))
        rows = op.gather(table, ids, op.constant(np.int64(0)))
        third = op.constant(r.standard_normal((3, 64)).astype(np.float32), name="third bias")
        ends, inputs = [*ends, op.add(rows, third)], [*inputs, ids]
    return ov.Model([op.result(end) for end in ends], inputs)


@pytest.mark.parametrize("mode", ["int8_asym", "int4_asym", "nf4", "nvfp4", "fp8_e4m3"])
@pytest.mark.parametrize(
    "weights", [("matmul",), ("convolution",), ("embedding",), ("matmul", "convolution"), ("convolution", "embedding")]
)
def test_what_was_not_compressed_keeps_its_precision(mode: str, weights: tuple[str, ...], tmp_path: Path) -> None:
    options = {"mode": mode} if mode.startswith("int8") else {"mode": mode, "all_layers": True}
    if mode == "nvfp4":
        options["group_size_fallback"] = "ignore"
    found: dict[tuple[bool, str], list[Any]] = {}
    for lazy in (True, False):
        for writer in WRITERS:
            model = apply_weight_compression(mixed(*weights), **options, lazy=lazy)
            written(model, tmp_path, writer)
            read = constants(ov.Core().read_model(tmp_path / "m.xml"))
            kinds = {name: node.get_output_element_type(0).to_string() for name, node in read.items()}
            assert {kind for name, kind in kinds.items() if name.endswith("bias")} == {"f32"}, (lazy, writer)
            found[lazy, writer] = sorted((kinds[name], *node.shape) for name, node in read.items())
    assert all(kinds == found[True, "package"] for kinds in found.values())


def test_decompressing_reads_nothing_from_the_graph_either(tmp_path: Path) -> None:
    save_model(lazy(), tmp_path / "compressed.xml")

    def floats(edited: bool) -> dict[str, bytes]:
        model = ov.Core().read_model(tmp_path / "compressed.xml")
        constant = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        held = [node for node in constant if node.get_output_element_type(0).bitwidth <= 16]
        decompression = DecompressWeights()
        decompression.run_on_model(model)
        for node in held if edited else ():
            for target in list(node.output(0).get_target_inputs()):
                zeros = ov.op.Constant(node.get_output_element_type(0), ov.Shape(list(node.shape)), [0])
                target.replace_source_output(zeros.output(0))
        written(model, tmp_path, "package")
        saved = constants(ov.Core().read_model(tmp_path / "m.xml"))
        return {weight.name: saved[weight.name].data.tobytes() for weight in decompression.weights}

    assert floats(True) == floats(False)


@pytest.mark.parametrize("mode", ["int8_asym", "fp8_e4m3"])
def test_the_weight_that_tells_has_the_same_numbers(mode: str, tmp_path: Path) -> None:
    """Alone its scales are f32, beside a MatMul whose chain is recognised they are f16."""

    def convolution(*weights: str) -> tuple[Any, Any]:
        options = {"mode": "int8_asym", "rules": [("Convolution*", mode)] if mode != "int8_asym" else []}
        model = mixed(*weights)
        layer = next(node for node in model.get_ops() if node.get_type_name() == "Convolution")
        layer.set_friendly_name("Convolution")
        layer.input_value(1).get_node().set_friendly_name("kernel")
        values = np.random.default_rng(7).standard_normal((8, 4, 3, 3)).astype(np.float32)
        layer.input(1).replace_source_output(op.constant(values, name="kernel").output(0))
        written(apply_weight_compression(model, **options), tmp_path, "package")
        found = constants(ov.Core().read_model(tmp_path / "m.xml"))
        return found["kernel"], found["kernel/scale"]

    (codes, wide), (same, narrow) = convolution("convolution"), convolution("matmul", "convolution")
    assert (wide.get_output_element_type(0), narrow.get_output_element_type(0)) == (ov.Type.f32, ov.Type.f16)
    assert codes.data.tobytes() == same.data.tobytes()
    assert (wide.data == narrow.data.astype(np.float32)).all()


def test_weights_of_few_values_are_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ternary weights have the same largest value, so nothing but their values tells them apart."""
    x = op.parameter([-1, 16], np.float32)
    values = np.random.default_rng(0).integers(-1, 2, (60, 16, 16)).astype(np.float32)
    ends = [op.result(op.matmul(x, op.constant(each), False, True)) for each in values]
    compared: list[int] = []
    equals = ConstantSource.equals
    monkeypatch.setattr(ConstantSource, "equals", lambda *pair: (compared.append(1), equals(*pair))[1])
    apply_weight_compression(ov.Model(ends, [x]), mode="int8_sym")
    assert len(compared) <= 2
