"""How far the outputs of any model moved, for the same inputs.

With a an output of the base model and b the compressed model's, in float64 over all samples:

    relative L2    sqrt(sum (a - b)² / sum a²)
    SNR            10 log10(sum a² / sum (a - b)²) dB: infinite where nothing changed
    cosine         a·b / (|a| |b|) of each row: mean, minimum, 1st percentile; 1 where both rows are zero

A row is a vector with a meaning of its own:

    rank 0, 1      the whole output of one inference
    rank 2         [samples, d]: a sample
    rank 3         [samples, n, d]: one position (token, frame, patch) of a sample
    rank 4, more   [samples, ...]: a sample, flattened (feature maps, pictures)

Neighbours: over the samples of a rank 2 output, or of a rank 3 one averaged over its positions (those that
`attention_mask` allows), the ten nearest others by cosine in both models; the mean share that is the same. Only where
there are 12 samples or more (with 11, ten neighbours are all there are), at most the first 4,096, of 8 numbers or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.evaluation.layers import SignalNoise
from ov_weight_compression.evaluation.models import OnProgress, Pair, Runner
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.types import Array

_NEIGHBOURS = 10
_MOST_SAMPLES = 4096
_LEAST_WIDTH = 8


@dataclass(frozen=True)
class OutputFigures:
    """One output of a model."""

    name: str
    rows: int
    row: str
    """What a row is, in words."""
    cosine_mean: float
    cosine_min: float
    cosine_p1: float
    relative_l2: float
    snr_db: float
    neighbours: float | None
    """Mean share of the ten nearest neighbours that stayed, 0..1; None where there are no samples to compare."""
    samples: int
    """Samples over which neighbours were looked for."""


@dataclass
class OutputTotals:
    """What is kept of one output while samples go by."""

    name: str
    energy: SignalNoise = field(default_factory=SignalNoise)
    cosines: list[npt.NDArray[np.float64]] = field(default_factory=list)
    pooled: list[tuple[Array, Array]] = field(default_factory=list)
    row: str = ""
    kept: int = 0

    def add(self, base: Array, compressed: Array, mask: Array | None) -> None:
        """Add the output of one inference; `mask` is its attention mask `[samples, n]`, if any."""
        a, b = base.astype(np.float64), compressed.astype(np.float64)
        self.energy.add(a, b)
        self.row = _row_name(a.ndim)
        self.cosines.append(_cosines(_rows(a), _rows(b)))
        if a.ndim in (2, 3) and a.shape[-1] >= _LEAST_WIDTH and self.kept < _MOST_SAMPLES:
            self.pooled.append((_pooled(a, mask), _pooled(b, mask)))
            self.kept += len(a)

    def figures(self) -> OutputFigures:
        """The figures over everything added."""
        cosines, snr_db = np.concatenate(self.cosines), self.energy.snr_db
        signal, noise = self.energy.signal, self.energy.noise
        samples = min(self.kept, _MOST_SAMPLES)
        shared = None
        if samples >= _NEIGHBOURS + 2 and len({a.shape[1:] for a, _ in self.pooled}) == 1:
            a, b = (np.concatenate(side)[:samples] for side in zip(*self.pooled, strict=True))
            shared = float((_nearest(a)[:, :, None] == _nearest(b)[:, None, :]).any(axis=2).mean())
        return OutputFigures(
            name=self.name,
            rows=len(cosines),
            row=self.row,
            cosine_mean=float(cosines.mean()),
            cosine_min=float(cosines.min()),
            cosine_p1=float(np.percentile(cosines, 1)),
            relative_l2=math.sqrt(noise / signal) if signal > 0 else (0.0 if noise == 0 else math.inf),
            snr_db=math.nan if snr_db is None else snr_db,
            neighbours=shared,
            samples=samples if shared is not None else 0,
        )


def _row_name(rank: int) -> str:
    return {0: "the output", 1: "the output", 2: "a sample", 3: "a position of a sample"}.get(
        rank, "a sample, flattened"
    )


def _rows(values: Array) -> Array:
    if values.ndim < 2:
        return values.reshape(1, -1)
    return values.reshape(-1, values.shape[-1]) if values.ndim == 3 else values.reshape(len(values), -1)


def _cosines(a: Array, b: Array) -> npt.NDArray[np.float64]:
    norms = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (a * b).sum(axis=1) / norms
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    found: npt.NDArray[np.float64] = np.where(norms > 0, cosines, np.where(both_zero, 1.0, 0.0))
    return found


def _pooled(values: Array, mask: Array | None) -> Array:
    if values.ndim == 2:
        return values
    if mask is None or mask.shape != values.shape[:2]:
        return np.asarray(values.mean(axis=1))
    weights = mask.astype(np.float64)[:, :, None]
    return np.asarray((values * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1))


def _nearest(rows: Array) -> npt.NDArray[np.intp]:
    """Indices of the ten nearest other rows by cosine, `[rows, 10]`; of equals the first."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    found = np.empty((len(rows), _NEIGHBOURS), dtype=np.intp)
    for start in range(0, len(rows), 512):
        block = slice(start, min(start + 512, len(rows)))
        alike = unit[block] @ unit.T
        alike[np.arange(len(alike)), np.arange(block.start, block.stop)] = -np.inf
        found[block] = np.argsort(-alike, axis=1, kind="stable")[:, :_NEIGHBOURS]
    return found


def compare_outputs(
    pair: Pair, sets: Iterable[Mapping[str, Array]], progress: OnProgress
) -> tuple[tuple[OutputFigures, ...], int]:
    """The figures of each output over all sets of inputs, and the number of these.

    Raises:
        ModelError: the models have different outputs.
        OptionError: there are no inputs.
        WorkError: an output holds NaN.
    """
    base, compressed = (Runner(one, pair.arithmetic) for one in (pair.base, pair.compressed))
    names = [_output_name(port, index) for index, port in enumerate(pair.base.model.outputs)]
    order = _same_outputs(pair, names)
    totals = [OutputTotals(name) for name in names]
    count = 0
    for inputs in sets:
        progress("samples", count, None)
        ours, theirs = base.run(inputs), compressed.run(inputs)
        for index, total in enumerate(totals):
            a, b = ours[index], theirs[order[index]]
            if a.shape != b.shape:
                raise ModelError(f"output '{total.name}' is {list(a.shape)} of the base, {list(b.shape)} of the other")
            total.add(a, b, inputs.get("attention_mask"))
        count += 1
    if count == 0:
        raise OptionError("data: it is empty")
    progress("samples", count, count)
    broken = [total.name for total in totals if math.isnan(total.energy.noise)]
    if broken:
        raise WorkError(f"output '{broken[0]}' holds NaN: nothing can be compared")
    return tuple(total.figures() for total in totals), count


def _same_outputs(pair: Pair, names: list[str]) -> list[int]:
    """Where the compressed model has each output: by name, else by number."""
    theirs = pair.compressed.model.outputs
    if len(theirs) != len(names):
        raise ModelError(f"the models have different outputs: base {len(names)}, compressed {len(theirs)}")
    by_name = {name: index for index, port in enumerate(theirs) for name in port.get_names()}
    return [by_name.get(name, index) for index, name in enumerate(names)]


def _output_name(port: Any, index: int) -> str:
    """The name by which an output is known: its shortest, as exporters give it, else its number. What OpenVINO itself
    calls a Result changes from one reading to the next."""
    names = [name for name in port.get_names() if not name.startswith("Result_")]
    return str(min(names, key=lambda name: (len(name), name), default=f"output {index}"))
