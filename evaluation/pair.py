"""The two models of a comparison, ready to be run."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike

import openvino as ov

from ov_weight_compression.evaluation.arithmetic import Arithmetic
from ov_weight_compression.evaluation.feeding import Feeder
from ov_weight_compression.evaluation.loading import Loaded, load
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.publish import TemporaryFolder
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed

__all__ = ["Pair", "open_pair"]


@dataclass(frozen=True, eq=False)
class Pair:
    """Both models and the arithmetic that they are run in."""

    base: Loaded
    compressed: Loaded
    arithmetic: Arithmetic

    @property
    def base_feeder(self) -> Feeder:
        """Knows the base model's inputs, which are the compressed model's too."""
        return Feeder(self.base.model, "the base model")


def open_pair(
    base: ov.Model | str | PathLike[str],
    compressed: ov.Model | str | PathLike[str],
    arithmetic: Arithmetic,
    stack: ExitStack,
) -> Pair:
    """Load both models; `stack` removes temporary files.

    Raises:
        ModelError: one of them cannot be read, or they take different inputs.
    """
    ours, theirs = _settled(load(base, "base"), stack), _settled(load(compressed, "compressed"), stack)
    names = [set(Feeder(one.model, one.name).names) for one in (ours, theirs)]
    if names[0] != names[1]:
        listed = [", ".join(sorted(side)) for side in names]
        raise ModelError(f"the models take different inputs: base {listed[0]}; compressed {listed[1]}")
    return Pair(ours, theirs, arithmetic)


def _settled(loaded: Loaded, stack: ExitStack) -> Loaded:
    """The same model with every postponed constant computed, once, into a file that lives as long as `stack`: it is
    compiled several times, and its weights are read one by one."""
    if not any(is_postponed(node) for graph in graphs_of(loaded.model) for node, _ in graph.constants):
        return loaded
    folder = stack.enter_context(TemporaryFolder())
    ov.save_model(loaded.model, folder / "model.xml", compress_to_fp16=False)
    return replace(loaded, model=load(folder / "model.xml", loaded.name).model)
