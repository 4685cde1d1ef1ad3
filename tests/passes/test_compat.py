"""Code written for NNCF runs with one import changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import openvino as ov
import pytest

import ov_weight_compression.passes.compat as nncf
from ov_weight_compression.passes import OptionError, WeightCompression
from tests.models import llama


class ForeignMode(str, Enum):
    """Another library's enum with the same values."""

    INT4_SYM = "int4_sym"
    ADJUST = "adjust"
    IGNORE = "ignore"


@dataclass
class Tuning:
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
    awq_params: Tuning = field(default_factory=Tuning)
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
    with pytest.raises(OptionError, match=r"awq_params=Tuning\(alpha=0.9\) has no counterpart"):
        WeightCompression(mode="int4_sym", advanced_parameters=ForeignParameters(awq_params=Tuning(0.9)))
