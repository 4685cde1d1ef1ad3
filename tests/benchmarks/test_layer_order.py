"""Models that are the same but for the order of their layers are told from models that are not."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from benchmarks.layer_order import same_but_for_order


@pytest.fixture
def xml(tmp_path: Path) -> Path:
    x = ops.parameter([1, 4], np.float32, name="x")
    a, b = (ops.constant(np.arange(4, dtype=np.float32) + first, name=name) for name, first in (("a", 0), ("b", 9)))
    total = ops.concat([ops.multiply(x, a, name="times a"), ops.multiply(x, b, name="times b")], axis=1)
    ov.save_model(ov.Model([total], [x], "m"), tmp_path / "one.xml", compress_to_fp16=False)
    return tmp_path / "one.xml"


def edited(xml: Path, *, order: bool = False, values: bool = False, axis: bool = False) -> Path:
    """The model with the layers that read a and b, and those two, in the other order; with the two's values exchanged;
    with another axis."""
    tree = ElementTree.parse(xml)
    layers = tree.getroot().find("layers")
    assert layers is not None
    named = {layer.attrib["name"]: layer for layer in layers}
    if order:
        first, second = ("a", "times a"), ("b", "times b")
        for layer in [named[name] for name in (*second, *first)]:
            layers.remove(layer)
            layers.insert(len(layers) - 2, layer)
    if values:
        places = [named[name].find("data") for name in "ab"]
        one, other = (place.attrib["offset"] for place in places if place is not None)
        for place, offset in zip(places, (other, one), strict=True):
            assert place is not None
            place.set("offset", offset)
    if axis:
        data = next(layer for layer in layers if layer.attrib["type"] == "Concat").find("data")
        assert data is not None
        data.set("axis", "-1")
    other_xml = xml.with_name("other.xml")
    tree.write(other_xml)
    other_xml.with_suffix(".bin").write_bytes(xml.with_suffix(".bin").read_bytes())
    return other_xml


def test_another_order_is_the_same_model(xml: Path) -> None:
    other = edited(xml, order=True)
    names = [ElementTree.parse(one).getroot().findall("layers/layer")[1].attrib["name"] for one in (xml, other)]
    assert names[0] != names[1]
    assert same_but_for_order(xml, other)


@pytest.mark.parametrize("change", ["values", "axis"])
def test_other_values_and_attributes_are_not(xml: Path, change: str) -> None:
    assert same_but_for_order(xml, edited(xml))
    assert not same_but_for_order(xml, edited(xml, order=True, **{change: True}))
