"""What the CPU does with each format, as its runtime graph says; and devices that are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import openvino as ov
import pytest

from ov_weight_compression.cli import main
from ov_weight_compression.evaluation import device as device_module
from ov_weight_compression.evaluation import inspect
from ov_weight_compression.evaluation.device import check_device
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes import WeightCompression
from ov_weight_compression.patterns import find_compressed
from ov_weight_compression.patterns.device_layer import cut_rows, single_layer
from tests import expert_models, models

FLOATS = ("f32", "f16", "bf16")
STORAGE = {
    **{"int8_asym": "u8", "int8_sym": "i8", "int4_asym": "u4", "int4_sym": "i4", "int2_sym": "u2", "int2_asym": "u2"},
    **{"nf4": "nf4", "fp4": "f4e2m1", "mxfp4": "f4e2m1", "nvfp4": "f4e2m1"},
}
EXPANDED = ("int3_sym", "fp8_e4m3", "mxfp8_e4m3", "cb4")
INTEGERS = ("int8_asym", "int8_sym", "int4_asym", "int4_sym")


def compressed(make: Callable[[], ov.Model], mode: str, folder: Path) -> ov.Model:
    """A model compressed and read back from a file, as it is deployed."""
    model = make()
    WeightCompression(rules=[("*", mode)]).run_on_model(model)
    ov.save_model(model, folder / "model.xml")
    return ov.Core().read_model(folder / "model.xml")


def verdict(model: ov.Model, whole_elements: int = 1 << 27) -> tuple[str, str, str]:
    """What the CPU does with the only weight of a model."""
    ((execution,),) = check_device(model, find_compressed(model), "CPU", whole_elements).executions
    return execution.verdict, execution.type, execution.operation


def linear() -> ov.Model:
    return models.linear(64, 256)


def embedding() -> ov.Model:
    return models.embedding((80, 256))


def experts() -> ov.Model:
    return models.grouped_matmul(3, 64, 256)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("make", "operation", "kept"),
    [
        (linear, "FullyConnected", tuple(STORAGE)),
        (embedding, "Gather", INTEGERS),
        (experts, "GatherMatmul", INTEGERS),
        (lambda: models.linear(64, 256, batch=(3,)), "", ()),
        (lambda: models.linear(64, 256, port=0), "MatMul", ()),
    ],
    ids=["linear", "embedding", "experts", "batched", "first input"],
)
@pytest.mark.parametrize("mode", [*STORAGE, *EXPANDED])
def test_what_the_cpu_executes(
    mode: str, make: Callable[[], ov.Model], operation: str, kept: tuple[str, ...], whole: bool, tmp_path: Path
) -> None:
    found = verdict(compressed(make, mode, tmp_path), 1 << 27 if whole else 0)
    if mode in kept:
        assert found == ("compressed", STORAGE[mode], operation)
    else:
        assert found[0] == "expanded"
        assert found[1] in FLOATS


@pytest.mark.parametrize("mode", ["int8_asym", "int8_sym"])
def test_the_cpu_expands_convolutions(mode: str, tmp_path: Path) -> None:
    assert verdict(compressed(models.convolution, mode, tmp_path))[::2] == ("expanded", "Convolution")


@pytest.mark.parametrize(("mode", "kept"), [("int4_asym", True), ("nf4", True), ("int3_sym", False), ("cb4", False)])
def test_a_model_that_was_never_saved(mode: str, kept: bool) -> None:
    model = linear()
    WeightCompression(mode=mode, all_layers=True).run_on_model(model)
    assert verdict(model)[0] == ("compressed" if kept else "expanded")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "apart"])
@pytest.mark.parametrize("make", [expert_models.two_gemms, expert_models.three_gemms])
def test_tiled_experts_run_from_their_codes(make: Callable[[], ov.Model], whole: bool, tmp_path: Path) -> None:
    model = compressed(make, "int4_asym", tmp_path)
    weights = find_compressed(model)
    check = check_device(model, weights, "CPU", 1 << 27 if whole else 0)
    found = {weight.name: str(one[0]) for weight, one in zip(weights, check.executions, strict=True)}
    assert found.pop("router_compressed", None) or found.pop("router") == "runs from codes: FullyConnected"
    assert set(found.values()) == {"runs from codes: GatherMatmul"}


def test_a_table_that_two_layers_read_has_an_answer_for_each() -> None:
    model = models.tied_head()
    WeightCompression(mode="nf4", group_size=64, all_layers=True, rules=[("weight_0", "int4_sym")]).run_on_model(model)
    table, hidden = inspect(model, "CPU").weights
    assert [execution.layer for execution in table.executions] == ["embedding", "layer"]
    assert table.executions[0].verdict == "expanded"
    assert hidden.executed == "runs from codes: FullyConnected"


def test_layers_in_bodies_are_looked_at_one_by_one() -> None:
    model = models.in_if(128)
    WeightCompression(mode="int4_sym", group_size=32, all_layers=True).run_on_model(model)
    found = inspect(model, "CPU")
    assert found.weights[0].executed == "runs from codes: FullyConnected"
    assert found.device is not None
    assert found.device["method"] == (
        "the whole model was compiled; one layer of each kind was compiled (1 for 1 layers)"
    )


def test_one_layer_of_each_kind_stands_for_all() -> None:
    model = models.llama(hidden=128, inner=256, layers=3)
    WeightCompression(mode="nf4", group_size=64, all_layers=True, rules=[("*v_proj*", "int3_sym")]).run_on_model(model)
    whole, apart = (
        check_device(model, find_compressed(model), "CPU"),
        check_device(model, find_compressed(model), "CPU", 0),
    )
    assert [[one.verdict for one in each] for each in whole.executions] == [
        [one.verdict for one in each] for each in apart.executions
    ]
    assert [[one.layer for one in each] for each in whole.executions] == [
        [one.layer for one in each] for each in apart.executions
    ]
    assert whole.method == "the whole model was compiled"
    assert apart.method == "one layer of each kind was compiled (3 for 23 layers)"


def test_a_large_layer_is_cut(tmp_path: Path) -> None:
    for mode in ("int4_asym", "nvfp4", "int2_sym", "cb4"):
        model = compressed(lambda: models.llama(hidden=128, inner=256, layers=1), mode, tmp_path)
        whole, cut = (
            check_device(model, find_compressed(model), "CPU"),
            check_device(model, find_compressed(model), "CPU", 0, layer_elements=1 << 12),
        )
        verdicts = [[one.verdict for one in each] for each in whole.executions]
        assert [[one.verdict for one in each] for each in cut.executions] == verdicts, mode


@pytest.mark.parametrize("make", [linear, lambda: models.linear(64, 256, transpose=False), embedding])
@pytest.mark.parametrize("mode", [*STORAGE, *EXPANDED])
def test_cutting_keeps_the_chain(make: Callable[[], ov.Model], mode: str) -> None:
    model = make()
    options = {} if mode.startswith("int8") else {"all_layers": True}
    WeightCompression(mode=mode, **options).run_on_model(model)
    (before,) = find_compressed(model)
    cut_rows(before, 16 * 256)
    (after,) = find_compressed(single_layer(before.consumers[0]))
    assert after.elements == 16 * 256
    assert (after.storage, after.group_size) == (before.storage, before.group_size)
    assert after.reduction_axes == before.reduction_axes


def test_a_weight_that_cannot_be_cut_is_left_whole() -> None:
    model = models.convolution()
    WeightCompression().run_on_model(model)
    (weight,) = find_compressed(model)
    cut_rows(weight, 64)
    (after,) = find_compressed(single_layer(weight.consumers[0]))
    assert after.shape == (16, 8, 3, 3)


def test_the_model_is_not_changed() -> None:
    model = models.llama(hidden=64, layers=1)
    WeightCompression().run_on_model(model)
    before = [(node.get_friendly_name(), str(node)) for node in model.get_ordered_ops()]
    check_device(model, find_compressed(model), "CPU", 0)
    assert [(node.get_friendly_name(), str(node)) for node in model.get_ordered_ops()] == before


def test_what_a_device_does_not_show_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_model(model: ov.Model, *_: object) -> object:
        def get_runtime_model() -> ov.Model:
            raise RuntimeError("Exception from somewhere\nNot implemented")

        return SimpleNamespace(get_runtime_model=get_runtime_model)

    core = SimpleNamespace(
        compile_model=compile_model,
        available_devices=["NPU"],
        get_property=lambda device, name: "a device without a graph",
    )
    monkeypatch.setattr(device_module, "core", lambda: core)
    monkeypatch.setattr("ov_weight_compression.evaluation.models.core", lambda: core)
    model = linear()
    WeightCompression().run_on_model(model)
    found = check_device(model, find_compressed(model), "NPU")
    (execution,) = found.executions[0]
    assert (execution.verdict, execution.reason) == ("unknown", "no runtime graph: Not implemented")
    assert found.name == "a device without a graph"
    assert found.method.startswith("the whole model was tried (Not implemented)")


def test_a_runtime_graph_without_constants_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the GPU's is, which leaves out its constants."""

    class Graph:
        def __init__(self, compiled: object, originals: object) -> None:
            pass

        def weight_edge(self, layer: str, elements: int) -> None:
            return None

    monkeypatch.setattr(device_module, "RuntimeGraph", Graph)
    model = linear()
    WeightCompression().run_on_model(model)
    (execution,) = check_device(model, find_compressed(model), "CPU").executions[0]
    assert (execution.verdict, str(execution)) == ("unknown", "unknown")
    assert "does not show its weight" in execution.reason


def test_foreign_chains() -> None:
    assert verdict(models.compressed_linear("u4", zero_point="f16"))[:2] == ("compressed", "u4")
    assert verdict(models.compressed_linear("u4", zero_point="u4"))[:2] == ("compressed", "u4")
    assert verdict(models.compressed_linear("u6", zero_point="u8"))[0] == "expanded"
    assert verdict(models.compressed_linear("f8e5m2", zero_point=None))[0] == "expanded"


def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match=r"device='TPU': OpenVINO finds no such device here, it finds .*CPU"):
        inspect(linear(), "TPU")
    ov.save_model(linear(), tmp_path / "model.xml")
    assert main(["inspect", str(tmp_path / "model.xml"), "--device", "TPU"]) == 2
    assert "it finds" in capsys.readouterr().err


def test_the_table_names_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compressed(linear, "fp8_e4m3", tmp_path)
    assert main(["inspect", str(tmp_path / "model.xml"), "--device", "CPU", "--all"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("on CPU") == 2
    assert "expanded to" in printed
    assert "the whole model was compiled" in printed


def test_uncompressed_models_have_nothing_to_check() -> None:
    found = inspect(models.layers(), "CPU")
    assert found.weights == ()
    assert found.device is not None
