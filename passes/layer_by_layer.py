"""Weights encoded while the data run through the model, layer by layer: codes and adapters, kept on disk until saved.

For each input that layers share, H is measured once, and what depends on it alone (its factor, the correction towards
the float model's output) is computed once; each of its weights then gets codes (by GPTQ or by the weighted search), and
adapters for what the codes have lost. Where two streams run, the layers after see both. Experts with inputs of their
own are layers of their own; one that the data never reached keeps codes from its weights alone.

**Shared tables**, which rows are picked from and which a layer multiplies with as well: embeddings that serve the head.
Nothing behind a table is known where its rows are picked, but what the head reads is nearly the same, whatever the
layers between have lost. So the float model runs once for the Gram matrices of what such layers read, and the steps
that code all other layers code the table under them, before the first of those is coded. On SmolLM2-135M the table
alone, in int4_asym in groups of 32, then leaves .009 nats in the head, where the search leaves .067 without data and
.028 with E[x²]; the error of the rows that are picked stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ov_weight_compression.ir_utils.errors import CompressionError, WorkError
from ov_weight_compression.ir_utils.file_io import Spool
from ov_weight_compression.ir_utils.types import Array, Float32
from ov_weight_compression.passes.encoding import StoredWeight, keep
from ov_weight_compression.passes.lora import StoredAdapters, fit_adapters, obstacle
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.plan import Algorithm, Plan, PlannedWeight, Statistic
from ov_weight_compression.patterns import Kind
from ov_weight_compression.quantization.encode import decode_rows, encode_rows
from ov_weight_compression.quantization.formats import Encoded, Spec, join_rows
from ov_weight_compression.quantization.gptq import Objective, Step, fit_rows, hessian_of, input_correction
from ov_weight_compression.quantization.reference import tensor_scale_of

if TYPE_CHECKING:
    from ov_weight_compression.calibration import LayerInput, Seen


def code_shared_tables(plan: Plan, data: Measurements, spool: Spool) -> dict[str, StoredWeight]:
    """Codes of all tables that are picked from, and that plain layers multiply with, by the weight's name.

    Raises:
        WorkError: a table cannot be coded, or the model not be run; names it.
    """
    method = plan.method
    tables = [
        one
        for one in plan.weights
        if Algorithm.LAYERWISE in one.algorithms
        and one.weight.is_embedding
        and one.weight.kind is not Kind.EXPERTS
        and not one.weight.body
        and any(use.role.kind is Kind.MATMUL for use in one.weight.consumers)
        and plan.folding.columns.get(one.weight.name) is None  # no factors are folded into what the layer reads
    ]
    if method.steps is None or not tables:
        return {}
    from ov_weight_compression.calibration.collect import grams_of_inputs

    grams = grams_of_inputs(
        data.model,
        [one.weight for one in tables],
        data.samples(method.tuning.gptq_subset),
        calibration_memory=data.memory,
        quiet=data.options.quiet,
        sources=data.sources,
    )
    stored = {}
    for one in tables:
        name = one.weight.name
        if name not in grams or not np.any(np.diagonal(grams[name])):
            continue
        try:
            matrix = plan.sources.by_name[name].read_all()
            hessian = hessian_of(grams[name], damping=method.tuning.gptq_damping)
            encoded = fit_rows(matrix, one.spec, hessian, method.steps)
        except (ValueError, np.linalg.LinAlgError) as error:
            if isinstance(error, CompressionError):
                raise
            raise WorkError(f"{name}: {error}") from error
        stored[name] = keep(encoded, spool)
    return stored


_COARSE = 4
"""Bits of codes beside whose error that of computing in bf16 is nothing."""
_TOGETHER = 1 << 24
"""Elements of weights that are encoded at once."""


def encode_layer_by_layer(plan: Plan, data: Measurements) -> tuple[Plan, tuple[str, ...]]:
    """The plan with codes, and adapters where they are asked for, of every weight whose algorithms want Gram matrices;
    and the names of those whose inputs were not finite on some samples, which were left out for them.

    Raises:
        WorkError: a weight cannot be encoded, or the model not be run; names it.
    """
    wanted = {one.weight.name: one for one in plan.weights if Statistic.GRAM in one.statistics}
    if not wanted:
        return plan, ()
    from ov_weight_compression.calibration import open_streams

    method, executor, spool = plan.method, data.options.executor, Spool()
    stored = code_shared_tables(plan, data, spool)
    adapters: dict[str, StoredAdapters | None] = {}  # None where there is nothing to correct
    left_out: list[str] = []
    with open_streams(
        data.model,
        [one.weight for one in plan.weights],
        data.samples(method.tuning.gptq_subset if method.steps is not None else method.tuning.lora_subset),
        compressed=method.two_streams,
        calibration_memory=data.memory,
        quiet=data.options.quiet,
        sources=data.sources,
        measured=wanted,
        outputs={name for name, one in wanted.items() if not plan.folding.touches(one.weight)},
        bf16=all(one.spec.format.bits <= _COARSE for one in wanted.values()),
    ) as stages:
        for stage in stages:
            for name in stage.others:
                if name in stored and method.two_streams:
                    table = decode_rows(stored[name].everything(), wanted[name].spec).astype(np.float16)
                    stage.replace(name, plan.sources.unfolded(wanted[name].weight, table))
            batches = (batch for one in stage.inputs for batch in _batches(one, wanted, plan, executor, left_out))
            for planned, matrices, known, coded in batches if executor is None else list(batches):
                try:
                    encoded, begin = coded(), 0
                    for one, matrix in zip(planned, matrices, strict=True):
                        name, own = one.weight.name, encoded.rows(begin, begin + len(matrix))
                        begin += len(matrix)
                        stored[name] = keep(own, spool)
                        values: Array = decode_rows(own, one.spec)
                        if Algorithm.LORA in one.algorithms and not obstacle(one.weight):
                            found = fit_adapters(matrix, values, known[0], method, spool)
                            adapters[name] = found
                            values = values if found is None else values + found.values()
                        if method.two_streams:  # the layers after it see the result
                            stage.replace(name, plan.sources.unfolded(one.weight, values))
                except (ValueError, np.linalg.LinAlgError) as error:
                    if isinstance(error, CompressionError):
                        raise
                    raise WorkError(f"{', '.join(one.weight.name for one in planned)}: {error}") from error
                # Gram matrices are large: nothing of this input is kept while the next one is measured.
                del matrices, known, coded, encoded, own, values
    weights = tuple(replace(one, stored=stored.get(one.weight.name)) for one in plan.weights)
    return replace(plan, weights=weights, adapters=adapters), tuple(left_out)


_Batch: TypeAlias = tuple[Sequence[PlannedWeight], Sequence[Float32], list[Objective], Callable[[], Encoded]]
"""Weights that are encoded as one, their values [rows, in], what is known of their input, and what gives their codes,
one after the other: computed when it is called, or waited for."""


def _batches(
    layer_input: LayerInput,
    wanted: Mapping[str, PlannedWeight],
    plan: Plan,
    executor: Executor | None,
    left_out: list[str],
) -> Iterator[_Batch]:
    """The wanted weights that read one input, in batches that the executor is at work on, where there is one; their
    names are added to `left_out` where samples were."""
    readers = [wanted[name] for name in layer_input.weights if name in wanted]
    if not readers:
        return
    method, columns, seen = plan.method, plan.folding.columns, layer_input.measure()
    left_out += [one.weight.name for one in readers] if seen.left_out else []
    together: list[list[PlannedWeight]] = []  # what can be encoded as the rows of one: stored alike, scaled alike
    for one in readers:
        first = together[-1][0] if together else None
        if (
            first is not None
            and one.spec == first.spec
            and not one.spec.format.tensor_scale
            and Kind.EXPERTS not in (one.weight.kind, first.weight.kind)
            and columns.get(one.weight.name) is columns.get(first.weight.name)  # the same fold
            and sum(each.weight.elements for each in (*together[-1], one)) <= _TOGETHER
        ):
            together[-1].append(one)
        else:
            together.append([one])
    elements = sum(one.weight.elements for one in readers)
    objectives: dict[int, list[Objective]] = {}
    for planned in together:
        first = planned[0]
        factors = columns.get(first.weight.name)
        if id(factors) not in objectives:
            objectives[id(factors)] = _objectives_of(seen, elements, factors, method.tuning.gptq_damping)
        known = objectives[id(factors)]
        matrices = [plan.sources[one.weight].read_all() for one in planned]
        rows = matrices[0] if len(matrices) == 1 else np.concatenate(matrices)
        scale = tensor_scale_of(first.absmax, first.spec.format)
        code = partial(_encode_rows, rows, first.spec, known, method.steps, scale)
        yield planned, matrices, known, code if executor is None else executor.submit(code).result


def _objectives_of(seen: Seen, elements: int, factors: Float32 | None, damping: float | None) -> list[Objective]:
    """One entry, or one per expert. With `factors` [in], or [experts, in], the layers will see the input divided by
    them. The weights that read it have so many `elements`."""
    grams: Array = seen.gram if seen.gram.ndim == 3 else seen.gram[None]
    drifts = seen.drift if seen.drift is None or seen.drift.ndim == 3 else seen.drift[None]
    if factors is not None:
        each = np.atleast_2d(1 / factors)
        inverse = (each[:, :, None] * each[:, None, :]).astype(np.float32)
        grams, drifts = grams * inverse, None if drifts is None else drifts * inverse
    if seen.outputs is not None:
        return [Objective(grams[0], damping, outputs=seen.outputs)]
    found = []
    for number, gram in enumerate(grams):
        if drifts is None or not np.any(np.diagonal(gram)):
            found.append(Objective(gram, damping))
        elif elements < grams.size:
            found.append(Objective(gram, damping, drift=drifts[number]))
        else:
            found.append(Objective(gram, damping, input_correction(gram, drifts[number])))
    return found


def _encode_rows(
    weight: Float32,
    spec: Spec,
    known: list[Objective],
    steps: tuple[Step, ...] | None,
    tensor_scale: np.float32 | None,
) -> Encoded:
    """Stored arrays of a weight `[rows, in]`, whose rows fall into as many experts as there are entries in `known`.

    By these `steps`; with None by the scale search, weighted with the energy of the input's channels.
    """
    parts = []
    for rows, one in zip(np.split(weight, len(known)), known, strict=True):
        energy = np.diagonal(one.gram).astype(np.float32)
        if not np.any(energy):
            parts.append(encode_rows(rows, spec, tensor_scale=tensor_scale))
        elif steps is None:
            energy /= np.float32(energy.mean(dtype=np.float64))
            parts.append(encode_rows(rows, spec, importance=energy, weighting="data", tensor_scale=tensor_scale))
        else:
            parts.append(fit_rows(one.target(rows), spec, one.hessian, steps, tensor_scale=tensor_scale))
    return join_rows(parts)
