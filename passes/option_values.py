"""The values that options take, by NNCF's names, so that its users find theirs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from numpy.typing import NDArray

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import OptionKind, shown
from ov_weight_compression.quantization.formats import FORMATS


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

    is_int8: bool
    """Whether it is one of the two 8-bit integer modes, which need no backup and no ratio."""

    def __init__(self, value: str) -> None:
        self.is_int8 = value.startswith("int8_")

    @classmethod
    def _missing_(cls, value: object) -> Mode | None:
        """The mode of a format that was added (what `Enum` asks for a value that it does not know)."""
        if not isinstance(value, str) or value not in FORMATS:
            return None
        mode = str.__new__(cls, value)
        mode._name_, mode._value_, mode.is_int8 = value.upper(), value, False
        return mode


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

    needs_data: bool
    """Whether it is computed from activations."""

    def __init__(self, value: str) -> None:
        self.needs_data = value != "weight_quantization_error"


class GroupSizeFallback(str, Enum):
    """What happens to a weight whose channel count the group size does not divide."""

    ADJUST = "adjust"
    IGNORE = "ignore"
    ERROR = "error"


class FragileLayers(str, Enum):
    """What routers of experts and gates of recurrences get: the backup mode, their floats, or the mode."""

    BACKUP = "backup"
    FLOAT = "float"
    MODE = "mode"


class CodebookSharing(str, Enum):
    """Which weights share a table of `adaptive_codebook`: none, those of a block, or a layer's in all blocks."""

    NONE = "none"
    BLOCK = "block"
    ACROSS_BLOCKS = "across_blocks"


@dataclass(frozen=True, eq=False)
class Codebook:
    """Everything about tables in one option, `codebook=Codebook(…)`, in place of four; None says nothing.

    apply_weight_compression(model, mode="codebook", codebook=Codebook([-1.0, -0.3, 0.0, 0.3, 1.0], type="f16"))
    apply_weight_compression(model, mode="adaptive_codebook", codebook=Codebook(size=8, sharing="block"))
    """

    values: Sequence[float] | NDArray[Any] | None = None
    """The table of `codebook`, or what the fitting of `adaptive_codebook` begins with (the option `codebook`)."""
    type: str | None = None
    """What tables are stored as (`codebook_type`)."""
    size: int | None = None
    """Entries of fitted tables (`codebook_size`)."""
    sharing: CodebookSharing | str | None = None
    """Which weights share a fitted one (`codebook_sharing`)."""

    def spread(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options with the four that it stands for in its place.

        Raises:
            OptionError: one of them is given beside it.
        """
        names: dict[str, Any] = {"codebook": self.values, "codebook_type": self.type}
        names |= {"codebook_size": self.size, "codebook_sharing": self.sharing}
        said = {name: value for name, value in names.items() if value is not None}
        for name in said:
            if name != "codebook" and given.get(name) not in (None, CodebookSharing.NONE):
                raise OptionError(f"{name}: is said twice, the Codebook has it too; leave one of them out")
        return {**given, "codebook": None, **said}


class Accuracy(str, Enum):
    """Presets for whoever does not want to learn the algorithms' names; what they do, says `passes.plan`.

    FAST        AWQ, and a scale search weighted by the data: seconds over a run without data
    BALANCED    GPTQ and coordinate descent, on the float model's inputs
    BEST        the same, on the inputs that the compressed layers before leave, towards the float model's outputs
    """

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


class Device(str, Enum):
    """A device that formats are chosen for."""

    CPU = "CPU"
    GPU = "GPU"
    NPU = "NPU"


Devices: TypeAlias = tuple[Device, ...]
"""Devices each of which is to execute what is chosen; none where none is named."""


def parse_devices(value: Any) -> Devices:
    """Devices by name: one, several in a text with commas or in a sequence, or AUTO for all of them. What OpenVINO's
    own names say beside that (`GPU.1`, `AUTO:GPU,CPU`) is taken too.

    Raises:
        OptionError: one of them is none.
        ValueError: it is no text and no sequence of texts.
    """
    given = [value] if isinstance(value, (str, Enum)) else list(value)
    texts = [str(one.value if isinstance(one, Enum) else one) for one in given if isinstance(one, (str, Enum))]
    names = [name.strip().upper() for text in texts for name in re.split("[,;]", text.rpartition(":")[2])]
    if len(texts) != len(given) or not names:
        raise ValueError(value)
    every = {member.value: (member,) for member in Device} | {"AUTO": tuple(Device)}
    unknown = next((name for name in names if name.partition(".")[0] not in every), None)
    if unknown is not None:
        raise OptionError(f"device: {shown(unknown)} is not one of CPU, GPU, NPU, AUTO or several of them")
    return tuple(dict.fromkeys(member for name in names for member in every[name.partition(".")[0]]))


DEVICES = OptionKind("one of CPU, GPU, NPU, AUTO or several of them", parse_devices, "Device | str | Sequence[str]")
