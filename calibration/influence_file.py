"""What probes have shown, on disk: the next target of the same model costs seconds.

One safetensors file beside that of the statistics: f32 "<number>/energy" for each input that was seen, and in the
metadata, as JSON, the format's version, the model's fingerprint, what data it was, and for every weight the loss of
each of its uses with the number of its energy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.probes import Influence
from ov_weight_compression.calibration.statistics import fingerprint
from ov_weight_compression.ir_utils.errors import CompressionError, MissingExtraError, ModelError, one_line
from ov_weight_compression.ir_utils.publish import Publication, cannot_write
from ov_weight_compression.ir_utils.types import Float32

_VERSION = 1
_KEY = "ov_weight_compression_probes"


def save_influences(found: Mapping[str, tuple[Influence, ...]], file: Path, model: ov.Model, data: str) -> None:
    """Write what `influences` returned of `model` to `file`, whole or not at all; `data` says what they ran on."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtraError("safetensors", "calibration", "saving statistics") from error
    numbers: dict[int, int] = {}
    tensors: dict[str, Float32] = {}
    weights: dict[str, list[tuple[float, int | None]]] = {}
    for name, uses in found.items():
        for use in uses:
            number = None
            if use.energy is not None:
                number = numbers.setdefault(id(use.energy), len(numbers))
                tensors[f"{number}/energy"] = np.ascontiguousarray(use.energy)
            weights.setdefault(name, []).append((use.loss, number))
    content = {"version": _VERSION, "fingerprint": fingerprint(model), "data": data, "weights": weights}
    try:
        with Publication(file) as partial:
            save_file(tensors, partial, {_KEY: json.dumps(content)})
    except (OSError, SafetensorError) as error:
        raise cannot_write(file, error) from error


def load_influences(file: Path, model: ov.Model) -> dict[str, tuple[Influence, ...]]:
    """Read them back; they must have been measured on that very model.

    Raises:
        ModelError: the file is damaged, of another kind, or of another model.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "calibration", "loading statistics") from error
    try:
        with safe_open(file, framework="numpy") as opened:
            content: Any = json.loads((opened.metadata() or {}).get(_KEY, "null"))
            if not content or content.get("version") != _VERSION:
                raise ModelError(f"{file}: not a file of probes that this version writes: delete it to probe again")
            if content["fingerprint"] != fingerprint(model):
                raise ModelError(
                    f"{file}: these probes were run on another model (or on this one with other weights): delete the "
                    "file, or give the model that they belong to"
                )
            energies = {int(key.split("/")[0]): opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        found = {
            name: tuple(Influence(float(loss), None if key is None else energies[key]) for loss, key in uses)
            for name, uses in content["weights"].items()
        }
        if not all(np.isfinite(use.loss) and use.loss >= 0 for uses in found.values() for use in uses):
            raise ModelError(f"{file}: it holds NaN or the like: delete it to probe again")
    except CompressionError:
        raise
    except Exception as error:  # whatever damaged contents lead to
        reason = one_line(str(error), 200) or type(error).__name__
        raise ModelError(f"{file}: not a file of probes, or damaged ({reason}): delete it to probe again") from error
    return found
