"""Feeding models, reading what became of them, and comparing them as files: what several rooms' tests need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc/self/maps")

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0, "KV_CACHE_PRECISION": "f32"}
LENGTH = 6
_NUMBERED = re.compile(rb'(names?="[A-Z][A-Za-z]+)_\d+')
_FREE = {
    "pixel_values": (1, 3, 32, 32),
    "encoder_hidden_states": (1, LENGTH, 64),
    "beam_idx": (1,),
    "cache_position": (4,),
}


def inputs_for(model: ov.Model) -> dict[str, Any]:
    """Inputs that a model accepts, the same every time; open axes are 1 for the batch and `LENGTH` otherwise."""
    random = np.random.default_rng(5)
    feed = {}
    for number, port in enumerate(model.inputs):
        name = port.get_any_name() if port.get_names() else port.get_node().get_friendly_name()
        shape = port.get_partial_shape()
        guess = _FREE.get(name, (1, *[LENGTH] * (len(shape) - 1))[: len(shape)])
        size = [dim.get_length() if dim.is_static else known for dim, known in zip(shape, guess, strict=True)]
        feed[number] = _values(name, port.get_element_type(), tuple(size), random)
    return feed


def _values(name: str, kind: ov.Type, size: tuple[int, ...], random: np.random.Generator) -> Any:
    if "mask" in name or kind == ov.Type.boolean:
        return np.ones(size, dtype=kind.to_dtype())
    if "position" in name:
        return np.broadcast_to(np.arange(size[-1]), size).astype(kind.to_dtype())
    if name in ("beam_idx", "token_type_ids"):
        return np.zeros(size, dtype=kind.to_dtype())
    if kind.is_integral():
        return random.integers(3, 60, size).astype(kind.to_dtype())
    return random.standard_normal(size).astype(kind.to_dtype())


def run(model: ov.Model | Path, feed: Mapping[Any, Any] | None = None) -> list[Any]:
    """The model's outputs in f32 arithmetic, from a fresh state."""
    read = ov.Core().read_model(model) if isinstance(model, Path) else model
    request = ov.Core().compile_model(read, "CPU", EXACT).create_infer_request()
    results = request.infer(inputs_for(read) if feed is None else feed)
    return [np.array(results[port]) for port in results]


def matrix_of(model: ov.Model, columns: int) -> Any:
    """The values `[columns, out]` of a layer's weight as the compiled model has them: what the identity gives."""
    return run(model, {0: np.eye(columns, dtype=np.float32)})[0]


def stored(model: ov.Model, folder: Path, name: str = "model") -> tuple[bytes, bytes]:
    """What `ov.save_model` writes: the .xml and the .bin. See `files_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, folder / f"{name}.xml")
    return files_of(folder / f"{name}.xml")


def files_of(xml: Path) -> tuple[bytes, bytes]:
    """An .xml and its .bin; without the running numbers that OpenVINO gives to operations that nobody named."""
    return _NUMBERED.sub(rb"\1", xml.read_bytes()), xml.with_suffix(".bin").read_bytes()


def layer_types(model: ov.Model, config: Mapping[str, Any] | None = None) -> list[str]:
    """How the layers of the compiled model read their weights, sorted: ["FullyConnected u4", "Gather u8"]."""
    compiled = ov.Core().compile_model(model, "CPU", dict(config or {}))
    types = []
    for node in compiled.get_runtime_model().get_ops():
        kind = node.get_rt_info()["layerType"].astype(str)
        if kind in ("FullyConnected", "Gather"):
            port = 1 if kind == "FullyConnected" else 0
            types.append(f"{kind} {node.get_input_element_type(port).get_type_name()}")
    return sorted(types)


def operations(model: ov.Model) -> list[str]:
    """Every operation's type in order, with the element type of its first output."""
    return [
        f"{node.get_type_name()} {node.get_output_element_type(0).get_type_name()}" if node.get_output_size() else ""
        for node in model.get_ordered_ops()
    ]


def constants(model: ov.Model) -> dict[str, ov.Node]:
    """The constants by name."""
    return {node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"}


def resident_of(path: Path) -> int:
    """Bytes of a file that are in this process's memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
