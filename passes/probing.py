"""How the probes round: as the run's own algorithms would, in one usual format; and where they run.

Probes run in this process, one pass for all, or as tasks of an executor that the caller brings: processes, a cluster.
A task gets nothing but names of files and small values: the model and the windows lie in a temporary folder that every
worker has to see (`TMPDIR` decides where). Each task runs a share of the probes, and the exact stream for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.publish import TemporaryFolder
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.passes.channel_importance import GraphEnergy, graph_energies
from ov_weight_compression.passes.plan import Method
from ov_weight_compression.patterns import Kind, Roles, Sources, Weight, find_weights, sources_of
from ov_weight_compression.quantization.encode import Weighting, decode_rows, encode_rows
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Spec
from ov_weight_compression.quantization.gptq import fit_rows, gptq, hessian_of
from ov_weight_compression.quantization.reference import tensor_scale_of

if TYPE_CHECKING:
    from ov_weight_compression.calibration import ProbeShown, Rounding, Samples

_PROBE_GROUP = 64
_SMALLEST_GROUP = 16
_TASKS = 8


@dataclass(frozen=True)
class Quantiser:
    """What of a method decides how weights are rounded."""

    by_data: bool
    """Data weigh the scale search."""
    by_gptq: bool
    damping: float | None = None
    """Of GPTQ's Hessians."""


def quantiser_of(method: Method) -> Quantiser:
    """Of a run's method."""
    return Quantiser(method.weighted, method.steps is not None, method.tuning.gptq_damping)


def probe_spec(weight: Weight) -> Spec:
    """The format that a weight is probed in: int4_sym in groups of 64, or of what divides it, or per channel."""
    format = FORMATS["int4_sym"]
    group = _PROBE_GROUP
    while group >= _SMALLEST_GROUP and weight.columns % group:
        group //= 2
    fits = group >= _SMALLEST_GROUP and weight.layout.groupable and weight.kind is not Kind.CONVOLUTION
    return Spec(format, group if fits else PER_CHANNEL, search=format.default_search)


class WeightRounder:
    """Rounds a model's weights for the probes."""

    def __init__(self, weights: Sequence[Weight], sources: Sources, quantiser: Quantiser) -> None:
        self._quantiser, self._graph = quantiser, graph_energies(weights, sources)
        self._specs = {weight.name: probe_spec(weight) for weight in weights}

    def __call__(self, name: str, seen: Float32 | None) -> Rounding:
        """See `calibration.probes.Rounder`."""
        from ov_weight_compression.calibration import Rounding

        spec, quantiser = self._specs[name], self._quantiser
        if seen is not None and quantiser.by_gptq:
            hessians = [hessian_of(one, damping=quantiser.damping) for one in _each(seen, 3)]
            energy = np.stack([one.residual for one in hessians])

            def by_gptq(rows: Float32, expert: int) -> Float32:
                return decode_rows(fit_rows(rows, spec, hessians[expert], (gptq,)), spec)

            return Rounding(energy if seen.ndim == 3 else energy[0], by_gptq)

        def values(rows: Float32, expert: int) -> Float32:
            own = None if seen is None else _each(seen, 2)[expert]
            return rounded(rows, spec, own, self._graph[name], quantiser)

        return Rounding(seen, values)


def _each(seen: Float32, rank: int) -> Float32:
    """With a leading axis of experts."""
    return seen if seen.ndim == rank else seen[None]


def rounded(rows: Float32, spec: Spec, energy: Float32 | None, graph: GraphEnergy, quantiser: Quantiser) -> Float32:
    """Rows as a scale search stores them, nearly: what data refit is refitted less.

    Args:
        rows: [n, in] f32.
        spec: the format.
        energy: [in] E[x²], where it is known.
        graph: what the graph says, where data do not weigh.
        quantiser: whether they do.
    """
    weighting: Weighting = "trial"
    if not (quantiser.by_data or quantiser.by_gptq) or energy is None:
        energy, weighting = graph.value(), "graph"
    scale = tensor_scale_of(float(np.abs(rows).max(initial=0.0)), spec.format)
    rows = np.ascontiguousarray(rows, np.float32)
    encoded = encode_rows(rows, spec, importance=energy, weighting=weighting, tensor_scale=scale)
    return decode_rows(encoded, spec)


@dataclass(frozen=True)
class _ProbeTask:
    """A share of the probes of a model, for whatever process runs it."""

    model: str
    """Its .xml file."""
    probed: str
    """An .npz file with the windows that probes run on: arrays by "<window>/<input>"."""
    looked_at: str
    """One with windows of which only the inputs of layers are looked at."""
    names: frozenset[str]
    """The weights to be probed."""
    quantiser: Quantiser
    roles: Roles | None
    calibration_memory: int
    share: tuple[int, int]


def _run_task(task: _ProbeTask) -> list[ProbeShown]:
    """Run a share of the probes.

    Raises:
        WorkError: the files hold another model's weights, or the model cannot be run on the windows.
    """
    from ov_weight_compression.calibration import run_probes

    model = ov.Core().read_model(task.model)
    weights = [weight for weight in find_weights(model, None, task.roles)[0] if weight.name in task.names]
    if len(weights) != len(task.names):
        raise WorkError(f"executor: {task.model} has {len(weights)} of {len(task.names)} weights: please report this")
    sources = sources_of(weights)
    return run_probes(
        model,
        weights,
        WeightRounder(weights, sources, task.quantiser),
        _windows(task.probed),
        _windows(task.looked_at),
        grams=task.quantiser.by_gptq,
        sources=sources,
        calibration_memory=task.calibration_memory,
        quiet=True,
        share=task.share,
    )


def run_on_executor(
    executor: Executor,
    model: ov.Model,
    weights: Sequence[Weight],
    quantiser: Quantiser,
    samples: Samples,
    more: Samples | None,
    *,
    roles: Roles | None = None,
    calibration_memory: int,
) -> list[ProbeShown]:
    """All probes of a model, whose constants have their values, as tasks of an executor; in a fixed order.

    Raises:
        WorkError: a task could not be run.
    """
    folder = TemporaryFolder()
    try:
        path = folder.path / "model.xml"
        ov.save_model(model.clone(), path, compress_to_fp16=False)
        files = []
        for name, windows in (("probed", samples), ("looked_at", more or ())):
            arrays = {
                f"{number}/{key}": array for number, window in enumerate(windows) for key, array in window.items()
            }
            files.append(str(folder.path / f"{name}.npz"))
            np.savez(files[-1], **arrays)  # type: ignore[arg-type]
        names = frozenset(weight.name for weight in weights)
        tasks = [
            _ProbeTask(str(path), files[0], files[1], names, quantiser, roles, calibration_memory, (number, _TASKS))
            for number in range(_TASKS)
        ]
        futures = [executor.submit(_run_task, task) for task in tasks]
        shares = [future.result() for future in futures]
    finally:
        folder.discard()
    return [one for number in range(max(map(len, shares))) for share in shares for one in share[number : number + 1]]


def _windows(file: str) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    with np.load(Path(file), allow_pickle=False) as arrays:
        for key in arrays.files:
            number, name = key.split("/", 1)
            found.setdefault(int(number), {})[name] = arrays[key]
    return [found[number] for number in sorted(found)]
