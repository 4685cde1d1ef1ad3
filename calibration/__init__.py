"""What activations look like: data, the statistics of every layer input, and two streams through a model."""

from ov_weight_compression.calibration.activation_graph import filled_copy
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY, collect
from ov_weight_compression.calibration.datasets import (
    CONTEXT_LENGTH,
    SUBSET_SIZE,
    Samples,
    make_samples,
    read_data,
    readable,
)
from ov_weight_compression.calibration.statistics import (
    LayerStatistics,
    Statistics,
    load_statistics,
    save_statistics,
    statistics_file,
)
from ov_weight_compression.calibration.two_streams import LayerInput, Seen, Stage, Streams, open_streams

__all__ = [
    "CONTEXT_LENGTH",
    "DEFAULT_MEMORY",
    "SUBSET_SIZE",
    "LayerInput",
    "LayerStatistics",
    "Samples",
    "Seen",
    "Stage",
    "Statistics",
    "Streams",
    "collect",
    "filled_copy",
    "load_statistics",
    "make_samples",
    "open_streams",
    "read_data",
    "readable",
    "save_statistics",
    "statistics_file",
]
