"""A plugin for pytest, for an interpreter that has NNCF: whenever a test compresses a model, so does `compat`, and what
comes of both is noted, one line of JSON a call. The tests get NNCF's result, so that they go on to their next call.

    python -m pytest -p benchmarks.nncf_suite_child tests/…/test_weights_compression.py      CALLS=calls.jsonl

Nothing of NNCF's is imported before pytest asks for it, and nothing is changed but the function.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import openvino as ov

_ABSENT = ("torchvision", "tests.torch", "tests.onnx")
"""What the suite's helpers import for tests other than these, and nobody needs here."""
_DRAWS = 16
"""Random inputs on which the outputs' errors are measured."""
_now: dict[str, str] = {}


class _StandIn(ModuleType):
    """A module in which every name is a class that does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules that are not there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        wanted = any(name == root or name.startswith(f"{root}.") for root in _ABSENT)
        return importlib.util.spec_from_loader(name, self, is_package=True) if wanted else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


def pytest_configure(config: Any) -> None:
    """Put the function that calls both in NNCF's place, before any test module takes it by name."""
    sys.meta_path.append(_StandIns())
    import nncf
    import nncf.quantization
    import nncf.quantization.quantize_model as home

    both = _both(home.compress_weights)
    for module in (home, nncf.quantization, nncf):
        module.compress_weights = both


def pytest_runtest_setup(item: Any) -> None:
    """Remember which test is running."""
    _now["test"] = item.nodeid.split("::", 1)[1]


def _both(theirs: Callable[..., Any]) -> Callable[..., Any]:
    import functools

    @functools.wraps(theirs)
    def compress_weights(model: Any, **given: Any) -> Any:
        from ov_weight_compression.passes import compat

        given = {**given, **_readable(given.get("dataset"))}
        original, copy = model.clone(), model.clone()
        ours = _attempt(lambda: compat.compress_weights(copy, **given))
        their = _attempt(lambda: theirs(model, **given))
        _note(original, ours, their, given)
        if isinstance(their, Exception):
            raise their
        return their

    return compress_weights


def _readable(dataset: Any) -> dict[str, Any]:
    """The same data for both, where it can be read only once."""
    source = getattr(dataset, "_data_source", None)
    if isinstance(source, Iterator):
        dataset._data_source = list(source)
    return {} if dataset is None else {"dataset": dataset}


def _attempt(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        return error


def _note(original: Any, ours: Any, their: Any, given: dict[str, Any]) -> None:
    call: dict[str, Any] = {"test": _now["test"], "given": {name: _word(value) for name, value in given.items()}}
    for who, result in (("ours", ours), ("theirs", their)):
        if isinstance(result, Exception):
            call[who] = {"error": type(result).__name__, "message": str(result).split("\n")[0][:200]}
        else:
            call[who] = {"formats": _formats(result)}
    if "formats" in call["ours"] and "formats" in call["theirs"]:
        call["skips"] = _skips(original)
        call["errors"] = _errors(original, ours, their, given.get("dataset"))
    with open(os.environ["CALLS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(call) + "\n")


def _word(value: Any) -> str:
    text = str(getattr(value, "value", value))
    return text if len(text) < 60 else type(value).__name__


def _formats(model: Any) -> dict[str, str]:
    """Of every layer with a compressed weight: how that is stored."""
    from ov_weight_compression.patterns import find_compressed

    found: dict[str, str] = {}
    for one in find_compressed(model):
        one_group = one.group_axis is None or one.shape[one.group_axis] == one.group_size
        for layer in (consumer.name for consumer in one.consumers):  # equal weights share one chain here
            if "lora" not in f"{layer} {one.name}".lower():
                found[layer] = f"{one.storage}/{-1 if one_group else one.group_size}"
    return found


def _skips(model: Any) -> dict[str, str]:
    """Why this package leaves a layer's weight alone whatever is asked for."""
    from ov_weight_compression.patterns import find_weights
    from ov_weight_compression.patterns.graphs import graphs_of
    from ov_weight_compression.patterns.roles import follow

    reasons = {skip.name: skip.reason for skip in find_weights(model)[1]}
    main = graphs_of(model)[0]
    return {
        str(use.node.get_friendly_name()): reasons[node.get_friendly_name()]
        for node, _ in main.constants
        if node.get_friendly_name() in reasons
        for use in follow(main, node)
    }


def _errors(original: Any, ours: Any, their: Any, dataset: Any) -> dict[str, list[float]]:
    """The relative errors of both models' outputs, on random inputs and on the data; none where that does not run."""
    random = np.random.default_rng(0)
    inputs = {"random": [_made(original, random) for _ in range(_DRAWS)]}
    if hasattr(dataset, "get_inference_data"):
        sample = next(iter(dataset.get_inference_data()), None)
        if isinstance(sample, np.ndarray):
            inputs["data"] = [[sample.astype(inputs["random"][0][0].dtype)]]
    models = (original, ours, their)
    return {name: found for name, entry in inputs.items() if (found := _both_errors(models, entry))}


def _made(model: Any, random: np.random.Generator) -> list[Any]:
    """Inputs of a model: small ones, for some multiply what they read with itself, layer after layer."""
    made = []
    for node in model.get_parameters():
        sizes = [size.get_length() if size.is_static else 8 for size in node.get_output_partial_shape(0)]
        kind = np.dtype(node.get_output_element_type(0).to_dtype())
        values = random.normal(size=sizes) / 100 if kind.kind == "f" else random.integers(0, 2, sizes)
        made.append(values.astype(kind))
    return made


def _both_errors(models: Sequence[Any], inputs: list[list[Any]]) -> list[float] | None:
    outputs = []
    for model in models:
        try:
            compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
            found = [value for entry in inputs for value in compiled(entry).values()]
        except RuntimeError:
            return None
        outputs.append(np.concatenate([np.asarray(value, np.float64).reshape(-1) for value in found]))
    size = float(np.linalg.norm(outputs[0]))
    if not np.isfinite(size) or size == 0:
        return None
    return [float(np.linalg.norm(output - outputs[0])) / size for output in outputs[1:]]
