"""OpenVINO graph passes that compress the weights of a model to 8, 4 and fewer bits.

Everything that a user calls is here and is imported when it is asked for; what is not here may change without notice.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ov_weight_compression.calibration import RecordedInputs as RecordedInputs
    from ov_weight_compression.calibration import record_inputs as record_inputs
    from ov_weight_compression.evaluation import Comparison as Comparison
    from ov_weight_compression.evaluation import ComparisonProtocol as ComparisonProtocol
    from ov_weight_compression.evaluation import Inspection as Inspection
    from ov_weight_compression.evaluation import Verification as Verification
    from ov_weight_compression.evaluation import compare as compare
    from ov_weight_compression.evaluation import inspect as inspect
    from ov_weight_compression.evaluation import verify as verify
    from ov_weight_compression.passes import Accuracy as Accuracy
    from ov_weight_compression.passes import Activation as Activation
    from ov_weight_compression.passes import AddAdapters as AddAdapters
    from ov_weight_compression.passes import BackupMode as BackupMode
    from ov_weight_compression.passes import Codebook as Codebook
    from ov_weight_compression.passes import CodebookSharing as CodebookSharing
    from ov_weight_compression.passes import CompressionError as CompressionError
    from ov_weight_compression.passes import CompressionWarning as CompressionWarning
    from ov_weight_compression.passes import DecompressWeights as DecompressWeights
    from ov_weight_compression.passes import Device as Device
    from ov_weight_compression.passes import FuseWeightTranspose as FuseWeightTranspose
    from ov_weight_compression.passes import GroupSizeFallback as GroupSizeFallback
    from ov_weight_compression.passes import IgnoredScope as IgnoredScope
    from ov_weight_compression.passes import MissingExtraError as MissingExtraError
    from ov_weight_compression.passes import Mode as Mode
    from ov_weight_compression.passes import ModelError as ModelError
    from ov_weight_compression.passes import OptionError as OptionError
    from ov_weight_compression.passes import Refusal as Refusal
    from ov_weight_compression.passes import Report as Report
    from ov_weight_compression.passes import Role as Role
    from ov_weight_compression.passes import ScaleFolding as ScaleFolding
    from ov_weight_compression.passes import SensitivityMetric as SensitivityMetric
    from ov_weight_compression.passes import Subgraph as Subgraph
    from ov_weight_compression.passes import WeightCompression as WeightCompression
    from ov_weight_compression.passes import WorkError as WorkError
    from ov_weight_compression.passes import apply_weight_compression as apply_weight_compression
    from ov_weight_compression.passes import apply_weight_decompression as apply_weight_decompression
    from ov_weight_compression.passes import report_of as report_of
    from ov_weight_compression.passes import save_model as save_model

__version__ = "0.1.0"

_CALIBRATION = ("RecordedInputs", "record_inputs")
_EVALUATION = ("Comparison", "ComparisonProtocol", "Inspection", "Verification", "compare", "inspect", "verify")
_PASSES = (
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
)

__all__ = ["__version__", *_CALIBRATION, *_EVALUATION, *_PASSES]


if not TYPE_CHECKING:  # a checker would take any name for one of the package's

    def __getattr__(name: str) -> Any:
        """What is asked for, imported now: the command must be able to import the package in no time."""
        rooms = {"calibration": _CALIBRATION, "evaluation": _EVALUATION, "passes": _PASSES}
        room = next((room for room, names in rooms.items() if name in names), None)
        if room is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{room}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
