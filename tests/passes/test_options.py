"""What is accepted, and what is refused with the field, the limit and the value."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.passes import (
    BackupMode,
    GroupSizeFallback,
    IgnoredScope,
    Mode,
    OptionError,
    SensitivityMetric,
    WeightCompression,
    apply_weight_compression,
)
from ov_weight_compression.passes.options import OPTIONS, read_options
from tests.models import layers


class TheirMode(Enum):
    """Another library's enum with the same values."""

    INT4_SYM = "int4_sym"


@pytest.mark.parametrize("value", ["int4_sym", "INT4_SYM", " Int4_Sym ", Mode.INT4_SYM, TheirMode.INT4_SYM])
def test_an_enum_is_read_from_any_spelling(value: object) -> None:
    assert read_options(mode=value).mode is Mode.INT4_SYM


def test_the_defaults() -> None:
    options = read_options()
    assert options.mode is Mode.INT8_ASYM
    assert options.effective_group == -1
    assert read_options(mode="int4_asym").effective_group == 128
    assert options.backup_mode is BackupMode.INT8_ASYM
    assert options.group_size_fallback is GroupSizeFallback.ADJUST
    assert options.sensitivity_metric is SensitivityMetric.WEIGHT_QUANTIZATION_ERROR
    assert options.lazy is True


def test_none_is_the_default_everywhere() -> None:
    names = ("mode", "ratio", "group_size", "ignored_scope", "all_layers", "backup_mode", "sensitivity_metric")
    more = ("group_size_fallback", "rules", "dataset", "awq", "gptq", "scale_estimation", "lora_correction", "lazy")
    assert read_options(**dict.fromkeys((*names, *more))) == read_options()


@pytest.mark.parametrize("function", [WeightCompression.__init__, apply_weight_compression])
def test_signatures_are_the_table_of_options(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    written = [one for one in parameters if one.name not in ("self", "model")]
    assert all(one.kind is one.KEYWORD_ONLY for one in written)
    assert [one.name for one in written] == list(OPTIONS)
    for one in written:
        option = OPTIONS[one.name]
        assert one.default == option.default, one.name
        assert type(one.default) is type(option.default), one.name
        kind = option.kind.annotation
        assert one.annotation == (f"{kind} | None" if option.default is None and kind != "Any" else kind), one.name


def test_every_option_is_explained() -> None:
    told = WeightCompression.__doc__ or ""
    for name, option in OPTIONS.items():
        assert re.search(rf"^ +([a-z_]+, )?{name}[:,]", told, re.MULTILINE), name
        assert option.help, name


def test_options_go_by_name() -> None:
    model = layers(1)
    with pytest.raises(OptionError, match=r"'int4_sym': options are given by name, as in mode='int4_sym'"):
        apply_weight_compression(model, "int4_sym")  # type: ignore[misc]
    with pytest.raises(OptionError, match=r"unknown option 'group'; did you mean 'group_size'\?"):
        WeightCompression(group=4)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match=r"unknown option 'x{17,}.*help\(WeightCompression\)"):
        WeightCompression(**{"x" * 20000: 4})  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers() -> None:
    options = read_options(mode="int4_sym", group_size=np.int64(64), ratio=0.5)
    assert (options.group_size, options.ratio) == (64, 0.5)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "int5_sym"}, r"mode: 'int5_sym' is not one of int8_asym, int8_sym, int4_asym"),
    ({"mode": 4}, r"mode: 4 is not one of"),
    ({"modes": "int4_sym"}, r"unknown option 'modes'; did you mean 'mode'\?"),
    ({"mode": "int4_sym", "ratio": 1.5}, r"ratio: must be a number from 0 to 1, got 1.5"),
    ({"mode": "int4_sym", "ratio": -0.1}, r"ratio: must be a number from 0 to 1, got -0.1"),
    ({"mode": "int4_sym", "ratio": "half"}, r"ratio: must be a number from 0 to 1, got 'half'"),
    ({"mode": "int4_sym", "ratio": True}, r"ratio: must be a number"),
    ({"mode": "int4_sym", "ratio": float("nan")}, r"ratio: must be a number from 0 to 1, got nan"),
    ({"mode": "int4_sym", "group_size": 0}, r"group_size.* at least 2, got 0"),
    ({"mode": "int4_sym", "group_size": -2}, r"group_size.* -1 .*got -2"),
    ({"mode": "int4_sym", "group_size": 1}, r"group_size.* at least 2, got 1"),
    ({"mode": "int4_sym", "group_size": 64.0}, r"group_size: must be -1 .* whole number of at least 2, got 64.0"),
    ({"mode": "int4_sym", "group_size": True}, r"group_size.* whole number of at least 2, got True"),
    ({"mode": "int4_sym", "all_layers": "yes"}, r"all_layers: must be True or False, got 'yes'"),
    ({"mode": "int4_sym", "backup_mode": "int4_sym"}, r"backup_mode: 'int4_sym' is not one of none"),
    ({"mode": "int4_sym", "sensitivity_metric": "size"}, r"sensitivity_metric: 'size' is not one of"),
    ({"mode": "int4_sym", "sensitivity_metric": "mean_activation_variance"}, r"sensitivity_metric: .*dataset"),
    ({"mode": "int4_sym", "group_size_fallback": "guess"}, r"group_size_fallback: 'guess' is not one of adjust"),
    ({"mode": "int4_sym", "scale_search": "much"}, r"scale_search: .*got 'much'"),
    ({"mode": "int4_sym", "scale_search": 1000}, r"scale_search: .*256, got 1000"),
    ({"lazy": 1}, r"lazy: must be True or False, got 1"),
    ({"threads": 0}, r"threads: must be a whole number from 1 to 4096, got 0"),
    ({"mode": "mxfp4", "group_size": 64}, r"group_size: mxfp4 is defined for groups of 32, got 64"),
    ({"mode": "nvfp4", "group_size": 32}, r"group_size: nvfp4 is defined for groups of 16, got 32"),
    ({"mode": "mxfp8_e4m3", "group_size": -1}, r"group_size: mxfp8_e4m3 is defined for groups of 32, got -1"),
    ({"mode": "int8_asym", "ratio": 0.5}, r"ratio: int8_asym .*only 1 is allowed, got 0.5"),
    ({"mode": "int8_sym", "group_size": 64}, r"group_size: int8_sym is per channel, so only -1 is allowed, got 64"),
    (
        {"mode": "int8_sym", "all_layers": True},
        r"all_layers: means nothing with int8_sym, .* choose a mode of fewer bits",
    ),
    ({"awq": True}, r"awq: means nothing with int8_asym \(the default\)"),
    ({"mode": "int8_sym", "backup_mode": "none"}, r"backup_mode: means nothing with int8_sym"),
    ({"compression_format": "fake_quantize"}, r"compression_format: only 'dequantize'"),
    ({"ignored_scope": 3}, r"ignored_scope: must be an IgnoredScope, a dict or a list of names, got 3"),
    ({"ignored_scope": {"nmaes": []}}, r"ignored_scope: unknown field 'nmaes'; it has names"),
    ({"ignored_scope": {"names": "layer"}}, r"ignored_scope: names must be a list of strings, got 'layer'"),
    ({"rules": "a=int8_sym"}, r"rules: must be a list of \(pattern, mode\) pairs, got 'a=int8_sym'"),
    ({"rules": [("a",)]}, r"rules\[0\]: expected a pair"),
    ({"rules": [("a", "int9")]}, r"rules\[0\]: 'int9' is not one of"),
    ({"rules": [("a", {"group_size": 4})]}, r"rules\[0\]: the key 'mode' is missing"),
    ({"rules": [("a", {"mode": "int4_sym", "group": 4})]}, r"rules\[0\]: unknown key 'group'; allowed are"),
    ({"rules": [("a", None), ("b", {"mode": "mxfp4", "group_size": 64})]}, r"rules\[1\]: mxfp4 is defined for"),
    ({"rules": [("re:(", "int8_sym")]}, r"rules: 're:\(' is no regular expression"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        read_options(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"mode": "int9"}, {"rules": [("nothing*", None)]}, {"ignored_scope": ["nobody"]}])
def test_a_refusal_leaves_the_model_alone(options: dict[str, Any]) -> None:
    model = layers(2)
    before = [node.get_type_name() for node in model.get_ordered_ops()]
    with pytest.raises(OptionError):
        apply_weight_compression(model, **options)
    assert [node.get_type_name() for node in model.get_ordered_ops()] == before


def test_an_option_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="mode"):
        WeightCompression(mode="int9")


@pytest.mark.parametrize("thing", [None, "model.xml", 3])
def test_only_models_are_compressed(thing: object) -> None:
    with pytest.raises(OptionError, match=r"model: expected an openvino.Model, got .*read_model"):
        apply_weight_compression(thing)  # type: ignore[arg-type]


def test_the_report_of_a_pass_that_has_not_run() -> None:
    with pytest.raises(OptionError, match="has not been run"):
        _ = WeightCompression().report


def names_left_alone(scope: object) -> set[str]:
    compression = WeightCompression(mode="int8_sym", ignored_scope=scope)
    compression.run_on_model(layers(3))
    assert len(compression.report.rows) + len(compression.report.skips) == 3
    assert all("ignored" in skip.reason for skip in compression.report.skips)
    return {skip.name for skip in compression.report.skips}


def test_every_form_of_an_ignored_scope() -> None:
    theirs = SimpleNamespace(names=["layer_1"], patterns=[], types=[], subgraphs=[], validate=True)
    for scope in (["layer_1"], "layer_1", {"names": ["layer_1"]}, IgnoredScope(names=("layer_1",)), theirs):
        assert names_left_alone(scope) == {"weight_1"}
    assert names_left_alone({"patterns": ["layer_[02]"]}) == {"weight_0", "weight_2"}
    assert names_left_alone({"types": ["MatMul"]}) == {"weight_0", "weight_1", "weight_2"}
    between = SimpleNamespace(inputs=["layer_0"], outputs=["layer_1"])
    theirs = SimpleNamespace(names=[], patterns=[], types=[], subgraphs=[between], validate=True)
    assert names_left_alone(theirs) == {"weight_0", "weight_1"}
    assert names_left_alone(None) == set()


def test_an_ignored_name_that_is_not_there() -> None:
    with pytest.raises(OptionError, match=r"ignored_scope: nothing in the model matches name 'layer_9'"):
        names_left_alone(["layer_9"])
    assert names_left_alone({"names": ["layer_9", "layer_0"], "validate": False}) == {"weight_0"}


def test_the_model_says_what_was_asked_for() -> None:
    options = read_options(mode="int4_sym", rules=[("*a*", None)], ignored_scope=["x"], device="CPU")
    recipe = options.as_recipe()
    assert recipe["mode"] == "int4_sym"
    assert recipe["rules"] == "*a*=leave alone"
    assert "x" in recipe["ignored_scope"]
    assert recipe["device"] == "CPU"
    assert all(isinstance(value, str) for value in recipe.values())
    assert ov.get_version() not in recipe.values()


def test_arrays_by_name_are_told_in_the_recipe() -> None:
    """As an .npz gives them."""
    assert read_options(mode="int4_sym", dataset={"x": np.ones((2, 3))}).as_recipe()["dataset"] == "dict"
