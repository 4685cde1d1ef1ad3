"""Code written for NNCF runs with one import changed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

import ov_weight_compression.passes.compat as nncf
from ov_weight_compression.passes import OptionError, WeightCompression, apply_weight_decompression, report_of
from ov_weight_compression.passes.plan import Tuning
from ov_weight_compression.patterns.compressed import _plain, read_metadata
from tests.models import layers, linear, llama


class ForeignMode(str, Enum):
    """Another library's enum with the same values."""

    INT4_SYM = "int4_sym"
    ADJUST = "adjust"
    ERROR = "error"
    IGNORE = "ignore"


@dataclass
class TheirTuning:
    alpha: float = 0.5


class ForeignType(Enum):
    FLOAT16 = "float16"
    F8E4M3 = "f8e4m3"


@dataclass
class ForeignTables:
    value_type: ForeignType = ForeignType.F8E4M3
    across_blocks: bool = False
    num_elements: int = 16


@dataclass
class ForeignParameters:
    """What NNCF's AdvancedCompressionParameters looks like."""

    group_size_fallback_mode: ForeignMode = ForeignMode.ADJUST
    codebook: object = None
    awq_params: TheirTuning = field(default_factory=TheirTuning)
    adaptive_codebook_params: ForeignTables = field(default_factory=ForeignTables)


def storages(model: ov.Model) -> set[str]:
    return {node.get_output_element_type(0).get_type_name() for node in model.get_ops() if not node.get_input_size()}


def test_a_call_as_nncf_users_write_it() -> None:
    samples = [{"tokens": np.arange(8, dtype=np.int64)[None]}]
    dataset = nncf.Dataset(samples, lambda sample: {"input_ids": sample["tokens"]})
    assert next(iter(dataset.get_inference_data()))["input_ids"].shape == (1, 8)
    model = nncf.compress_weights(
        llama(hidden=64, inner=96),
        mode=nncf.CompressWeightsMode.INT4_SYM,
        ratio=None,
        group_size=32,
        ignored_scope=nncf.IgnoredScope(types=("Gather",)),
        backup_mode=nncf.BackupMode.INT8_SYM,
        subset_size=128,
    )
    assert {"i4", "i8"} <= storages(model)


def test_its_enums_and_advanced_parameters_are_understood() -> None:
    parameters = ForeignParameters(ForeignMode.IGNORE, codebook=np.linspace(-1, 1, 16))
    options = WeightCompression(mode="codebook", advanced_parameters=parameters).options
    assert options.group_size_fallback is nncf.GroupSizeFallbackMode.IGNORE
    assert len(options.codebook or ()) == 16
    assert WeightCompression(mode=ForeignMode.INT4_SYM).options.mode is nncf.CompressWeightsMode.INT4_SYM


def test_its_adaptive_codebook_parameters_are_understood() -> None:
    parameters = ForeignParameters(adaptive_codebook_params=ForeignTables(ForeignType.FLOAT16, True, 32))
    options = WeightCompression(mode="adaptive_codebook", advanced_parameters=parameters).options
    assert (options.codebook_type, options.codebook_size) == ("f16", 32)
    assert options.codebook_sharing.value == "across_blocks"


def test_advanced_parameters_without_a_counterpart_are_refused() -> None:
    with pytest.raises(OptionError, match=r"awq_params.alpha=0.9 has no counterpart"):
        WeightCompression(mode="int4_sym", advanced_parameters=ForeignParameters(awq_params=TheirTuning(0.9)))


def given(**parts: Any) -> Any:
    return WeightCompression(mode="int4_sym", advanced_parameters=nncf.AdvancedCompressionParameters(**parts)).options


def test_what_follows_the_model_is_named() -> None:
    with pytest.raises(OptionError, match=r"compress_weights: only the model is taken by position.*mode="):
        nncf.compress_weights(layers(1), nncf.CompressWeightsMode.INT8_SYM)


def test_none_is_not_given_for_every_parameter() -> None:
    names = [name for name in inspect.signature(nncf.compress_weights).parameters if name not in ("model", "options")]
    model = nncf.compress_weights(layers(1), **{name: None for name in names if name != "positional"})
    assert "u8" in storages(model)
    nothing = dict.fromkeys(vars(nncf.AdvancedCompressionParameters()))
    assert given(**nothing) == WeightCompression(mode="int4_sym").options


def test_positional_parts_as_nncf_documents_them() -> None:
    parts = nncf.AdvancedCompressionParameters(
        awq_params=nncf.AdvancedAWQParameters(32, 0.05, 0.0, 1.0, 4),
        scale_estimation_params=nncf.AdvancedScaleEstimationParameters(32, 5, 10, -1.0),
        gptq_params=nncf.AdvancedGPTQParameters(0.2, 128, 16),
        lora_correction_params=nncf.AdvancedLoraCorrectionParameters(4, 1, True, 8),
    )
    asked = {"dataset": [np.ones((1, 64))], "awq": True, "scale_estimation": True, "lora_correction": True}
    options = WeightCompression(mode="int4_sym", advanced_parameters=parts, **asked).options
    assert options.tuning == Tuning(32, (0.0, 0.25, 0.5, 0.75), 0.05, True, 32, 16, 0.2, 8, 1)
    assert (options.scale_search, options.lora_rank) == (10, 4)
    # What is said of an algorithm that does not run says nothing.
    assert WeightCompression(mode="int4_sym", advanced_parameters=parts).options.lora_rank == 8


REFUSED_PARTS: list[tuple[dict[str, Any], str]] = [
    ({"lora_adapter_rank": 8}, "lora_adapter_rank=8 has no counterpart"),
    ({"backend_params": {"a": 1}}, r"backend_params=\{'a': 1\} has no counterpart"),
    ({"gptq_params": nncf.AdvancedGPTQParameters(block_size=64)}, "gptq_params.block_size=64 has no counterpart"),
    (
        {"scale_estimation_params": nncf.AdvancedScaleEstimationParameters(initial_steps=2)},
        "scale_estimation_params.initial_steps=2 has no counterpart",
    ),
    (
        {"lora_correction_params": nncf.AdvancedLoraCorrectionParameters(use_int8_adapters=False)},
        "lora_correction_params.use_int8_adapters=False has no counterpart",
    ),
    ({"gptq_params": nncf.AdvancedGPTQParameters(subset_size=0)}, r"gptq_params.subset_size: .* at least 1, got 0"),
    ({"awq_params": nncf.AdvancedAWQParameters(alpha_min=0.9, alpha_max=0.1)}, "alpha_min: must not be above"),
    (
        {"awq_params": nncf.AdvancedAWQParameters(percent_to_apply=2.0)},
        "percent_to_apply: must be a number from",
    ),
    ({"group_size_fallback_mode": "guess"}, "group_size_fallback: 'guess' is not one of"),
    ({"awq_params": 3}, "awq_params: expected NNCF's AdvancedAWQParameters, got 3"),
]


@pytest.mark.parametrize(("parts", "message"), REFUSED_PARTS, ids=[message for _, message in REFUSED_PARTS])
def test_parts_that_mean_nothing_are_refused_by_name(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        given(**parts)


def test_what_is_no_such_object_is_refused() -> None:
    for thing in (3, {"codebook": [1, 2]}, Tuning()):
        with pytest.raises(OptionError, match="expected NNCF's AdvancedCompressionParameters, got"):
            WeightCompression(mode="int4_sym", advanced_parameters=thing)


def test_a_group_that_does_not_divide_is_an_error_where_that_is_asked_for() -> None:
    def compressed(mode: Any, **more: Any) -> set[str]:
        parameters = nncf.AdvancedCompressionParameters(group_size_fallback_mode=mode, **more)
        how = {"mode": "int4_sym", "group_size": 128, "all_layers": True, "advanced_parameters": parameters}
        return storages(nncf.compress_weights(layers(2), **how))

    assert "i4" in compressed(None)
    assert "i4" in compressed(nncf.GroupSizeFallbackMode.ADJUST)
    assert "i4" not in compressed(nncf.GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=128)
    assert not {"i4", "u8"} & compressed(nncf.GroupSizeFallbackMode.IGNORE)
    with pytest.raises(nncf.InvalidGroupSizeError, match="128 does not fit weight_0"):
        compressed(nncf.GroupSizeFallbackMode.ERROR)
    # NNCF's own object always says what it wants, by its default as well.
    foreign = ForeignParameters(ForeignMode.ERROR)
    with pytest.raises(nncf.InvalidGroupSizeError, match="128 does not fit weight_0"):
        nncf.compress_weights(layers(2), mode="int4_sym", group_size=128, all_layers=True, advanced_parameters=foreign)


BITS = np.array([0xC0, 0xB8, 0x00, 0x38, 0x40], np.uint8)  # -2, -1, 0, 1, 2 in f8e4m3


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        (np.arange(-2, 3, dtype=np.float32), "f32"),
        (np.arange(-2, 3, dtype=np.float64), "f32"),
        (np.arange(-2, 3, dtype=np.float16), "f16"),
        (np.arange(-2, 3), "i8"),
        (np.arange(-2, 3, dtype=np.int8), "i8"),
        (np.arange(5, dtype=np.uint8), "u8"),
        (np.arange(-2, 300), "f32"),
        ([-2, -1, 0, 1, 2], "f8e4m3"),
        (ov.Tensor(BITS, ov.Shape([5]), ov.Type.f8e4m3), "f8e4m3"),
        (ov.Tensor(np.arange(-2, 3, dtype=np.float16)), "f16"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_table_is_kept_in_the_type_of_its_array(table: Any, kind: str) -> None:
    options = WeightCompression(mode="codebook", codebook=table).options
    assert options.codebook_type == kind
    if len(options.codebook or ()) == 5 and kind != "u8":
        assert options.codebook == (-2, -1, 0, 1, 2)
    model = nncf.compress_weights(layers(1), mode="codebook", all_layers=True, codebook=table, lazy=False)
    shape = [len(options.codebook or ())]
    constants = [
        node
        for node in model.get_ops()
        if node.get_type_name().endswith("Constant") and list(node.get_output_shape(0)) == shape
    ]
    assert kind in {node.get_output_element_type(0).get_type_name() for node in constants}


def test_a_type_that_is_named_counts() -> None:
    options = WeightCompression(mode="codebook", codebook=np.arange(5, dtype=np.int8), codebook_type="f16").options
    assert options.codebook_type == "f16"


def test_a_table_of_two_dimensions_is_refused() -> None:
    with pytest.raises(nncf.ValidationError, match=r"codebook: must be one list .* an array of float64 \[2, 3\]"):
        WeightCompression(mode="codebook", codebook=np.arange(6.0).reshape(2, 3))


def test_a_codebook_beside_adaptive_codebook_is_where_it_begins() -> None:
    def tables(**options: Any) -> list[np.ndarray]:
        model = nncf.compress_weights(layers(1), mode="adaptive_codebook", all_layers=True, lazy=False, **options)
        return [node.data for node in model.get_ops() if node.get_type_name() == "Constant" and node.shape == [12]]

    start = np.linspace(0.9, 1, 12)  # so bad a beginning that it shows where it ends
    parts = nncf.AdvancedAdaptiveCodebookParameters(num_elements=12, value_type=nncf.TensorDataType.float16)
    parameters = nncf.AdvancedCompressionParameters(codebook=start, adaptive_codebook_params=parts)
    (fitted,) = tables(advanced_parameters=parameters)
    assert fitted.dtype == np.float16
    (alone,) = tables(codebook_size=12, codebook_type="f16")
    assert not np.array_equal(fitted, alone)
    assert WeightCompression(mode="adaptive_codebook", codebook=start).options.codebook_size == 12
    with pytest.raises(OptionError, match="codebook_size: must be that of the codebook, 12, got 16"):
        tables(codebook=start, codebook_size=16)


@pytest.mark.parametrize("mode", ["fp8_e4m3", "mxfp8_e4m3"])
@pytest.mark.parametrize("name", ["gptq", "scale_estimation", "awq", "lora_correction"])
def test_algorithms_that_would_change_nothing_are_refused(mode: str, name: str) -> None:
    asked: dict[str, Any] = {"mode": mode, "dataset": [np.ones((1, 64))], name: True}
    with pytest.raises(nncf.ParameterNotSupportedError, match=f"{name}: changes only weights of 4 bits.*{mode}"):
        WeightCompression(**asked)
    assert (
        nncf.CompressWeightsMode.INT4_SYM in WeightCompression(**asked, rules=[("weight_0", "int4_sym")]).options.modes
    )


def test_groups_that_cannot_be_adjusted() -> None:
    parameters = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
    with pytest.raises(nncf.ValidationError, match="group_size_fallback: mxfp4 has groups of 32 and no others"):
        WeightCompression(mode="mxfp4", advanced_parameters=parameters)


def counted(count: int) -> tuple[list[int], Any]:
    """A dataset, and the numbers of the samples that are read of it."""
    seen: list[int] = []
    samples = [np.random.default_rng(number).normal(size=(8, 64)).astype(np.float32) for number in range(count)]
    return seen, nncf.Dataset(range(count), lambda number: (seen.append(number), samples[number])[1])


@pytest.mark.parametrize(
    ("algorithm", "parts", "read"),
    [
        ("scale_estimation", {"scale_estimation_params": nncf.AdvancedScaleEstimationParameters(subset_size=2)}, 2),
        ("gptq", {"gptq_params": nncf.AdvancedGPTQParameters(subset_size=3)}, 3),
        ("lora_correction", {"lora_correction_params": nncf.AdvancedLoraCorrectionParameters(subset_size=1)}, 1),
        ("scale_estimation", {}, 6),
        ("gptq", {"gptq_params": nncf.AdvancedGPTQParameters(subset_size=30)}, 6),
    ],
    ids=str,
)
def test_an_algorithm_reads_the_samples_that_it_was_given(algorithm: str, parts: dict[str, Any], read: int) -> None:
    seen, dataset = counted(6)
    parameters = nncf.AdvancedCompressionParameters(**parts)
    asked: dict[str, Any] = {algorithm: True, "dataset": dataset, "advanced_parameters": parameters}
    nncf.compress_weights(layers(3), mode="int4_sym", group_size=32, all_layers=True, lazy=False, **asked)
    assert set(seen) == set(range(read))


def test_awq_takes_its_own_samples_and_can_do_without() -> None:
    def costs(**parts: Any) -> tuple[list[float | None], list[int]]:
        seen, dataset = counted(4)
        parameters = nncf.AdvancedCompressionParameters(awq_params=nncf.AdvancedAWQParameters(**parts))
        asked: dict[str, Any] = {"awq": True, "dataset": dataset, "advanced_parameters": parameters}
        own = WeightCompression(mode="int4_sym", group_size=32, all_layers=True, **asked)
        model = layers(3)
        for number in range(3):
            node = next(node for node in model.get_ops() if node.get_friendly_name() == f"weight_{number}")
            values = np.array(node.data)
            values[:, number::7] *= 0.05
            smaller = op.constant(values)
            smaller.set_friendly_name(f"weight_{number}")
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(smaller.output(0))
        own.run_on_model(model)
        return [scaling.cost for scaling in own.report.scalings if scaling.into], seen

    from_all, read = costs()
    assert from_all
    assert None not in from_all
    assert read.count(3) == read.count(2)
    from_two, read = costs(subset_size=2)
    assert from_two != from_all
    assert read.count(1) > read.count(2) > 0
    assert set(costs(prefer_data_aware_scaling=False)[0]) == {None}
    assert costs(alpha_min=0.5, alpha_max=0.5, steps=1)[0] != from_all


def test_other_tools_find_what_they_look_for() -> None:
    scope = nncf.IgnoredScope(types=["Gather"], validate=False)
    how: dict[str, Any] = {"mode": "int4_sym", "group_size": 32, "ratio": 1.0, "awq": True, "ignored_scope": scope}
    model = nncf.compress_weights(layers(3), **how)
    section = _plain(model.get_rt_info()["nncf"])
    said = section["weight_compression"]
    assert said.pop("advanced_parameters").startswith("{'statistics_path': None, 'group_size_fallback_mode': 'adjust'")
    assert said == {
        "mode": "int4_sym",
        "group_size": "32",
        "ratio": "1",
        "all_layers": "False",
        "ignored_scope": {"types": "['Gather']"},
        "sensitivity_metric": "weight_quantization_error",
        "awq": "True",
        "scale_estimation": "False",
        "gptq": "False",
        "lora_correction": "False",
        "backup_mode": "int8_asym",
        "compression_format": "dequantize",
    }
    assert section["version"].startswith("ov-weight-compression ")
    assert list(read_metadata(model)) == ["weight_compression"]  # once is enough for a reader
    apply_weight_decompression(model)
    assert "nncf" not in model.get_rt_info()
    assert "weight_compression" not in model.get_rt_info()


def test_nncf_said_more_than_that() -> None:
    model = layers(1)
    model.set_rt_info("3.4.0", ["nncf", "version"])
    nncf.compress_weights(model)
    assert _plain(model.get_rt_info()["nncf"])["version"] == "3.4.0"
    apply_weight_decompression(model)
    assert _plain(model.get_rt_info()["nncf"]) == {"version": "3.4.0"}


def test_a_dataset_is_read_again_whatever_it_is_made_of() -> None:
    dataset = nncf.Dataset((number for number in range(4)), lambda number: 10 * number)
    assert next(iter(dataset.get_inference_data())) == 0
    assert list(dataset.get_inference_data()) == [0, 10, 20, 30]
    assert list(dataset.get_data([1, 3])) == [1, 3]
    assert (dataset.get_length(), nncf.Dataset([1, 2]).get_length()) == (None, 2)
    assert dataset.get_batch_size() is None


def test_every_name_is_there() -> None:
    for name in nncf.__all__:
        assert getattr(nncf, name) is not None
    assert issubclass(nncf.ValidationError, ValueError)
    assert nncf.CompressionFormat("dequantize") is nncf.CompressionFormat.DQ
    with pytest.raises(nncf.ParameterNotSupportedError, match="compression_format"):
        nncf.compress_weights(layers(1), compression_format=nncf.CompressionFormat.FQ_LORA)


def test_a_place_for_statistics_is_taken_with_8_bits() -> None:
    """As NNCF's documentation hands it in; there are no statistics to keep."""
    model = linear()
    nncf.compress_weights(model, advanced_parameters=nncf.AdvancedCompressionParameters(statistics_path="statistics"))
    assert report_of(model).rows[0].mode == "int8_asym"
    assert not Path("statistics").exists()


def test_the_section_says_the_last_scope() -> None:
    model = layers(3)
    for scope, said in (
        ({"names": ["weight_0", "weight_1"]}, {"names": "['weight_0', 'weight_1']"}),
        ({"patterns": ["weight_1"]}, {"patterns": "['weight_1']"}),
        (None, "[]"),
    ):
        nncf.compress_weights(model, ignored_scope=scope)
        assert _plain(model.get_rt_info()["nncf"])["weight_compression"]["ignored_scope"] == said
    WeightCompression(rules=[("weight_0", None)]).run_on_model(model := layers(2))
    nncf.compress_weights(model, ignored_scope={"patterns": ["weight_1"]})
    assert _plain(model.get_rt_info()["nncf"])["weight_compression"]["ignored_scope"] == {"patterns": "['weight_1']"}
