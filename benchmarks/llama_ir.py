"""Llama-shaped IRs of any size with random weights: ``python -m benchmarks.llama_ir 1.2 -o FOLDER``.

The weights are heavy-tailed like trained ones: Student's t with five degrees of freedom, row gains spread around the
usual 1/sqrt(in), one input channel in 256 eight times as large. They are made while the file is written, from a block
of noise that is read from another place for every weight (``make_postponed_constant``), so that building a model takes
the memory of its largest matrix and little more than the disk's time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino.utils import make_postponed_constant

from benchmarks.llama_graph import Builder, Shape

SHAPES = {
    "0.1": Shape(hidden=768, layers=12, intermediate=2048, heads=12, kv_heads=4, vocabulary=32000, head=64),
    "0.5": Shape(hidden=1280, layers=18, intermediate=5120, heads=20, kv_heads=5, vocabulary=64000, head=64),
    "1.2": Shape(hidden=2048, layers=16, intermediate=8192, heads=32, kv_heads=8, vocabulary=128256, head=64),
    "3.2": Shape(hidden=3072, layers=28, intermediate=8192, heads=24, kv_heads=8, vocabulary=128256, head=128),
}
VERSION = 1  # of what is built; a stamp with another one is built again
NOISE = 1 << 24  # numbers in the block of noise, 64 MB
BLOCK = 1 << 22  # numbers made at a time
OUTLIERS = 256


class Noise:
    """Seeded heavy-tailed numbers, as many as wanted from one block."""

    def __init__(self, seed: int, count: int) -> None:
        generator = np.random.Generator(np.random.SFC64(seed))
        normal = generator.standard_normal(count, np.float32)
        chi = generator.standard_gamma(2.5, count, np.float32)
        self.values = normal * np.sqrt(np.float32(1.5) / chi)  # Student's t(5), scaled to variance 1

    def matrix(self, name: str, rows: int, columns: int, target: NDArray[np.float16]) -> None:
        """Fills ``target [rows, columns]`` with the weights that belong to the name."""
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        gain = np.full(columns, columns**-0.5, np.float32)
        gain[generator.permutation(columns)[: max(1, columns // OUTLIERS)]] *= 8
        step = max(1, min(BLOCK, len(self.values)) // columns)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            offset = int(generator.integers(len(self.values) - count * columns + 1))
            block = self.values[offset : offset + count * columns].reshape(count, columns)
            level = generator.lognormal(0.0, 0.3, (count, 1)).astype(np.float32)
            target[start : start + count] = block * gain * level


def postponed_weights(noise: Noise) -> Callable[[str, tuple[int, ...]], ov.Node]:
    """Constants that are made when they are written and then forgotten."""

    def weight(name: str, shape: tuple[int, ...]) -> ov.Node:
        def maker() -> ov.Tensor:
            tensor = ov.Tensor(ov.Type.f16, ov.Shape(shape))
            noise.matrix(name, shape[0], shape[1], tensor.data)
            return tensor

        return make_postponed_constant(ov.Type.f16, ov.Shape(shape), maker)

    return weight


def mark_decompression(xml: Path) -> None:
    """Gives each Convert from f16 the ``decompression`` mark of exported models; the binding cannot set it."""
    tree = ElementTree.parse(xml)
    for layer in tree.iterfind("layers/layer[@type='Convert']"):
        port = layer.find("input/port")
        if port is not None and port.get("precision") == "FP16" and layer.find("rt_info") is None:
            info = ElementTree.Element("rt_info")
            ElementTree.SubElement(info, "attribute", name="decompression", version="0")
            layer.insert(1, info)
    tree.write(xml, xml_declaration=True, encoding="utf-8")


def build(shape: Shape, folder: Path, seed: int = 0, noise: int = NOISE) -> Path:
    """Writes the IR into ``folder``, or leaves the one that is there from the same shape, seed and version.
    ``noise`` is the length of the block that all weights are cut from.

    Returns the .xml. The stamp is written last, so an interrupted build is done again.
    """
    xml, stamp = folder / "openvino_model.xml", folder / "stamp.json"
    wanted: dict[str, Any] = {**dataclasses.asdict(shape), "seed": seed, "noise": noise, "version": VERSION}
    if stamp.exists() and xml.exists() and json.loads(stamp.read_text()) == wanted:
        return xml
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    model = Builder(shape, postponed_weights(Noise(seed, noise))).build()
    ov.save_model(model, xml, compress_to_fp16=False)
    mark_decompression(xml)
    stamp.write_text(json.dumps(wanted))
    return xml


def shape_of(text: str) -> Shape:
    """A shape from its name in SHAPES, or from seven numbers with ``x`` between, in the order of ``Shape``'s fields."""
    if text in SHAPES:
        return SHAPES[text]
    numbers = text.split("x")
    if len(numbers) != 7 or not all(number.isdigit() for number in numbers):
        fields = "x".join(field.name for field in dataclasses.fields(Shape))
        raise ValueError(f"size {text!r}: one of {', '.join(SHAPES)}, or {fields}")
    return Shape(*map(int, numbers))


def main() -> None:
    """Builds one model."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_ir", description=__doc__)
    parser.add_argument("size", type=shape_of, help=f"{', '.join(SHAPES)} (billions of parameters), or a shape")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the IR")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    xml = build(arguments.size, arguments.output, arguments.seed)
    size = xml.with_suffix(".bin").stat().st_size
    print(f"{xml}: {arguments.size.parameters / 1e9:.3f} B parameters, {size / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
