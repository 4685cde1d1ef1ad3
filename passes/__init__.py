"""What a user calls: the pass, the function, and the values that their options take."""

from ov_weight_compression.ir_utils.errors import (
    CompressionError,
    CompressionWarning,
    MissingExtraError,
    ModelError,
    OptionError,
    WorkError,
)
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes.decompress import DecompressWeights, apply_weight_decompression
from ov_weight_compression.passes.lora import AddAdapters
from ov_weight_compression.passes.option_values import (
    Accuracy,
    BackupMode,
    Codebook,
    CodebookSharing,
    Device,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
)
from ov_weight_compression.passes.report import Report, report_of
from ov_weight_compression.passes.rewrite import FuseWeightTranspose
from ov_weight_compression.passes.scale_folding import ScaleFolding
from ov_weight_compression.passes.weight_compression import WeightCompression, apply_weight_compression
from ov_weight_compression.patterns import Activation, IgnoredScope, Refusal, Role, Subgraph

__all__ = [
    "Accuracy",
    "Activation",
    "AddAdapters",
    "BackupMode",
    "Codebook",
    "CodebookSharing",
    "CompressionError",
    "CompressionWarning",
    "DecompressWeights",
    "Device",
    "FuseWeightTranspose",
    "GroupSizeFallback",
    "IgnoredScope",
    "MissingExtraError",
    "Mode",
    "ModelError",
    "OptionError",
    "Refusal",
    "Report",
    "Role",
    "ScaleFolding",
    "SensitivityMetric",
    "Subgraph",
    "WeightCompression",
    "WorkError",
    "apply_weight_compression",
    "apply_weight_decompression",
    "report_of",
    "save_model",
]
