"""What is remembered of a layer's input `x` after calibration: sums over all its rows, never the rows themselves.

    n, Σ|x|, max|x|, Σx, Σx²      per input channel: scale search, AWQ
    H_g = Σ x_g x_gᵀ              per group of channels, [in/g, g, g]: the output error of a group's codes
    H   = Σ x xᵀ                  [in, in]: GPTQ
    four numbers                  what the sensitivity metrics of mixed precision need (quantization.sensitivity)

Layers that read the same tensor share one `LayerStatistics`. For a weight with experts, where each expert has rows of
its own, every array has the expert as its leading axis.

On disk they are one safetensors file, never a pickle. Each layer input's arrays are stored once, under the name of the
first weight that reads it:

    "<weight>/sum_square"  f32 [in],   "<weight>/gram_blocks"  f32 [in/g, g, g],   …

The file's metadata hold the rest as JSON: the format's version, the model's fingerprint, what data it was, the numbers
of each layer input, and which weight reads which.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.constants import FLOAT_TYPES
from ov_weight_compression.ir_utils.errors import CompressionError, MissingExtraError, ModelError
from ov_weight_compression.ir_utils.kinds import one_line
from ov_weight_compression.ir_utils.publish import Publication, cannot_write
from ov_weight_compression.ir_utils.types import Float32

__all__ = ["LayerStatistics", "Statistics", "fingerprint", "load_statistics", "save_statistics", "statistics_file"]


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Sums over the `n` rows of one layer input. `[in]` stands for `[experts, in]` where `experts` is set."""

    n: int
    """Rows (tokens) seen, per expert where there are experts. 0 where a routed expert was never chosen."""
    sum_abs: Float32
    """Σ|x|, f32 [in]."""
    max_abs: Float32
    """max|x|, f32 [in]."""
    sum: Float32
    """Σx, f32 [in]."""
    sum_square: Float32
    """Σx², f32 [in]."""
    gram_blocks: Float32 | None = None
    """Σ x_g x_gᵀ, f32 [in/g, g, g]; None where not asked for or where g does not divide in."""
    gram: Float32 | None = None
    """Σ x xᵀ, f32 [in, in]."""
    sequences: int = 0
    """Sequences seen: what the four means below are taken over."""
    mean_square: float = 0.0
    """Mean over sequences of the mean of x²."""
    mean_variance: float = 0.0
    """Mean over sequences of the mean over channels of the variance along the tokens."""
    max_variance: float = 0.0
    """Mean over sequences of the largest of those variances."""
    mean_max_abs: float = 0.0
    """Mean over sequences of the mean over channels of the largest magnitude along the tokens."""

    @property
    def experts(self) -> int | None:
        """Number of experts with rows of their own, None for a plain layer."""
        return int(self.sum.shape[0]) if self.sum.ndim == 2 else None

    @property
    def width(self) -> int:
        """Number of input channels."""
        return int(self.sum.shape[-1])

    @property
    def importance(self) -> Float32:
        """E[x²] per channel, f32 [in]: what an error in a column of the weight costs. Zeros where no row was seen."""
        return (self.sum_square / np.float32(max(self.n, 1))).astype(np.float32)

    @property
    def mean_abs(self) -> Float32:
        """E|x| per channel, f32 [in]."""
        return (self.sum_abs / np.float32(max(self.n, 1))).astype(np.float32)

    def expert(self, number: int) -> LayerStatistics:
        """The statistics of one expert, as those of a plain layer; itself for a plain layer."""
        if self.experts is None:
            return self
        parts = {name: array[number] for name, array in self.arrays().items()}
        return replace(self, **parts)

    def arrays(self) -> dict[str, Float32]:
        """The arrays that are there, by field name."""
        found = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, np.ndarray):
                found[item.name] = value
        return found

    def numbers(self) -> dict[str, int | float]:
        """Everything that is not an array, by field name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, (int, float))}

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        """The statistics of both sets of rows together: a weight that several layers share."""
        total = self.sequences + other.sequences
        merged: dict[str, Any] = {"n": self.n + other.n, "sequences": total}
        theirs, numbers = other.arrays(), other.numbers()
        for name, mine in self.arrays().items():
            if name in theirs:
                merged[name] = np.maximum(mine, theirs[name]) if name == "max_abs" else mine + theirs[name]
        for name in ("mean_square", "mean_variance", "max_variance", "mean_max_abs"):
            weighted = self.numbers()[name] * self.sequences + numbers[name] * other.sequences
            merged[name] = weighted / max(total, 1)
        return LayerStatistics(**merged)


class Statistics(Mapping[str, LayerStatistics]):
    """Statistics of a model's layer inputs, by the name of the weight.

    A weight is absent where no real activation meets it (an embedding, a convolution), or where it lies inside the
    body of an If, Loop or TensorIterator.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerStatistics],
        fingerprint: str = "",
        data: str = "",
        left_out: Iterable[str] = (),
    ) -> None:
        """`fingerprint` is that of the model they were collected from; `data` says in words what they were taken on;
        `left_out` names the weights whose inputs were not finite on some samples, which were left out for them."""
        self.left_out = tuple(left_out)
        self._layers = dict(layers)
        self.fingerprint = fingerprint
        self.data = data

    def __getitem__(self, name: str) -> LayerStatistics:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file; see `statistics_file`."""
        from ov_weight_compression.calibration.statistics import save_statistics

        return save_statistics(self, path)

    @staticmethod
    def load(path: str | Path, model: ov.Model | None = None) -> Statistics:
        """Read what `save` wrote; with `model`, only if it was collected from that model."""
        from ov_weight_compression.calibration.statistics import load_statistics

        return load_statistics(path, model)

    def __repr__(self) -> str:
        return f"Statistics of {len(self)} layers, {self.data or 'data unknown'}"


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


_SAMPLE = 4096
_SMALLEST = 1024


def fingerprint(model: ov.Model) -> str:
    """A hex digest of the model's larger float constants: type, shape, and 4 KiB from either end, in graph order.

    Names do not count, so that a model and its saved and reloaded copy agree; neither does anything that a reshape of
    the inputs changes. Reading two pages of each constant takes milliseconds on a mapped file of any size.
    """
    digest = hashlib.sha256()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_output_element_type(0).to_string() not in FLOAT_TYPES:
            continue
        shape = tuple(node.get_output_shape(0))
        data = node.get_data() if node.get_byte_size() >= _SMALLEST else None
        if data is None:
            continue
        flat = data.reshape(-1).view("u1")
        digest.update(f"{node.get_output_element_type(0).to_string()}{shape}".encode())
        digest.update(flat[:_SAMPLE].tobytes())
        digest.update(flat[-_SAMPLE:].tobytes())
    return digest.hexdigest()[:32]
