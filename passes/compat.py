"""NNCF's names for its users: `import ov_weight_compression.passes.compat as nncf` and leave the rest as it is.

    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64,
                                  dataset=nncf.Dataset(samples, transform), scale_estimation=True)

What is different from NNCF, in one list:

- The weights are computed when the model is saved or compiled, or at once with `lazy=False`; the result is a model.
- A group size that does not divide a weight's channels is adjusted, to 16 or more, where NNCF raises an error; with
  `GroupSizeFallbackMode.ERROR` in advanced parameters it is an error here too. So it is with groups that the CPU plugin
  is known to multiply wrongly. Groups of one weight are refused.
- `ratio` is filled without gaps: a weight that no longer fits does not end it, so more of them get the mode than with
  NNCF, which stops at the first. `ratio=0` gives none the mode; NNCF reads it as 1.
- What the float modes leave, and the backup of `ratio`, has 8-bit integers unless `backup_mode` says otherwise; NNCF
  takes FP8_E4M3 or MXFP8_E4M3.
- Where two branches are added at the end of a model, which of them is the last layer is decided by the graph's order.
- Weights of fewer than 64 elements are left alone, and so is what no layer multiplies with.
- Scales are searched for without data as well, and `scale_estimation`, `awq` and `gptq` are algorithms of this package
  by those names, so the numbers differ. `scale_estimation` weighs each channel with its energy: on the very samples
  that it was given NNCF, which looks at their directions, can leave less error, on others it leaves more.
- AWQ's factors go into norms and weights where they can; a Multiply is inserted only behind activation functions, and
  only where it pays.
- `gptq` and `lora_correction` may be combined, `awq`, `scale_estimation` and `gptq` take FP4, MXFP4 and NVFP4, and all
  of them layers with transposed activations. Adapters always have 8 bits.
- A codebook may have its values in any order, and more than once. `all_layers=False`, `backup_mode=INT8_ASYM` and
  `statistics_path`, which change nothing, are taken with INT8 as well.
- A ratio may come out with as many weights in the mode as NNCF's and other ones among them.
- Options that this package has beside NNCF's (`rules`, `accuracy`, `device`, …) are taken too. One exception class
  stands for several of NNCF's: an option or a dataset that cannot be is an `OptionError`.
- A field of the advanced parameters that means nothing here is refused by name, not ignored.

NNCF's `AdvancedCompressionParameters` are classes with its names and fields. They have None where nothing is given, so
a value that is given counts even if it is NNCF's default. NNCF's own objects are read as well: there a field counts
where it differs from the default, and what happens to groups that do not divide always, for that is what NNCF does. A
field without a counterpart is refused by name, unless it says NNCF's default.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import openvino as ov

from ov_weight_compression.calibration.datasets import Replay, reads_once
from ov_weight_compression.ir_utils.errors import (
    CompressionError,
    MissingExtraError,
    ModelError,
    OptionError,
    WorkError,
)
from ov_weight_compression.ir_utils.option_kinds import OptionKind, count, flag, number, shown
from ov_weight_compression.passes.option_values import BackupMode, GroupSizeFallback, Mode, SensitivityMetric
from ov_weight_compression.passes.plan import Tuning
from ov_weight_compression.passes.weight_compression import apply_weight_compression
from ov_weight_compression.patterns import IgnoredScope, Subgraph


@dataclass
class AdvancedAWQParameters:
    """`percent_to_apply` is the share of the channels, those with the largest activations, whose groups are scaled; the
    exponents tried go from `alpha_min` to `alpha_max` in `steps`."""

    subset_size: int | None = None
    percent_to_apply: float | None = None
    alpha_min: float | None = None
    alpha_max: float | None = None
    steps: int | None = None
    prefer_data_aware_scaling: bool | None = None


@dataclass
class AdvancedScaleEstimationParameters:
    """`scale_steps` is the number of candidates for a scale."""

    subset_size: int | None = None
    initial_steps: int | None = None
    scale_steps: int | None = None
    weight_penalty: float | None = None


@dataclass
class AdvancedGPTQParameters:
    """`damp_percent` is the share of the diagonal's typical value that is added to it."""

    damp_percent: float | None = None
    block_size: int | None = None
    subset_size: int | None = None


@dataclass
class AdvancedLoraCorrectionParameters:
    """`num_iterations`: how often rounding one adapter and fitting the other alternate. Adapters have 8 bits."""

    adapter_rank: int | None = None
    num_iterations: int | None = None
    apply_regularization: bool | None = None
    subset_size: int | None = None
    use_int8_adapters: bool | None = None


@dataclass
class AdvancedAdaptiveCodebookParameters:
    """The tables of ADAPTIVE_CODEBOOK: the type of their values, who shares one, how many values each has."""

    value_type: Any = None
    across_blocks: bool | None = None
    num_elements: int | None = None


@dataclass
class AdvancedCompressionParameters:
    """Everything by NNCF's names."""

    statistics_path: str | None = None
    lora_adapter_rank: int | None = None
    group_size_fallback_mode: Any = None
    min_adjusted_group_size: int | None = None
    awq_params: AdvancedAWQParameters | None = field(default_factory=AdvancedAWQParameters)
    scale_estimation_params: AdvancedScaleEstimationParameters | None = field(
        default_factory=AdvancedScaleEstimationParameters
    )
    gptq_params: AdvancedGPTQParameters | None = field(default_factory=AdvancedGPTQParameters)
    lora_correction_params: AdvancedLoraCorrectionParameters | None = field(
        default_factory=AdvancedLoraCorrectionParameters
    )
    backend_params: dict[str, Any] | None = None
    codebook: Any = None
    adaptive_codebook_params: AdvancedAdaptiveCodebookParameters | None = field(
        default_factory=AdvancedAdaptiveCodebookParameters
    )


_PARTS: Mapping[str, type] = {
    "awq_params": AdvancedAWQParameters,
    "scale_estimation_params": AdvancedScaleEstimationParameters,
    "gptq_params": AdvancedGPTQParameters,
    "lora_correction_params": AdvancedLoraCorrectionParameters,
    "adaptive_codebook_params": AdvancedAdaptiveCodebookParameters,
}
_ALWAYS = ("group_size_fallback_mode", "min_adjusted_group_size")
_NNCF_DEFAULTS: Mapping[str, Any] = {
    "lora_adapter_rank": 256,
    "backend_params": {},
    "scale_estimation_params.initial_steps": 5,
    "scale_estimation_params.weight_penalty": -1.0,
    "gptq_params.block_size": 128,
    "lora_correction_params.apply_regularization": True,
    "lora_correction_params.use_int8_adapters": True,
}
"""Of the fields without a counterpart: saying these is saying nothing."""
_OPTIONS: Mapping[str, str] = {
    "statistics_path": "statistics_path",
    "group_size_fallback_mode": "group_size_fallback",
    "min_adjusted_group_size": "min_adjusted_group_size",
    "codebook": "codebook",
    "scale_estimation_params.scale_steps": "scale_search",
    "lora_correction_params.adapter_rank": "lora_rank",
    "adaptive_codebook_params.value_type": "codebook_type",
    "adaptive_codebook_params.num_elements": "codebook_size",
    "adaptive_codebook_params.across_blocks": "codebook_sharing",
}
_VALUE_TYPES = {
    **{"float16": "f16", "float32": "f32", "int8": "i8", "uint8": "u8", "f8e4m3": "f8e4m3"},
    **{"f16": "f16", "f32": "f32", "i8": "i8", "u8": "u8"},
}
_TUNING: Mapping[str, tuple[str, OptionKind]] = {
    "awq_params.subset_size": ("awq_subset", count(1)),
    "awq_params.percent_to_apply": ("awq_share", number(0, 1)),
    "awq_params.prefer_data_aware_scaling": ("awq_from_data", flag()),
    "scale_estimation_params.subset_size": ("scale_estimation_subset", count(1)),
    "gptq_params.subset_size": ("gptq_subset", count(1)),
    "gptq_params.damp_percent": ("gptq_damping", number(0, 100)),
    "lora_correction_params.subset_size": ("lora_subset", count(1)),
    "lora_correction_params.num_iterations": ("lora_rounds", count(0, 1000)),
}
_ALPHAS = ("awq_params.alpha_min", "awq_params.alpha_max", "awq_params.steps")


def read_advanced(parameters: Any, running: Collection[str]) -> tuple[dict[str, Any], Tuning]:
    """What an object of NNCF's, or of the classes here, says: options by their names here, and the algorithms' own.

    What it says of an algorithm whose part is not in `running` has no effect, for the algorithm has none.

    Raises:
        OptionError: no such object; a value that cannot be; a field that has no counterpart here.
    """
    try:
        return _read(parameters, running)
    except CompressionError:
        raise
    except Exception:  # whatever the methods of an object raise that is something else
        raise OptionError(
            f"advanced_parameters: must be NNCF's AdvancedCompressionParameters, got {shown(parameters)}"
        ) from None


def _read(parameters: Any, running: Collection[str]) -> tuple[dict[str, Any], Tuning]:
    given = _given(parameters)
    idle = {name for name in given if "." in name and name.partition(".")[0] not in running}
    options = {_OPTIONS[name]: value for name, value in given.items() if name in _OPTIONS and name not in idle}
    tuning = {_TUNING[name][0]: _TUNING[name][1].parse(name, value) for name, value in given.items() if name in _TUNING}
    alphas = _alphas(given)
    if alphas is not None:
        tuning["awq_alphas"] = alphas
    for name, value in given.items():
        if name in _OPTIONS or name in _TUNING or name in _ALPHAS:
            continue
        if name in _NNCF_DEFAULTS and value == _NNCF_DEFAULTS[name]:
            continue
        if name == "lora_correction_params.apply_regularization":
            continue  # adapters are fitted without either way: False asks for what is done
        raise OptionError(f"advanced_parameters: {name}={shown(value)} has no counterpart here; leave it out")
    if "codebook_type" in options:
        options["codebook_type"] = _value_type(options["codebook_type"])
    if "codebook_sharing" in options:
        shared = flag().parse("adaptive_codebook_params.across_blocks", options["codebook_sharing"])
        options["codebook_sharing"] = "across_blocks" if shared else "none"
    return options, Tuning(**tuning)


def _given(parameters: Any) -> dict[str, Any]:
    """Every field that says something, those of parts as `part.field`."""
    found: dict[str, Any] = {}
    for name, value in _changed(parameters, AdvancedCompressionParameters, "advanced_parameters").items():
        if name in _PARTS:
            found.update({f"{name}.{part}": own for part, own in _changed(value, _PARTS[name], name).items()})
        else:
            found[name] = value
    return found


def _changed(parameters: Any, kind: type, where: str) -> dict[str, Any]:
    """The fields of an object that are not None, and not the default of its own class where that is another's."""
    try:
        given, defaults = vars(parameters), vars(type(parameters)())
    except TypeError:
        raise OptionError(f"{where}: expected NNCF's {kind.__name__}, got {shown(parameters)}") from None
    if kind is AdvancedCompressionParameters and not {part.name for part in fields(kind)} & set(given):
        raise OptionError(f"{where}: expected NNCF's {kind.__name__}, got {shown(parameters)}")
    return {
        name: value
        for name, value in given.items()
        if value is not None
        and (name in ("codebook", *_ALWAYS, *_PARTS) or value != defaults.get(name) or name not in defaults)
    }


def _alphas(given: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The exponents that AWQ tries, where any of the three fields that make them is given."""
    if not any(name in given for name in _ALPHAS):
        return None
    low, high = (number(0, 1).parse(name, given.get(name, end)) for name, end in zip(_ALPHAS, (0.0, 1.0), strict=False))
    steps = count(1, 1000).parse("awq_params.steps", given.get("awq_params.steps", 100))
    if low > high:
        raise OptionError(f"awq_params.alpha_min: must not be above alpha_max={high:g}, got {low:g}")
    return tuple(low + step * (high - low) / steps for step in range(steps))


def _value_type(value: Any) -> str:
    name = str(getattr(value, "value", value)).lower()
    if name not in _VALUE_TYPES:
        allowed = "float16, float32, int8 and f8e4m3"
        raise OptionError(f"adaptive_codebook_params.value_type: allowed are {allowed}, got {shown(value)}")
    return _VALUE_TYPES[name]


__all__ = [
    "AdvancedAWQParameters",
    "AdvancedAdaptiveCodebookParameters",
    "AdvancedCompressionParameters",
    "AdvancedGPTQParameters",
    "AdvancedLoraCorrectionParameters",
    "AdvancedScaleEstimationParameters",
    "BackupMode",
    "BufferFullError",
    "CompressWeightsMode",
    "CompressionFormat",
    "Dataset",
    "GroupSizeFallbackMode",
    "IgnoredScope",
    "InstallationError",
    "InternalError",
    "InvalidCollectorTypeError",
    "InvalidGroupSizeError",
    "InvalidPathError",
    "InvalidQuantizerGroupError",
    "ModuleNotFoundError",
    "ParameterNotSupportedError",
    "SensitivityMetric",
    "StatisticsCacheError",
    "Subgraph",
    "TensorDataType",
    "UnknownDatasetError",
    "UnsupportedBackendError",
    "UnsupportedDatasetError",
    "UnsupportedModelError",
    "UnsupportedVersionError",
    "ValidationError",
    "compress_weights",
]

CompressWeightsMode = Mode
GroupSizeFallbackMode = GroupSizeFallback

ValidationError = ParameterNotSupportedError = InvalidGroupSizeError = UnsupportedBackendError = OptionError
UnsupportedDatasetError = UnknownDatasetError = InvalidPathError = OptionError
UnsupportedModelError = StatisticsCacheError = ModelError
InternalError = BufferFullError = WorkError
InstallationError = ModuleNotFoundError = MissingExtraError
UnsupportedVersionError = InvalidQuantizerGroupError = InvalidCollectorTypeError = CompressionError


class CompressionFormat(str, Enum):
    """How compressed weights stand in the graph. Only `DQ` is written; the others are for training."""

    DQ = "dequantize"
    FQ = "fake_quantize"
    FQ_LORA = "fake_quantize_with_lora"
    FQ_LORA_NLS = "fake_quantize_with_lora_nls"


class TensorDataType(str, Enum):
    """The types that the tables of ADAPTIVE_CODEBOOK can have."""

    float16 = "float16"
    float32 = "float32"
    f8e4m3 = "f8e4m3"
    int8 = "int8"


class Dataset:
    """Any iterable of samples, and what turns a sample into a model's input. One that can be read only once, such as a
    generator, is kept as far as it was read."""

    def __init__(self, data_source: Iterable[Any], transform_func: Callable[[Any], Any] | None = None) -> None:
        once = isinstance(data_source, Iterable) and reads_once(data_source)
        self._data_source = Replay(data_source) if once else data_source
        self._transform = transform_func

    def get_data(self, indices: Sequence[int] | None = None) -> Iterator[Any]:
        """The samples, one by one; those at some places, in ascending order, where places are given."""
        if indices is None:
            return iter(self._data_source)
        wanted = set(indices)
        return (sample for place, sample in enumerate(self._data_source) if place in wanted)

    def get_inference_data(self, indices: Sequence[int] | None = None) -> Iterator[Any]:
        """The model inputs, one by one; see `get_data`."""
        return (sample if self._transform is None else self._transform(sample) for sample in self.get_data(indices))

    def get_length(self) -> int | None:
        """How many samples there are, where the source tells."""
        return len(self._data_source) if isinstance(self._data_source, Sized) else None

    def get_batch_size(self) -> int | None:
        """The source's `batch_size`, where it has one."""
        size = getattr(self._data_source, "batch_size", getattr(self._data_source, "_batch_size", None))
        return None if size is None else int(size)


def compress_weights(
    model: ov.Model,
    *positional: Any,
    mode: Mode = Mode.INT8_ASYM,
    ratio: float | None = None,
    group_size: int | None = None,
    ignored_scope: IgnoredScope | None = None,
    all_layers: bool | None = None,
    dataset: Any = None,
    sensitivity_metric: SensitivityMetric | None = None,
    subset_size: int | None = 128,
    awq: bool | None = None,
    scale_estimation: bool | None = None,
    gptq: bool | None = None,
    lora_correction: bool | None = None,
    backup_mode: BackupMode | None = None,
    compression_format: CompressionFormat | None = CompressionFormat.DQ,
    advanced_parameters: AdvancedCompressionParameters | None = None,
    **options: Any,
) -> ov.Model:
    """`apply_weight_compression` by NNCF's name and with its parameters; None is "not given" for each of them.

    Raises:
        OptionError: an option that means nothing, or one of NNCF's that has no counterpart here.
    """
    if positional:
        raise OptionError(
            f"compress_weights: only the model is taken by position, as in NNCF from 3.1 on; name the "
            f"{'value' if len(positional) == 1 else f'{len(positional)} values'} after it, beginning with mode="
        )
    given: dict[str, Any] = dict(
        mode=mode,
        ratio=ratio,
        group_size=group_size,
        ignored_scope=ignored_scope,
        all_layers=all_layers,
        dataset=dataset,
        sensitivity_metric=sensitivity_metric,
        subset_size=subset_size,
        awq=awq,
        scale_estimation=scale_estimation,
        gptq=gptq,
        lora_correction=lora_correction,
        backup_mode=backup_mode,
        compression_format=compression_format,
        advanced_parameters=advanced_parameters,
        **options,
    )
    return apply_weight_compression(model, **given)
