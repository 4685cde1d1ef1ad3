"""A compiled model that is run piece by piece, each piece from a clean state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.language import read_language_model
from ov_weight_compression.evaluation.arithmetic import Arithmetic, first_line
from ov_weight_compression.evaluation.feeding import Feeder
from ov_weight_compression.evaluation.loading import Loaded
from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.types import Array, Float32

__all__ = ["LogitsPort", "Runner", "find_logits", "output_name"]


@dataclass(frozen=True)
class LogitsPort:
    """Where a model's logits come out."""

    index: int
    vocabulary: int | None
    """None where the model does not fix it."""


def output_name(port: Any, index: int) -> str:
    """The name by which an output is known: its shortest, as exporters give it, else its number. What OpenVINO itself
    calls a Result changes from one reading to the next."""
    names = [name for name in port.get_names() if not name.startswith("Result_")]
    return str(min(names, key=lambda name: (len(name), name), default=f"output {index}"))


def find_logits(model: ov.Model) -> LogitsPort | None:
    """The output called `logits` if it is `[batch, n, vocabulary]`; else the only output of rank 3, if the model keeps
    a past (states, or inputs for one). None for a model that is no language model."""
    if read_language_model(model) is None:
        return None
    ranked = [
        (index, port)
        for index, port in enumerate(model.outputs)
        if port.get_partial_shape().rank.is_static and port.get_partial_shape().rank.get_length() == 3
    ]
    named = [(index, port) for index, port in ranked if "logits" in port.get_names()]
    if not named:
        remembers = bool(model.get_variables()) or any(
            "past" in name for port in model.inputs for name in port.get_names()
        )
        named = ranked if remembers and len(ranked) == 1 else []
    if len(named) != 1:
        return None
    index, port = named[0]
    last = port.get_partial_shape()[2]
    return LogitsPort(index, last.get_length() if last.is_static else None)


class Runner:
    """One model, compiled once, run many times. What `run` and `logits` return is valid until the next call."""

    def __init__(self, model: ov.Model, what: str, arithmetic: Arithmetic) -> None:
        self.what = what
        self.feeder = Feeder(model, what)
        self._port = find_logits(model)
        self._stateful = bool(model.get_variables())
        self._request = arithmetic.compile(model, what).create_infer_request()

    @staticmethod
    def of(loaded: Loaded, role: str, arithmetic: Arithmetic) -> Runner:
        """A runner whose messages say "the base model pylm"."""
        return Runner(loaded.model, f"the {role} model" + (f" {loaded.name}" if loaded.path else ""), arithmetic)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """All outputs for one set of complete inputs, from an empty state."""
        try:
            if self._stateful:
                self._request.reset_state()
            feed = dict(enumerate(inputs[name] for name in self.feeder.names))
            results = self._request.infer(feed, share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise WorkError(f"{self.what} cannot be run on {shapes}: {first_line(error)}") from error
        return [results[index] for index in range(len(results))]

    def logits(self, inputs: Mapping[str, Array]) -> Float32:
        """Logits `[batch, n, vocabulary]` as float32."""
        if self._port is None:
            raise WorkError(f"{self.what} has no output of logits")
        found: Float32 = np.asarray(self.run(inputs)[self._port.index], dtype=np.float32)
        return found
