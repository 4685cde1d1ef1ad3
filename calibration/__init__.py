"""What activations look like: data, the statistics of every layer input, and two streams through a model."""

from ov_weight_compression.calibration.activation_graph import filled_copy
from ov_weight_compression.calibration.collect import DEFAULT_MEMORY, collect
from ov_weight_compression.calibration.datasets import (
    CONTEXT_LENGTH,
    SUBSET_SIZE,
    Samples,
    make_samples,
    opened,
    read_data,
    readable,
)
from ov_weight_compression.calibration.divergence import divergence_of, scored_outputs
from ov_weight_compression.calibration.generate import written_windows
from ov_weight_compression.calibration.grams import Seen
from ov_weight_compression.calibration.probes import Influence, ProbeShown, Rounding, influences_of, run_probes
from ov_weight_compression.calibration.record import RecordedInputs, record_inputs
from ov_weight_compression.calibration.saved_measurements import (
    load_influences,
    load_statistics,
    save_influences,
    save_statistics,
    statistics_file,
)
from ov_weight_compression.calibration.statistics import LayerStatistics, Statistics
from ov_weight_compression.calibration.two_streams import LayerInput, Stage, open_streams

__all__ = [
    "CONTEXT_LENGTH",
    "DEFAULT_MEMORY",
    "SUBSET_SIZE",
    "Influence",
    "LayerInput",
    "LayerStatistics",
    "ProbeShown",
    "RecordedInputs",
    "Rounding",
    "Samples",
    "Seen",
    "Stage",
    "Statistics",
    "collect",
    "divergence_of",
    "filled_copy",
    "influences_of",
    "load_influences",
    "load_statistics",
    "make_samples",
    "open_streams",
    "opened",
    "read_data",
    "readable",
    "record_inputs",
    "run_probes",
    "save_influences",
    "save_statistics",
    "scored_outputs",
    "statistics_file",
    "written_windows",
]
