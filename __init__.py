"""OpenVINO graph passes that compress the weights of a model to 8, 4 and fewer bits.

Everything that a user calls is here and is imported when it is asked for; what is not here may change without notice.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ov_weight_compression.calibration import RecordedInputs as RecordedInputs
    from ov_weight_compression.calibration import record_inputs as record_inputs
    from ov_weight_compression.evaluation import *  # noqa: F403
    from ov_weight_compression.passes import *  # noqa: F403

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
