"""Recording what a pipeline's models are given, while the pipeline runs as it always does.

    with record_inputs("exported") as samples:
        pipeline.generate(...)                       # optimum-intel's, or any code that runs the models in Python
    samples["openvino_encoder_model.xml"]            # a dataset: dataset=, or data= of compare
    samples.save("recorded")                         # what --data takes for the folder of models

Models are known by their inputs and outputs, so the pipeline may have been made before. While the block runs, the
methods of `openvino.InferRequest` that start an inference also copy its inputs; OpenVINO itself is not changed. What
runs in C++, such as openvino-genai's pipelines, is not seen: run the same folder with optimum-intel.

Memory is bounded: each sample goes to a file of its own in a temporary folder, a fair choice of them is kept where
there are more than wanted, and nothing more is kept once all files together reach a limit.

Calls of a model that keeps what it has read are joined into what it would have been given at once. A decoder with a
cache is called with the prompt, then with one token at a time. Calibration starts every sample with an empty cache,
where a single token says little; and the inputs of its layers are the same, token by token, if the whole sequence is
given in one window. So a sequence is kept from one reset of the state to the next, and joined:

    input_ids, inputs_embeds, position_ids, …    one after another, along the axis that is as long as the step
    attention_mask                               the last one, which covers the whole; or joined where it does not
    beam_idx                                     followed: a beam that took over another has that one's past
    encoder_hidden_states and the like           the last one
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any
from warnings import warn

import numpy as np
import openvino as ov

from ov_weight_compression.calibration.data_files import RecordedSamples
from ov_weight_compression.calibration.model_inputs import input_label
from ov_weight_compression.ir_utils.errors import CompressionWarning, OptionError
from ov_weight_compression.ir_utils.model_folder import models_in
from ov_weight_compression.ir_utils.option_kinds import PATH, by_name, count, shown
from ov_weight_compression.ir_utils.publish import TemporaryFolder, cannot_write
from ov_weight_compression.ir_utils.types import Array, tensor_values

_MOST_SAMPLES = 128
_MOST_BYTES = 4 << 30


@dataclass(eq=False)
class _Part:
    """One model of the folder, and what was seen of it."""

    name: str
    labels: tuple[str, ...]
    ports: tuple[Any, ...]
    """Of each input and output the names and the shape."""
    keeps_state: bool
    seen: int = 0
    """Samples, kept or not."""
    files: list[Path] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @classmethod
    def read(cls, folder: Path, file: Path) -> _Part:
        model = ov.Core().read_model(file)
        labels = tuple(map(input_label, model.get_parameters()))
        keeps_state = bool(model.get_variables()) and any(label in SEQUENCE_INPUTS for label in labels)
        return cls(file.relative_to(folder).as_posix(), labels, _ports(model), keeps_state)


def _ports(model: Any) -> tuple[tuple[frozenset[str], ov.PartialShape], ...]:
    return tuple((frozenset(port.get_names()), port.get_partial_shape()) for port in (*model.inputs, *model.outputs))


def _same(part: tuple[Any, ...], compiled: tuple[Any, ...]) -> bool:
    """Whether a compiled model may be a file's: it may have been given shapes since it was read."""
    return len(part) == len(compiled) and all(
        names == others and shape.compatible(other)
        for (names, shape), (others, other) in zip(part, compiled, strict=True)
    )


class RecordedInputs(Mapping[str, RecordedSamples]):
    """Samples by the models' paths in their folder, as `openvino_encoder_model.xml` or `unet/openvino_model.xml`.

    Each is a dataset of that model, for `dataset=`, or for `data=` of `compare`. `record_inputs` gives them.
    """

    def __init__(self, source: Path, most_samples: int, most_bytes: int) -> None:
        self._source = source
        self._parts = [_Part.read(source, file) for file in models_in(source)]
        self._most_samples, self._most_bytes = most_samples, most_bytes
        self._folder = TemporaryFolder()
        weakref.finalize(self, self._folder.discard)
        self._bytes = 0
        self._left_out = 0
        self._lock = RLock()
        self._known: weakref.WeakKeyDictionary[Any, _Part | None] = weakref.WeakKeyDictionary()
        self._begun: weakref.WeakKeyDictionary[Any, list[dict[str, Array]]] = weakref.WeakKeyDictionary()
        self._alike: set[tuple[str, ...]] = set()

    def __getitem__(self, name: str) -> RecordedSamples:
        part = next((one for one in self._parts if one.name == name), None)
        if part is None:
            names = ", ".join(one.name for one in self._parts)
            raise OptionError(f"record_inputs: {shown(name)} is no model of {self._source}; it has {names}")
        if not part.files:
            alike = next((names for names in self._alike if name in names), None)
            why = "it was not run" if alike is None else f"{' and '.join(alike)} cannot be told apart from outside"
            raise OptionError(f"record_inputs: nothing was recorded for {name}: {why}")
        return RecordedSamples(part.files, self)

    def __iter__(self) -> Iterator[str]:
        return (part.name for part in self._parts if part.files)

    def __len__(self) -> int:
        return sum(bool(part.files) for part in self._parts)

    def save(self, folder: Any) -> None:
        """Write all samples into a folder, as `--data` takes it (see `calibration.data_files`).

        Raises:
            OptionError: the folder exists and is not empty.
            WorkError: it cannot be written.
        """
        target: Path = PATH.parse("folder", folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OptionError(f"folder: {target} exists; write somewhere else")
        try:
            for part in self._parts:
                own = target / Path(part.name).with_suffix("")
                for file in part.files:
                    own.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, own / file.name)
        except OSError as error:
            raise cannot_write(target, error) from error

    def _part_of(self, request: Any) -> _Part | None:
        """The model that a request runs, if it is one of the folder's."""
        if request not in self._known:
            ports = _ports(request.get_compiled_model())
            found = [part for part in self._parts if _same(part.ports, ports)]
            if len(found) > 1:
                self._alike.add(tuple(part.name for part in found))
            self._known[request] = found[0] if len(found) == 1 else None
        return self._known[request]

    def add(self, request: Any) -> None:
        """Note one inference."""
        with self._lock:
            part = self._part_of(request)
            if part is None:
                return
            call = {label: _input_of(request, number) for number, label in enumerate(part.labels)}
            if not part.keeps_state:
                self._keep(part, call)
                return
            if request not in self._begun:
                calls: list[dict[str, Array]] = []
                self._begun[request] = calls
                weakref.finalize(request, _end_of_request, weakref.ref(self), part, calls)
            self._begun[request].append(call)

    def end(self, request: Any) -> None:
        """The state of a request is forgotten: what was read so far is one sample."""
        with self._lock:
            part = self._part_of(request)
            if part is not None:
                self._end_of(part, self._begun.pop(request, []))

    def _end_of(self, part: _Part, calls: list[dict[str, Array]]) -> None:
        """These calls are one sample; the list is emptied."""
        with self._lock:
            if calls:
                # What cannot be joined is kept to its first call, which alone began with an empty state.
                self._keep(part, joined_calls(calls) or joined_calls(calls[:1]) or calls[0])
                calls.clear()

    def finish(self) -> None:
        """All sequences end here; say what the caller should know."""
        for request in list(self._begun):
            self.end(request)
        if self._left_out:
            told = f"{self._left_out} samples were left out: the others take {self._bytes} bytes (most_bytes)"
            warn(f"record_inputs: {told}", CompressionWarning, stacklevel=4)
        for names in self._alike:
            told = f"{' and '.join(names)} have the same inputs and outputs, so their samples cannot be told apart"
            warn(f"record_inputs: {told}: record each from a folder of its own", CompressionWarning, stacklevel=4)
        if not len(self) and not self._alike:
            warn(
                f"record_inputs: no model of {self._source} was run in Python. openvino-genai's pipelines run in C++, "
                "where nothing can be recorded: run the same folder with optimum-intel, or give text with --data",
                CompressionWarning,
                stacklevel=4,
            )

    def _keep(self, part: _Part, sample: dict[str, Array]) -> None:
        """Write a sample; of more than are wanted, each has the same chance to be kept."""
        part.seen += 1
        place = len(part.files)
        if place >= self._most_samples:
            place = int(part.random.integers(part.seen))
        if place >= self._most_samples:
            return
        file = self._folder.path / Path(part.name).with_suffix("") / f"{place:05}.npz"
        before = file.stat().st_size if place < len(part.files) else 0
        size = sum(array.nbytes for array in sample.values())
        if self._bytes - before + size > self._most_bytes:
            self._left_out += 1
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **sample)  # type: ignore[arg-type]
        except OSError as error:
            raise cannot_write(self._folder.path, error) from error
        self._bytes += file.stat().st_size - before
        if place == len(part.files):
            part.files.append(file)


def _end_of_request(recorded: weakref.ref[RecordedInputs], part: _Part, calls: list[dict[str, Array]]) -> None:
    """A request that goes takes its state along."""
    alive = recorded()
    if alive is not None:
        alive._end_of(part, calls)


@by_name
@contextmanager
def record_inputs(
    folder: Any, *, most_samples: int = _MOST_SAMPLES, most_bytes: int = _MOST_BYTES
) -> Iterator[RecordedInputs]:
    """Record the inputs of the models in `folder` that are run in this process while the block runs.

    Sequences that a model with a cache reads step by step become one sample each (see `joined_calls`).

    Args:
        folder: as exporters write it, one model or several; what is compiled may have been given other shapes.
        most_samples: kept of each model, 128; of more, a fair choice.
        most_bytes: of all samples together, in files of a temporary folder; 4 GiB.

    Raises:
        ModelError: the folder holds no model.
        OptionError: what is given is no folder, or a limit cannot be.
        WorkError: the temporary folder cannot be written.
    """
    source: Path = PATH.parse("folder", folder)
    if not source.is_dir():
        raise OptionError(f"folder: {source} is no folder; it is that of the models")
    samples, size = (
        count(1).parse("most_samples", most_samples),
        count(1 << 20, 1 << 48).parse("most_bytes", most_bytes),
    )
    recorded = RecordedInputs(source, samples, size)
    with _hooked(recorded):
        yield recorded
    recorded.finish()


@contextmanager
def _hooked(recorded: RecordedInputs) -> Iterator[None]:
    """While the block runs, requests tell what they are given.

    `CompiledModel.__call__` and `infer_new_request` go through `InferRequest.infer`. The inputs are read from the
    request's own tensors once it has them, whatever they were given as: an inference does not change them.
    """
    request, queue = ov.InferRequest, ov.AsyncInferQueue
    infer, start, reset, queued = request.infer, request.start_async, request.reset_state, queue.start_async

    def inferring(self: Any, *given: Any, **named: Any) -> Any:
        results = infer(self, *given, **named)
        recorded.add(self)
        return results

    def starting(self: Any, *given: Any, **named: Any) -> Any:
        # While a request runs its tensors cannot be asked for, so this one is waited for.
        results = start(self, *given, **named)
        self.wait()
        recorded.add(self)
        return results

    def resetting(self: Any) -> Any:
        recorded.end(self)
        return reset(self)

    def queuing(self: Any, *given: Any, **named: Any) -> Any:
        number = self.get_idle_request_id()
        results = queued(self, *given, **named)
        self.wait_all()
        recorded.add(self[number])
        return results

    request.infer, request.start_async, request.reset_state = inferring, starting, resetting
    queue.start_async = queuing
    try:
        yield
    finally:
        request.infer, request.start_async, queue.start_async = infer, start, queued
        del request.reset_state  # it is its base's


def _input_of(request: Any, number: int) -> Array:
    """A copy of what a request was given for one input."""
    return np.array(tensor_values(request.get_input_tensor(number)))


SEQUENCE_INPUTS = ("input_ids", "decoder_input_ids", "inputs_embeds")
"""Inputs whose second axis is the sequence's."""
_BEAMS = "beam_idx"
_MASK = "attention_mask"

Call = Mapping[str, Array]


def joined_calls(calls: Sequence[Call]) -> dict[str, Array] | None:
    """One call for all of a sequence's; None where they do not fit together.

    Args:
        calls: inputs by name, in order; at least one. Their arrays are not changed.
    """
    first = calls[0]
    lead = next((name for name in SEQUENCE_INPUTS if name in first and first[name].ndim >= 2), None)
    if len(calls) == 1 or lead is None:
        return {**first, **_beams(first, first)} if len(calls) == 1 else None
    lengths = [call[lead].shape[1] for call in calls]
    joined: dict[str, Array] = {}
    for name in first:
        if name == _BEAMS:
            continue
        parts = [call[name] for call in calls]
        if name == _MASK and parts[-1].ndim == 2 and parts[-1].shape[1] >= sum(lengths):
            joined[name] = parts[-1]
            continue
        axis = _axis(name, parts, lengths)
        if axis is not None:
            joined[name] = _in_turn(parts, axis, calls)
        elif len({part.shape for part in parts}) == 1:
            joined[name] = parts[-1]
        else:
            given = [part for part in parts if part.size]
            if len(given) != 1:
                return None
            joined[name] = given[0]  # an image's features, given with the prompt alone
    return {name: joined[name] for name in first if name in joined} | _beams(calls[-1], first)


def _beams(last: Call, first: Call) -> dict[str, Array]:
    """Every row its own: nothing is read from the cache."""
    return {_BEAMS: np.arange(last[_BEAMS].size, dtype=last[_BEAMS].dtype)} if _BEAMS in first else {}


def _axis(name: str, parts: Sequence[Array], lengths: Sequence[int]) -> int | None:
    """The axis of an input that is as long as each step; None where there is none."""
    rank = parts[0].ndim
    if name.startswith("encoder") or any(part.ndim != rank for part in parts):
        return None
    usual: tuple[int, ...] = (rank - 1,) if "position" in name else (1, rank - 1)
    others: list[tuple[int, ...]] = [tuple(part.shape) for part in parts]
    for axis in (*usual, *range(rank)):
        rest = {shape[:axis] + shape[axis + 1 :] for shape in others}
        if axis < rank and [shape[axis] for shape in others] == list(lengths) and len(rest) == 1:
            return int(axis)
    return None


def _in_turn(parts: Sequence[Array], axis: int, calls: Sequence[Call]) -> Array:
    """The parts one after another; before each, what the rows have read so far goes where the beams went."""
    batch = calls[0][_BEAMS].size if _BEAMS in calls[0] else 0
    rows = next((place for place in range(parts[0].ndim) if place != axis and parts[0].shape[place] == batch), None)
    read = parts[0]
    for part, call in zip(parts[1:], calls[1:], strict=True):
        if rows is not None and _BEAMS in call:
            read = np.take(read, call[_BEAMS].reshape(-1), axis=rows)
        read = np.concatenate((read, part), axis=axis)
    return read
