"""Put a plan into the graph: each weight's constant becomes its decompression chain.

The constants of the chain are postponed: nothing is computed here. `ov.save_model` and `compile_model` ask for them one
by one, and the pipeline computes them then. `lazy=False` computes them all at once and inserts plain constants.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import openvino as ov

from ov_weight_compression.ir_utils.dequantization import ChainParts, build_dequantization, replace_constant
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.postponed_constants import postponed_constant
from ov_weight_compression.ir_utils.types import element_type
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.encode_job import WeightJob
from ov_weight_compression.passes.weight_transpose import take_over_transpose
from ov_weight_compression.patterns import Kind

__all__ = ["equal_weights", "rewrite"]


def rewrite(
    choices: Sequence[Choice], make_job: Callable[[Choice], WeightJob], pipeline: Pipeline, lazy: bool
) -> list[WeightJob]:
    """Rewrite every chosen weight, in graph order; the model is changed in place. Equal weights share one chain.

    With `lazy=False` all values are computed before the first edit, so that a failure leaves the model as it was.

    Raises:
        WorkError: a weight could not be computed (only with `lazy=False`); the model is unchanged.
    """
    jobs = [make_job(choice) for choice in choices]
    equal = equal_weights(choices, jobs)
    stored = {places[0]: _merged([choices[place] for place in places]) for places in equal}
    weights = {place: LazyWeight(pipeline, jobs[place]) for place in stored}
    try:
        constants = {place: _constants(weights[place], choice, lazy) for place, choice in stored.items()}
    finally:
        if not lazy:
            pipeline.stop()
    for places in equal:
        chain = _chain(stored[places[0]], constants[places[0]])
        for place in places:
            weight = choices[place].weight
            replace_constant(weight.constant, chain, weight.stored_name)
            for consumer in weight.consumers:
                take_over_transpose(consumer)
    return jobs


def equal_weights(choices: Sequence[Choice], jobs: Sequence[WeightJob]) -> list[list[int]]:
    """The places of weights that are stored as the same bytes in the same chain, each by itself where it has no equal.

    OpenVINO stores equal plain constants once, but postponed ones as often as there are nodes. Tied weights that an
    exporter left as two constants of one place in its file would be stored twice.
    """
    found: list[list[int]] = []
    candidates: dict[Hashable, list[list[int]]] = {}
    for place, (choice, job) in enumerate(zip(choices, jobs, strict=True)):
        others: list[list[int]] = []
        if job.alike is not None and job.source is not None:
            chain = (choice.weight.body, choice.expanded, choice.kept_from_codes)
            others = candidates.setdefault((job.alike, chain, job.source.fingerprint), [])
        equals = next((places for places in others if _same_values(jobs[places[0]], job)), None)
        if equals is None:
            equals = []
            others.append(equals)
            found.append(equals)
        equals.append(place)
    return found


def _same_values(one: WeightJob, other: WeightJob) -> bool:
    return one.source is not None and other.source is not None and one.source.equals(other.source)


def _merged(choices: Sequence[Choice]) -> Choice:
    """The choice for equal weights: the first one, with the consumers of all."""
    consumers = tuple(consumer for choice in choices for consumer in choice.weight.consumers)
    tells = any(choice.tells for choice in choices)
    return replace(choices[0], weight=replace(choices[0].weight, consumers=consumers), tells=tells)


def _chain(choice: Choice, parts: Mapping[str, Any]) -> Any:
    """The last node of a weight's chain."""
    name = choice.weight.stored_name
    for part, node in parts.items():
        node.set_friendly_name(name if part == "codes" else f"{name}/{part}")
    return build_dequantization(
        ChainParts(**parts),
        name,
        choice.weight.shape,
        expanded=choice.expanded,
        wide=choice.beyond_f16,
        kept_from_codes=choice.kept_from_codes,
    )


def _constants(weight: LazyWeight, choice: Choice, lazy: bool) -> dict[str, Any]:
    """The nodes of one chain's constants. What is known already is plain, so that equal scalars are stored once.

    An f32 part is postponed in any case: `ov.save_model` stores plain f32 constants as f16 unless it takes the model
    for compressed, which rounds a tensor's scale and cannot hold the scales for which f32 was chosen. Only the weight
    that it recognises a compressed model by has all of them plain, in the clone that it writes.
    """
    assert isinstance(weight.encoding, WeightJob)
    known = weight.encoding.known_parts()
    gathered = any(consumer.kind is Kind.GATHER for consumer in choice.weight.consumers)
    nodes = {}
    for name, part in weight.encoding.parts.items():
        if lazy and name not in known:
            plain = choice.tells or (gathered and part.type != "f32")
            nodes[name] = weight.constant(name, plain_in_clones=plain)
            continue
        tensor = known[name] if name in known else weight.computed(name)
        if part.type != "f32" or choice.tells:
            nodes[name] = ov.op.Constant(tensor, shared_memory=True)
        else:
            nodes[name] = postponed_constant(
                element_type(part.type), ov.Shape(list(part.shape)), partial(_same, tensor)
            )
    return nodes


def _same(tensor: ov.Tensor) -> ov.Tensor:
    return tensor
