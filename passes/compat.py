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
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
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
from ov_weight_compression.passes.advanced_parameters import (
    AdvancedAdaptiveCodebookParameters,
    AdvancedAWQParameters,
    AdvancedCompressionParameters,
    AdvancedGPTQParameters,
    AdvancedLoraCorrectionParameters,
    AdvancedScaleEstimationParameters,
)
from ov_weight_compression.passes.option_values import BackupMode, GroupSizeFallback, Mode, SensitivityMetric
from ov_weight_compression.passes.weight_compression import apply_weight_compression
from ov_weight_compression.patterns import IgnoredScope, Subgraph

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
