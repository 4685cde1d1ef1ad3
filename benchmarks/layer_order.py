"""Whether two written models are the same but for the order in which their layers are written.

Each layer has a digest of all that decides its values: its own description, a constant's bytes, and the digests of what
it reads, port by port, down to the parameters. So layers of equal digests compute the same from the same inputs, and
two models with equally many layers of each digest are one graph. Inputs and outputs must come in the same order.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

GENERATED = re.compile(r"\b[A-Z]\w*_\d+\b|\bModel\d+\b")
"""Names that OpenVINO made up: their numbers count from the start of the process."""
_WHERE = ("offset", "size")
_INNER = ("internal_layer_id", "from-layer", "to-layer")


def same_but_for_order(one: Path, other: Path) -> bool:
    """Whether two models (.xml, with their .bin) are the same graph with the same constants."""
    sizes = [xml.with_suffix(".bin").stat().st_size for xml in (one, other)]
    return sizes[0] == sizes[1] and _described(one) == _described(other)


def _described(xml: Path) -> tuple[Counter[str], list[str], list[str]]:
    root = ElementTree.parse(xml).getroot()
    with xml.with_suffix(".bin").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        digests = _digests(root, data)
    ends = [
        digests[layer.attrib["id"]]
        for layer in root.findall("layers/layer")
        if layer.attrib["type"] in ("Parameter", "Result")
    ]
    rest = [_text(part) for part in root if part.tag not in ("layers", "edges")]
    return Counter(digests.values()), ends, rest


def _digests(graph: Any, data: mmap.mmap) -> dict[str, str]:
    """Of a model's or a body's layers, by their numbers; each layer comes after those that it reads."""
    inputs: dict[str, list[tuple[int, str, str]]] = {}
    for edge in graph.findall("edges/edge"):
        read = edge.attrib
        inputs.setdefault(read["to-layer"], []).append((int(read["to-port"]), read["from-layer"], read["from-port"]))
    found: dict[str, str] = {}
    for layer in graph.findall("layers/layer"):
        number = layer.attrib["id"]
        reads = [(port, found[source], output) for port, source, output in sorted(inputs.get(number, []))]
        found[number] = _hash(_own(layer, data), repr(reads))
    return found


def _own(layer: Any, data: mmap.mmap) -> str:
    """All of a layer but what it reads."""
    words = [_text(layer, "id")]
    bodies = {part.tag: _digests(part, data) for part in layer if part.find("layers") is not None}
    for part in layer:
        if part.tag in bodies:
            words.append(f"{part.tag}{sorted(bodies[part.tag].values())}")
        elif part.tag.endswith(("port_map", "back_edges")):
            body = bodies[next(tag for tag in bodies if tag.startswith(part.tag.partition("_")[0]) or tag == "body")]
            words += [f"{part.tag}{_with_digests(one.attrib, body)}" for one in part]
        elif part.tag == "data" and layer.attrib["type"] == "Const":
            first = int(part.attrib["offset"])
            held = hashlib.sha256(data[first : first + int(part.attrib["size"])]).hexdigest()
            words.append(_text(part, *_WHERE) + held)
        else:
            words.append(_text(part))
    return "\n".join(words)


def _with_digests(attributes: Mapping[str, str], body: Mapping[str, str]) -> list[tuple[str, str]]:
    """A line of a port map, with the inner layers' digests in place of their numbers."""
    return sorted((key, body[value] if key in _INNER else value) for key, value in attributes.items())


def _text(element: Any, *left_out: str) -> str:
    """An element's own words and, but for a layer, those of all in it."""
    own = sorted((key, GENERATED.sub("", value)) for key, value in element.attrib.items() if key not in left_out)
    inner = [] if element.tag == "layer" else [_text(part) for part in element]
    return f"{element.tag}{own}{GENERATED.sub('', (element.text or '').strip())}{inner}"


def _hash(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
