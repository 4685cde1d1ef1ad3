"""The values that options take, by NNCF's names, so that its users find theirs."""

from __future__ import annotations

from enum import Enum

from ov_weight_compression.quantization.formats import FORMATS

__all__ = [
    "Accuracy",
    "BackupMode",
    "CodebookSharing",
    "Device",
    "GroupSizeFallback",
    "Mode",
    "SensitivityMetric",
]


class Mode(str, Enum):
    """How weights are stored; see the table of modes in the README. The value is the format's name.

    A format that somebody adds to `quantization.FORMATS` is a mode too, by its name: `Mode("int6_sym")`.
    """

    INT8_ASYM = "int8_asym"
    INT8_SYM = "int8_sym"
    INT4_ASYM = "int4_asym"
    INT4_SYM = "int4_sym"
    INT3_SYM = "int3_sym"
    INT2_ASYM = "int2_asym"
    INT2_SYM = "int2_sym"
    NF4 = "nf4"
    FP4 = "fp4"
    MXFP4 = "mxfp4"
    NVFP4 = "nvfp4"
    FP8_E4M3 = "fp8_e4m3"
    MXFP8_E4M3 = "mxfp8_e4m3"
    CB4 = "cb4"
    CODEBOOK = "codebook"
    ADAPTIVE_CODEBOOK = "adaptive_codebook"

    @classmethod
    def _missing_(cls, value: object) -> Mode | None:
        """The mode of a format that was added (what `Enum` asks for a value that it does not know)."""
        if not isinstance(value, str) or value not in FORMATS:
            return None
        mode = str.__new__(cls, value)
        mode._name_, mode._value_ = value.upper(), value
        return mode

    @property
    def is_int8(self) -> bool:
        """Whether it is one of the two 8-bit integer modes, which need no backup and no ratio."""
        return self in (Mode.INT8_ASYM, Mode.INT8_SYM)


class BackupMode(str, Enum):
    """What embeddings, the last layer and whatever cannot have the primary mode get. `NONE` leaves them alone."""

    NONE = "none"
    INT8_SYM = "int8_sym"
    INT8_ASYM = "int8_asym"
    FP8_E4M3 = "fp8_e4m3"
    MXFP8_E4M3 = "mxfp8_e4m3"


class SensitivityMetric(str, Enum):
    """What decides which layers keep the backup mode when `ratio` is below 1; all but the first need a dataset."""

    WEIGHT_QUANTIZATION_ERROR = "weight_quantization_error"
    HESSIAN_INPUT_ACTIVATION = "hessian_input_activation"
    MEAN_ACTIVATION_VARIANCE = "mean_activation_variance"
    MAX_ACTIVATION_VARIANCE = "max_activation_variance"
    MEAN_ACTIVATION_MAGNITUDE = "mean_activation_magnitude"

    @property
    def needs_data(self) -> bool:
        """Whether it is computed from activations."""
        return self is not SensitivityMetric.WEIGHT_QUANTIZATION_ERROR


class GroupSizeFallback(str, Enum):
    """What happens to a weight whose channel count the group size does not divide."""

    ADJUST = "adjust"
    IGNORE = "ignore"
    ERROR = "error"


class CodebookSharing(str, Enum):
    """Which weights share a table of `adaptive_codebook`: none, those of a block, or a layer's in all blocks."""

    NONE = "none"
    BLOCK = "block"
    ACROSS_BLOCKS = "across_blocks"


class Accuracy(str, Enum):
    """Presets for whoever does not want to learn the algorithms' names."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class Device(str, Enum):
    """The device that formats are chosen for."""

    CPU = "CPU"
    GPU = "GPU"
    NPU = "NPU"
