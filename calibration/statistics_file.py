"""Statistics on disk: one safetensors file, never a pickle.

Each layer input's arrays are stored once, under the name of the first weight that reads it:

    "<weight>/sum_square"  f32 [in],   "<weight>/gram_blocks"  f32 [in/g, g, g],   …

The file's metadata hold the rest as JSON: the format's version, the model's fingerprint, what data it was, the numbers
of each layer input, and which weight reads which.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.fingerprint import fingerprint
from ov_weight_compression.calibration.statistics import LayerStatistics, Statistics
from ov_weight_compression.ir_utils.errors import CompressionError, MissingExtraError, ModelError
from ov_weight_compression.ir_utils.kinds import one_line
from ov_weight_compression.ir_utils.publish import Publication, cannot_write

__all__ = ["load_statistics", "save_statistics", "statistics_file"]

_VERSION = 1
_KEY = "ov_weight_compression"


def statistics_file(path: str | Path) -> Path:
    """The file that `statistics_path` means: itself if it ends in .safetensors, else `statistics.safetensors` in it."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / "statistics.safetensors"


def save_statistics(statistics: Statistics, path: str | Path) -> Path:
    """Write statistics to `statistics_file(path)`, whole or not at all; returns the file."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtraError("safetensors", "calibration", "saving statistics") from error
    tensors: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    owner: dict[int, str] = {}
    layers: dict[str, str] = {}
    for name, layer in statistics.items():
        layers[name] = owner.setdefault(id(layer), name)
        if layers[name] == name:
            numbers[name] = layer.numbers()
            tensors.update({f"{name}/{item}": np.ascontiguousarray(array) for item, array in layer.arrays().items()})
    content = {
        "version": _VERSION,
        "fingerprint": statistics.fingerprint,
        "data": statistics.data,
        "numbers": numbers,
        "layers": layers,
    }
    file = statistics_file(path)
    try:
        with Publication(file) as partial:
            save_file(tensors, partial, {_KEY: json.dumps(content)})
    except (OSError, SafetensorError) as error:
        raise cannot_write(file, error) from error
    return file


def load_statistics(path: str | Path, model: ov.Model | None = None) -> Statistics:
    """Read statistics back; with `model` they must have been collected from that very model.

    Raises ModelError for a file that is missing, damaged, of another kind, or of another model.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "calibration", "loading statistics") from error
    file = statistics_file(path)
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file of statistics")
    try:
        with safe_open(file, framework="numpy") as opened:
            content = json.loads((opened.metadata() or {}).get(_KEY, "null"))
            if not content or content.get("version") != _VERSION:
                raise ModelError(f"{file}: not a file of statistics that this version writes: collect them again")
            if model is not None and content["fingerprint"] != fingerprint(model):
                raise ModelError(
                    f"{file}: these statistics were collected from another model (or from this one with other "
                    f"weights): collect them again, or give the model that they belong to"
                )
            arrays: dict[str, dict[str, Any]] = {name: {} for name in content["numbers"]}
            for key in opened.keys():  # noqa: SIM118 - not a dictionary
                name, _, item = key.rpartition("/")
                arrays[name][item] = opened.get_tensor(key)
        inputs = {name: LayerStatistics(**arrays[name], **numbers) for name, numbers in content["numbers"].items()}
        layers = {name: inputs[owner] for name, owner in content["layers"].items()}
    except CompressionError:
        raise
    except (SafetensorError, Exception) as error:  # whatever damaged contents lead to
        reason = one_line(str(error), 200) or type(error).__name__
        raise ModelError(f"{file}: not a file of statistics, or damaged ({reason}): collect them again") from error
    return Statistics(layers, content["fingerprint"], content["data"])
