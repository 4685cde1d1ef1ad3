"""Put a plan into the graph: each weight's constant becomes its decompression chain.

The constants of the chain are postponed: nothing is computed here. `ov.save_model` and `compile_model` ask for them one
by one, and the pipeline computes them then. `lazy=False` computes them all at once and inserts plain constants.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.deferral import FileSink, active_deferral
from ov_weight_compression.ir_utils.dequantization import ChainParts, build_dequantization, replace_constant
from ov_weight_compression.ir_utils.device_facts import CPU_EXECUTED
from ov_weight_compression.ir_utils.jobs import Job, Task
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.postponed import postponed_constant
from ov_weight_compression.ir_utils.types import element_type
from ov_weight_compression.passes.choice import Choice
from ov_weight_compression.passes.encode_job import WeightJob
from ov_weight_compression.passes.turned import take_over_transpose
from ov_weight_compression.patterns import Kind

__all__ = ["PostponedWeight", "rewrite"]

LARGE_BYTES = 32 << 20
_TELLING_STORAGE = frozenset({"u8", "i8", "u4", "i4", "nf4", "f8e4m3"})


class PostponedWeight:
    """A job of a pipeline, as the makers of its constants and `save_model` see it."""

    def __init__(self, pipeline: Pipeline, job: WeightJob) -> None:
        self.pipeline, self.encoding, self.number = pipeline, job, pipeline.add(job)
        self.name = job.name
        self._plain: dict[str, Any] = {}

    @property
    def identity(self) -> Hashable | None:
        """What the constants follow from (see `DeferredWeight`)."""
        return self.encoding.identity

    def part(self, name: str) -> ov.Tensor:
        """A part, computed now or fetched if computed ahead; a stub where `save_model` computes the weight later."""
        deferral = active_deferral()
        if deferral is None:
            tensor: ov.Tensor = self.pipeline.take(self.number, name)
            return tensor
        part = self.encoding.parts[name]
        return deferral.stub(self, name, element_type(part.type), part.shape)

    def plain(self, name: str) -> Any:
        """A part as a Constant. A large weight's codes lie in a temporary file that is mapped, not in memory."""
        job = self.encoding
        kind = {"u8": np.uint8, "i8": np.int8}.get(job.parts["codes"].type)
        if kind is None or job.parts["codes"].nbytes < LARGE_BYTES:
            return ov.op.Constant(self.part(name), shared_memory=True)
        if name not in self._plain:
            with tempfile.TemporaryFile(prefix="ov-weight-compression-") as file:
                (small,) = self.pipeline.run_all([self.job({"codes": FileSink(file.fileno(), 0)})])
                codes = np.memmap(file, dtype=kind, mode="r+", shape=job.parts["codes"].shape)
            self._plain = {part: ov.op.Constant(tensor, shared_memory=True) for part, tensor in small.items()}
            self._plain["codes"] = ov.op.Constant(codes, shared_memory=True)
        return self._plain.pop(name)

    def job(self, sinks: Mapping[str, FileSink]) -> Job:
        """The weight's computation, with the parts that have sinks straight into their places in the file."""
        return _WrittenJob(self.encoding, sinks)


@dataclass(frozen=True)
class _WrittenJob:
    """A weight's job whose codes, at least, go into a file."""

    encoding: WeightJob
    sinks: Mapping[str, FileSink]

    @property
    def name(self) -> str:
        return self.encoding.name

    @property
    def nbytes(self) -> int:
        return self.encoding.nbytes

    def begin(self) -> tuple[Sequence[Task], Callable[[], dict[str, Any]]]:
        tasks, finish = self.encoding.begin_into(self.sinks["codes"])

        def write_the_rest() -> dict[str, Any]:
            parts = finish()
            for name in self.sinks.keys() & parts.keys():
                self.sinks[name].write(0, parts.pop(name).data)
            return parts

        return tasks, write_the_rest


def rewrite(
    choices: Sequence[Choice], make_job: Callable[[Choice], WeightJob], pipeline: Pipeline, lazy: bool
) -> list[WeightJob]:
    """Rewrite every chosen weight, in graph order; the model is changed in place.

    With `lazy=False` all values are computed before the first edit, so that a failure leaves the model as it was.

    Raises:
        WorkError: a weight could not be computed (only with `lazy=False`); the model is unchanged.
    """
    jobs = [make_job(choice) for choice in choices]
    postponed = [PostponedWeight(pipeline, job) for job in jobs]
    telltale = _telltale(jobs)
    chains = [
        _constants(weight, choice, lazy, weight.encoding is telltale)
        for weight, choice in zip(postponed, choices, strict=True)
    ]
    for choice, parts in zip(choices, chains, strict=True):
        weight = choice.weight
        name = weight.stored_name
        parts["codes"].set_friendly_name(name)
        for part, node in parts.items():
            if part != "codes":
                node.set_friendly_name(f"{name}/{part}")
        chain = build_dequantization(
            ChainParts(**parts),
            name,
            weight.shape,
            expanded=_expanded(choice),
            wide=choice.beyond_f16,
            kept_from_codes=choice.kept_from_codes,
        )
        replace_constant(weight.constant, chain, name)
        for consumer in weight.consumers:
            take_over_transpose(consumer)
    return jobs


def _expanded(choice: Choice) -> bool:
    """Whether the CPU plugin folds this weight's chain because of a layer that reads it."""
    kinds = {consumer.kind for consumer in choice.weight.consumers}
    if Kind.GATHER not in kinds:
        return Kind.CONVOLUTION in kinds
    in_groups_of_its_own_shape = choice.spec.group_size != -1 and len(choice.weight.shape) > 2
    return choice.spec.format.storage not in CPU_EXECUTED["Gather"] or in_groups_of_its_own_shape


def _telltale(jobs: Sequence[WeightJob]) -> WeightJob | None:
    """The smallest weight whose codes tell `ov.save_model` that a model is compressed.

    It then leaves the precision of everything else alone, but it looks at plain constants only. With this one weight's
    constants plain in the clone that it writes, a lazily compressed model is saved as one of plain constants is.
    """
    telling = [job for job in jobs if job.spec.format.storage in _TELLING_STORAGE]
    return min(telling, key=lambda job: job.nbytes, default=None)


def _constants(postponed: PostponedWeight, choice: Choice, lazy: bool, telltale: bool) -> dict[str, Any]:
    """The nodes of one chain's constants. What is known already is plain, so that equal scalars are stored once.

    An f32 part is postponed in any case: `ov.save_model` stores plain f32 constants as f16, which rounds a tensor's
    scale and cannot hold the scales for which f32 was chosen.
    """
    known = postponed.encoding.known_parts()
    gathered = any(consumer.kind is Kind.GATHER for consumer in choice.weight.consumers)
    nodes = {}
    for name, part in postponed.encoding.parts.items():
        maker: Callable[[], ov.Tensor] = partial(postponed.part, name)
        if name in known or not lazy:
            tensor = known[name] if name in known else maker()
            if part.type != "f32":
                nodes[name] = ov.op.Constant(tensor, shared_memory=True)
                continue
            maker = partial(_same, tensor)
        shape = ov.Shape(list(part.shape))
        plain = partial(postponed.plain, name) if (gathered or telltale) and part.type != "f32" else None
        nodes[name] = postponed_constant(element_type(part.type), shape, maker, plain)
    return nodes


def _same(tensor: ov.Tensor) -> ov.Tensor:
    return tensor
