"""NNCF's names for its users: `import ov_weight_compression.passes.compat as nncf` and leave the rest as it is.

    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=64,
                                  dataset=nncf.Dataset(samples, transform), scale_estimation=True)

What differs: a group size that does not divide a weight's channels is adjusted unless asked otherwise, the result is
computed when the model is saved, and `advanced_parameters` that have no meaning here are refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import openvino as ov

from ov_weight_compression.passes.modes import BackupMode, GroupSizeFallback, Mode, SensitivityMetric
from ov_weight_compression.passes.weight_compression import apply_weight_compression
from ov_weight_compression.patterns import IgnoredScope, Subgraph

__all__ = [
    "BackupMode",
    "CompressWeightsMode",
    "Dataset",
    "GroupSizeFallbackMode",
    "IgnoredScope",
    "SensitivityMetric",
    "Subgraph",
    "compress_weights",
]

CompressWeightsMode = Mode
GroupSizeFallbackMode = GroupSizeFallback


class Dataset:
    """Any iterable of samples, and what turns a sample into a model's input."""

    def __init__(self, data_source: Iterable[Any], transform_func: Callable[[Any], Any] | None = None) -> None:
        self._source = data_source
        self._transform = transform_func

    def get_inference_data(self) -> Iterator[Any]:
        """The model inputs, one by one."""
        return (sample if self._transform is None else self._transform(sample) for sample in self._source)


def compress_weights(model: ov.Model, **options: Any) -> ov.Model:
    """`apply_weight_compression` by NNCF's name; its parameters are all understood.

    Raises:
        OptionError: an option that means nothing, or one of NNCF's that has no counterpart here.
    """
    return apply_weight_compression(model, **options)
