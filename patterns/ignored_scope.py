"""The ignored scope: which operations the caller wants left alone, in NNCF's terms.

    names       friendly names of operations, or of the constants themselves; of several constants of one name the first
                is called so, the others as the report calls them (`name#2`)
    patterns    regular expressions, matched from the start of a name (as `re.match` does)
    types       operation types, "MatMul"
    subgraphs   every operation on a path from one of `inputs` to one of `outputs`

With `validate` (the default) a rule that matches nothing in the model is an error, for it is most likely a misspelling.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from types import NoneType
from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError, one_line
from ov_weight_compression.ir_utils.option_kinds import OptionKind, flag, shown
from ov_weight_compression.patterns.graphs import Graph

_MOST = 1_000_000


@dataclass(frozen=True)
class Subgraph:
    """All operations on the paths from any of `inputs` to any of `outputs`, both ends included; friendly names."""

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class IgnoredScope:
    """What to leave alone. A weight is ignored if any operation that uses it is, or the constant itself."""

    names: Sequence[str] = ()
    patterns: Sequence[str] = ()
    types: Sequence[str] = ()
    subgraphs: Sequence[Subgraph] = ()
    validate: bool = True

    @classmethod
    def of(cls, value: object) -> IgnoredScope | None:
        """Read a scope from None, an `IgnoredScope` (ours or NNCF's), a dict of its fields, a name or a list of names.

        Raises:
            OptionError: the value is none of these, or a field does not exist or has the wrong type.
        """
        found: IgnoredScope | None = SCOPE.parse("ignored_scope", value)
        return found

    @classmethod
    def _of(cls, value: Any) -> IgnoredScope | None:
        if value is None:
            return value
        if isinstance(value, str):
            return cls(names=(value,))
        known, values = [field.name for field in fields(cls)], value
        if isinstance(value, Mapping):
            for key in value:
                if key not in known:
                    raise OptionError(f"ignored_scope: unknown field {shown(key)}; it has {', '.join(known)}")
        elif hasattr(value, "names") and hasattr(value, "patterns"):
            values = {name: getattr(value, name) for name in known if hasattr(value, name)}
        elif isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
            values = {"names": value}
        else:
            raise TypeError
        subgraphs = values.get("subgraphs")
        if isinstance(subgraphs, str) or not isinstance(subgraphs, (Iterable, NoneType)):
            raise OptionError(f"ignored_scope: subgraphs must be a list, got {shown(subgraphs)}")
        return cls(
            names=_strings("names", values.get("names")),
            patterns=_strings("patterns", values.get("patterns")),
            types=_strings("types", values.get("types")),
            subgraphs=tuple(_subgraph(subgraph) for subgraph in _some("subgraphs", subgraphs)),
            validate=flag().parse("ignored_scope: validate", values.get("validate", True)),
        )

    def resolve(self, graphs: Iterable[Graph], later: Collection[str] = ()) -> dict[str, str]:
        """The friendly name of every operation in the scope, and the rule that put it there; without those of its names
        that are left for `later`.

        Raises:
            OptionError: a rule matches nothing (unless `validate` is off), or a pattern is no regular expression.
        """
        graphs = list(graphs)
        named = {
            node.get_friendly_name(): kind
            for graph in graphs
            for node, kind in zip(graph.operations, graph.types, strict=True)
        }
        matched = [(f"name '{name}'", [name] if name in named else []) for name in self.names if name not in later]
        for pattern in self.patterns:
            try:
                expression = re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                reason = one_line(str(error), 80)
                raise OptionError(
                    f"ignored_scope: pattern {shown(pattern)} is no regular expression: {reason}"
                ) from None
            matched.append((f"pattern '{pattern}'", [name for name in named if expression.match(name)]))
        for kind in self.types:
            matched.append((f"type '{kind}'", [name for name, own in named.items() if own == kind]))
        for subgraph in self.subgraphs:
            rule = f"subgraph from {list(subgraph.inputs)} to {list(subgraph.outputs)}"
            matched.append((rule, [name for graph in graphs for name in _between(graph, subgraph)]))
        self.check_found([rule for rule, names in matched if not names])
        rules: dict[str, str] = {}
        for rule, names in matched:
            for name in names:
                rules.setdefault(name, rule)
        return rules

    def check_found(self, missing: Sequence[str]) -> None:
        """Raise OptionError where rules match nothing, unless `validate` is off."""
        if missing and self.validate:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise OptionError(
                f"ignored_scope: nothing in the model matches {one_line(missing[0], 100)}{more}. "
                "Correct it, or pass validate=False to let rules match nothing"
            )


def _between(graph: Graph, subgraph: Subgraph) -> list[str]:
    """Names of the operations that some input leads to and that lead to some output."""
    names = {node: node.get_friendly_name() for node in graph.operations}
    after = {node for node, name in names.items() if name in subgraph.inputs}
    before = {node for node, name in names.items() if name in subgraph.outputs}
    for node in names:
        if any(value.get_node() in after for value in node.input_values()):
            after.add(node)
    for node in reversed(names):
        if node in before:
            before.update(value.get_node() for value in node.input_values())
    return [name for node, name in names.items() if node in after and node in before]


def _some(field: str, values: Any) -> tuple[Any, ...]:
    """The entries of a list, or of anything else that ends."""
    found = tuple(islice(values if values is not None else (), _MOST + 1))
    if len(found) > _MOST:
        raise OptionError(f"ignored_scope: {field} holds more than {_MOST} entries")
    return found


def _strings(field: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, (Iterable, NoneType)):
        raise OptionError(f"ignored_scope: {field} must be a list of strings, got {shown(values)}")
    result = _some(field, values)
    for value in result:
        if not isinstance(value, str):
            raise OptionError(f"ignored_scope: {field} must be a list of strings, it holds {shown(value)}")
    return tuple(map(str, result))


def _subgraph(value: Any) -> Subgraph:
    if isinstance(value, Mapping):
        inputs, outputs = value.get("inputs", ()), value.get("outputs", ())
    elif hasattr(value, "inputs") and hasattr(value, "outputs"):
        inputs, outputs = value.inputs, value.outputs
    else:
        raise OptionError(f"ignored_scope: a subgraph has inputs and outputs, got {shown(value)}")
    return Subgraph(_strings("subgraph inputs", inputs), _strings("subgraph outputs", outputs))


SCOPE = OptionKind("an IgnoredScope, a dict or a list of names", IgnoredScope._of, "Any")
