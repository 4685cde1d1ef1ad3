"""Which tensor of a checkpoint belongs where in a graph that somebody has exported: by name, by value, by order.

    own name       `self.model.layers.0.mlp.up_proj.weight` is the tensor of that name, but for what wraps the model
    layer's name   what reads the constant is called `__module.model.layers.0.input_layernorm/aten::mul/Multiply`
    value          the constant has a tensor's numbers already, as f16 rounds them
    order          each block has one tensor of a shape that is left, and as many constants are left in graph order

Each takes what the ones before it left, and shapes must agree, ones aside. Names alone are not enough: two constants
that claim one tensor get it by neither's name. Whoever asks decides what to make of what is left on either side.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import openvino as ov

from ov_weight_compression.ir_utils.types import FLOAT_TYPES, sizes_of
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed

Shape = tuple[int, ...]
SameValues = Callable[["Place", str], bool]
Numbered = Sequence[tuple[int, "Place"]]

_STEPPED_OVER = frozenset({"Convert", "Reshape", "Transpose", "Unsqueeze", "Squeeze"})
_WRAPPERS = ("model.", "transformer.", "base_model.", "bert.", "roberta.", "decoder.", "encoder.")
_BLOCK = re.compile(r"\.(\d+)\.")
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "proj_out.weight")
_TABLES = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight")


@dataclass(frozen=True, eq=False)
class Place:
    """A float constant of a graph."""

    node: ov.Node
    name: str
    shape: Shape
    type: str
    own_name: str
    """What its tensor would be called, by its own name."""
    layer_names: tuple[str, ...]
    """And by those of the operations that read it."""


@dataclass(frozen=True, eq=False)
class Match:
    """A constant and the tensor that belongs there."""

    place: Place
    tensor: str
    shape: Shape
    """The tensor's."""
    rule: str
    turned: bool = False
    """The constant is the tensor with its last two axes exchanged."""


def places_of(model: ov.Model) -> list[Place]:
    """Every float constant of more than one element, bodies included, in the order in which they are read: constants
    themselves come in any order."""
    found = []
    for graph in graphs_of(model):
        for node, kind in graph.constants:
            shape = sizes_of(node.shape)
            if kind not in FLOAT_TYPES or is_postponed(node) or not any(size > 1 for size in shape):
                continue
            name, readers = node.get_friendly_name(), _readers(node)
            first = min((graph.position[one] for one in readers if one in graph.position), default=graph.position[node])
            place = Place(node, name, shape, kind, _plain(name), tuple(_by_layer(readers)))
            found.append((first, place))
    return [place for _, place in sorted(found, key=lambda one: one[0])]


def match_tensors(
    places: Sequence[Place], tensors: Mapping[str, Shape], same: SameValues
) -> tuple[list[Match], list[Place], list[str]]:
    """Pair constants with tensors.

    Args:
        places: the graph's constants.
        tensors: shapes by name.
        same: whether a constant has a tensor's values.

    Returns:
        The pairs in graph order, the constants that are left, and the tensors that are left.
    """
    found: dict[int, Match] = {}
    for step in (_own_names, _layer_names, partial(_values, same), _orders, _tied):
        left = [number for number in range(len(places)) if number not in found]
        taken = {match.tensor for match in found.values()}
        rest = {name: shape for name, shape in tensors.items() if name not in taken or step is _tied}
        found.update(step([(number, places[number]) for number in left], rest))
    matches = _oriented([found[number] for number in sorted(found)])
    taken = {match.tensor for match in matches}
    return (
        matches,
        [place for number, place in enumerate(places) if number not in found],
        [name for name in tensors if name not in taken],
    )


def _own_names(places: Numbered, tensors: Mapping[str, Shape]) -> dict[int, Match]:
    return _claimed(((number, place, (place.own_name,)) for number, place in places), tensors, "own name")


def _layer_names(places: Numbered, tensors: Mapping[str, Shape]) -> dict[int, Match]:
    return _claimed(((number, place, place.layer_names) for number, place in places), tensors, "layer's name")


def _claimed(
    wishes: Iterable[tuple[int, Place, tuple[str, ...]]], tensors: Mapping[str, Shape], rule: str
) -> dict[int, Match]:
    """What each place claims; nothing of a tensor that several claim."""
    ends: dict[str, list[str]] = defaultdict(list)
    for name in tensors:
        parts = name.split(".")
        for begin in range(len(parts)):
            ends[".".join(parts[begin:])].append(name)
    found = {}
    for number, place, names in wishes:
        for name in names:
            tensor = _named(name, tensors, ends)
            if tensor is not None and _fits(place.shape, tensors[tensor]):
                found[number] = Match(place, tensor, tensors[tensor], rule)
                break
    times = Counter(match.tensor for match in found.values())
    return {number: match for number, match in found.items() if times[match.tensor] == 1}


def _named(name: str, tensors: Mapping[str, Shape], ends: Mapping[str, list[str]]) -> str | None:
    """The tensor of this name, with or without what wraps the model on either side."""
    shorter = (name.removeprefix(wrapper) for wrapper in _WRAPPERS if name.startswith(wrapper))
    for one in (name, *shorter):
        if one in tensors:
            return one
        if "." in one and len(ends.get(one, ())) == 1:
            return ends[one][0]
    return None


def _plain(name: str) -> str:
    """An exporter's name for a constant as the tensor would be called."""
    plain = name.removesuffix("_compressed").removeprefix("self.")
    return re.sub(r"\._openvino_orig_(weight|bias)$", r".\1", plain)


def _readers(node: ov.Node) -> list[ov.Node]:
    """The operations that read a constant, behind what only turns it."""
    found: list[ov.Node] = []
    front = [node]
    while front:
        for target in front.pop().output(0).get_target_inputs():
            reader = target.get_node()
            (front if reader.get_type_name() in _STEPPED_OVER else found).append(reader)
    return found


def _by_layer(readers: Iterable[ov.Node]) -> Iterable[str]:
    """The names that the operations which read a constant suggest."""
    for reader in readers:
        path = _path(reader.get_friendly_name())
        if path:
            own = "bias" if reader.get_type_name() in ("Add", "Subtract") else "weight"
            yield f"{path}.{own}"
            if path.endswith("self_attn"):  # gpt-oss
                yield f"{path}.sinks"
            if f".{path}".endswith(".decoder"):  # a head whose bias is its parent's (BERT's)
                yield f"{path.removesuffix('decoder')}{own}"


def _path(name: str) -> str:
    """The layer's path in an operation's name: in front of the first slash, or between them where it begins so."""
    name = name.removeprefix("__module.")
    if name.startswith("/"):
        return ".".join(name.strip("/").split("/")[:-1])
    return name.partition("/")[0] if "/" in name else ""


def _fits(place: Shape, tensor: Shape) -> bool:
    """Whether the shapes agree, ones aside, perhaps transposed."""
    return _squeezed(place) in (_squeezed(tensor), _transposed(_squeezed(tensor)))


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _transposed(shape: Shape) -> Shape:
    """With the last two axes exchanged."""
    return shape if len(shape) < 2 else (*shape[:-2], shape[-1], shape[-2])


def _key(shape: Shape) -> Shape:
    """Equal for shapes that agree."""
    squeezed = _squeezed(shape)
    return min(squeezed, _transposed(squeezed))


def _values(same: SameValues, places: Numbered, tensors: Mapping[str, Shape]) -> dict[int, Match]:
    """Constants that have a tensor's values already."""
    by_shape: dict[Shape, list[str]] = defaultdict(list)
    for name, shape in tensors.items():
        by_shape[_squeezed(shape)].append(name)
    found = {}
    for number, place in places:
        equal = [name for name in by_shape[_squeezed(place.shape)] if same(place, name)]
        if len(equal) == 1:
            found[number] = Match(place, equal[0], tensors[equal[0]], "value")
            by_shape[_squeezed(place.shape)].remove(equal[0])
    return found


def _orders(places: Numbered, tensors: Mapping[str, Shape]) -> dict[int, Match]:
    """Matrices of a shape of which each block has one tensor left, the same in each, and of which as many constants are
    left. Not vectors: exporters compute with those (OPT's biases have a scale in them), and nothing would show it.
    """
    left: dict[Shape, list[tuple[int, Place]]] = defaultdict(list)
    for number, place in places:
        if len(_squeezed(place.shape)) > 1:
            left[_key(place.shape)].append((number, place))
    wanted: dict[Shape, list[tuple[int, str, str]]] = defaultdict(list)
    for name, shape in tensors.items():
        block = _BLOCK.search(name)
        number = -1 if block is None else int(block[1])
        wanted[_key(shape)].append((number, _BLOCK.sub(".", name, count=1), name))
    found = {}
    for key, here in left.items():
        blocks = sorted(wanted[key])
        numbers = [number for number, _, _ in blocks]
        alike = len({stem for _, stem, _ in blocks}) == 1 and len(set(numbers)) == len(numbers)
        if not blocks or len(blocks) != len(here) or not alike:
            continue
        for (number, place), (_, _, name) in zip(here, blocks, strict=True):
            found[number] = Match(place, name, tensors[name], "order")
    return found


def _tied(places: Numbered, tensors: Mapping[str, Shape]) -> dict[int, Match]:
    """A head that the checkpoint does not have, because it is the table of embeddings."""
    tables = [name for name in tensors if name.endswith(_TABLES)]
    found = {}
    for number, place in places:
        names = (place.own_name, *place.layer_names)
        heads = [name for name in names if name.endswith(_HEADS)]
        absent = heads and not any(name.endswith(_HEADS) for name in tensors)
        if absent and len(tables) == 1 and _squeezed(place.shape) == _squeezed(tensors[tables[0]]):
            found[number] = Match(place, tables[0], tensors[tables[0]], "tied to the embeddings")
    return found


def _oriented(matches: Sequence[Match]) -> list[Match]:
    """Say of each pair whether it is transposed. Of a square one the shapes do not tell: there it is as in the others
    whose constants have names like its own."""
    votes: dict[str, set[bool]] = defaultdict(set)
    for match in matches:
        place, tensor = _squeezed(match.place.shape), _squeezed(match.shape)
        if place != _transposed(place):
            votes[_stem(match.place.name)].add(place != tensor)
    return [replace(match, turned=_is_turned(match, votes[_stem(match.place.name)])) for match in matches]


def _is_turned(match: Match, votes: set[bool]) -> bool:
    place, tensor = _squeezed(match.place.shape), _squeezed(match.shape)
    if len(place) < 2 or match.rule in ("own name", "value"):
        return place != tensor
    return place != tensor if place != _transposed(place) else votes == {True} or (not votes and _turns(match.place))


def _stem(name: str) -> str:
    """A name without its number."""
    return name.removesuffix("_compressed").rstrip("0123456789")


def _turns(place: Place) -> bool:
    """Whether an exporter called the constant after a Transpose that it has folded."""
    return place.name.startswith("Transpose")
