"""What calibration has measured, on disk, so that it is not measured again: statistics, and what probes have shown.

Each is one safetensors file, never a pickle. Its metadata hold, as JSON, the format's version, the model's fingerprint,
what data it was, and

    statistics    f32 [in] "<weight>/sum_square" for each layer input, under the name of the first weight that reads it;
                  in the metadata the numbers of each layer input, and which weight reads which
    probes        f32 "<number>/energy" for each input that was seen; in the metadata, for every weight, the loss of
                  each of its uses with the number of its energy
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.probes import Influence
from ov_weight_compression.calibration.statistics import LayerStatistics, Statistics, fingerprint
from ov_weight_compression.ir_utils.errors import CompressionError, MissingExtraError, ModelError, one_line
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.publish import Publication, cannot_write
from ov_weight_compression.ir_utils.types import Float32

_SUMS = "sum_square"


@dataclass(frozen=True)
class _Kind:
    """A sort of such files."""

    key: str
    """Of the JSON in the metadata."""
    version: int
    what: str
    again: str
    """What to do where one cannot be used."""


_STATISTICS = _Kind("ov_weight_compression", 2, "statistics", "collect them again")
_PROBES = _Kind("ov_weight_compression_probes", 1, "probes", "delete it to probe again")


def statistics_file(path: str | Path) -> Path:
    """The file that `statistics_path` means: itself if it ends in .safetensors, else `statistics.safetensors` in it."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path / "statistics.safetensors"


def save_statistics(statistics: Statistics, path: str | Path) -> Path:
    """Write statistics to `statistics_file(path)`, whole or not at all; returns the file."""
    tensors: dict[str, Any] = {}
    numbers: dict[str, Any] = {}
    owner: dict[int, str] = {}
    layers: dict[str, str] = {}
    for name, layer in statistics.items():
        layers[name] = owner.setdefault(id(layer), name)
        if layers[name] == name:
            numbers[name] = layer.numbers()
            tensors[f"{name}/{_SUMS}"] = np.ascontiguousarray(layer.sum_square)
    content = {"fingerprint": statistics.fingerprint, "data": statistics.data, "numbers": numbers, "layers": layers}
    file = statistics_file(path)
    _write(file, _STATISTICS, tensors, content)
    return file


def load_statistics(path: str | Path, model: ov.Model | None = None) -> Statistics:
    """Read statistics back; with `model` they must have been collected from that very model.

    Raises ModelError for a file that is missing, damaged, of another kind, or of another model.
    """
    file = statistics_file(path)
    with _opened(file, _STATISTICS) as (content, tensors):
        if model is not None and content["fingerprint"] != fingerprint(model):
            raise ModelError(
                f"{file}: these statistics were collected from another model (or from this one with other "
                f"weights): collect them again, or give the model that they belong to"
            )
        inputs = {
            name: LayerStatistics(sum_square=tensors.get_tensor(f"{name}/{_SUMS}"), **numbers)
            for name, numbers in content["numbers"].items()
        }
        for name, one in inputs.items():
            found = np.concatenate([one.sum_square.reshape(-1), [*one.numbers().values()]])
            if not (np.isfinite(found) & (found >= 0)).all():
                raise ModelError(f"{file}: the statistics of {shown(name)} hold NaN or the like: collect them again")
        layers = {name: inputs[owner] for name, owner in content["layers"].items()}
        return Statistics(layers, content["fingerprint"], content["data"])


def save_influences(found: Mapping[str, tuple[Influence, ...]], file: Path, model: ov.Model, data: str) -> None:
    """Write what `influences` returned of `model` to `file`, whole or not at all; `data` says what they ran on."""
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
    _write(file, _PROBES, tensors, {"fingerprint": fingerprint(model), "data": data, "weights": weights})


def load_influences(file: Path, model: ov.Model) -> dict[str, tuple[Influence, ...]]:
    """Read them back; they must have been measured on that very model.

    Raises:
        ModelError: the file is damaged, of another kind, or of another model.
    """
    with _opened(file, _PROBES) as (content, tensors):
        if content["fingerprint"] != fingerprint(model):
            raise ModelError(
                f"{file}: these probes were run on another model (or on this one with other weights): delete the "
                "file, or give the model that they belong to"
            )
        energies = {int(key.split("/")[0]): tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
        found = {
            name: tuple(Influence(float(loss), None if key is None else energies[key]) for loss, key in uses)
            for name, uses in content["weights"].items()
        }
        if not all(np.isfinite(use.loss) and use.loss >= 0 for uses in found.values() for use in uses):
            raise ModelError(f"{file}: it holds NaN or the like: delete it to probe again")
        return found


def _write(file: Path, kind: _Kind, tensors: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ImportError as error:
        raise MissingExtraError("safetensors", "calibration", "saving statistics") from error
    try:
        with Publication(file) as partial:
            save_file(dict(tensors), partial, {kind.key: json.dumps({"version": kind.version, **content})})
    except (OSError, SafetensorError) as error:
        raise cannot_write(file, error) from error


@contextmanager
def _opened(file: Path, kind: _Kind) -> Iterator[tuple[dict[str, Any], Any]]:
    """The JSON of a file, and its tensors by `get_tensor`; whatever damaged contents lead to is a `ModelError`."""
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingExtraError("safetensors", "calibration", "loading statistics") from error
    if not file.is_file():
        raise ModelError(f"{file}: there is no such file of {kind.what}")
    try:
        with safe_open(file, framework="numpy") as opened:
            content = json.loads((opened.metadata() or {}).get(kind.key, "null"))
            if not content or content.get("version") != kind.version:
                raise ModelError(f"{file}: not a file of {kind.what} that this version writes: {kind.again}")
            yield content, opened
    except CompressionError:
        raise
    except Exception as error:
        reason = one_line(str(error), 200) or type(error).__name__
        raise ModelError(f"{file}: not a file of {kind.what}, or damaged ({reason}): {kind.again}") from error
