"""Rules: what particular weights get, by name, before `mode` decides for the rest. The first match wins.

    rules=[("*down_proj*", "int8_asym"),
           ("*experts*", {"mode": "int4_sym", "group_size": 32}),
           ("re:.*layers\\.[0-3]\\..*", "int8_sym"),
           ("*gate*", None)]

What a pattern may be is told in `patterns.matching`: a name as the report prints it, a wildcard, or `re:` and a regular
expression. None leaves the weight alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import group, parse_enum, shown, whole_from_text
from ov_weight_compression.passes.modes import Mode
from ov_weight_compression.patterns.matching import check_pattern

__all__ = ["Rule", "RulesLike", "parse_rule_text", "parse_rules"]

_MOST_RULES = 100_000


@dataclass(frozen=True)
class Rule:
    """One row: a pattern and what its weights get. `mode` None leaves them alone, `group_size` None is the mode's."""

    pattern: str
    mode: Mode | None
    group_size: int | None = None

    def __str__(self) -> str:
        target = "leave alone" if self.mode is None else self.mode.value
        group = "" if self.group_size is None else f":{self.group_size}"
        return f"{self.pattern}={target}{group}"


RulesLike: TypeAlias = Sequence["Rule | tuple[str, Any]"] | Mapping[str, Any]


def parse_rules(value: Any) -> tuple[Rule, ...]:
    """Rules from a list of pairs or a mapping.

    Raises:
        OptionError: a pair is none; an unknown mode or key; a regular expression that does not compile.
        Exception: of any kind where the value is no list (see `ir_utils.option_kinds`).
    """
    pairs = list(islice(value.items() if isinstance(value, Mapping) else value, _MOST_RULES + 1))
    if isinstance(value, (str, bytes, bytearray)) or len(pairs) > _MOST_RULES:
        raise ValueError
    return tuple(_parse_rule(f"rules[{number}]", pair) for number, pair in enumerate(pairs))


def _parse_rule(field: str, pair: Any) -> Rule:
    if isinstance(pair, Rule):
        own = pair.mode if pair.group_size is None else {"mode": pair.mode, "group_size": pair.group_size}
        return _parse_rule(field, (pair.pattern, own))
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        raise OptionError(f"{field}: expected a pair (pattern, mode), got {shown(pair)}")
    pattern, target = pair
    check_pattern(pattern)
    if target is None:
        return Rule(pattern, None)
    if not isinstance(target, Mapping):
        return Rule(pattern, parse_enum(Mode, target, field))
    unknown = sorted(set(map(str, target)) - {"mode", "group_size"})
    if unknown:
        raise OptionError(f"{field}: unknown key {shown(unknown[0])}; allowed are mode and group_size")
    if "mode" not in target:
        raise OptionError(f"{field}: the key 'mode' is missing from {shown(dict(target))}")
    size = target.get("group_size")
    mode = parse_enum(Mode, target["mode"], field)
    return Rule(pattern, mode, None if size is None else group().parse(f"{field} group_size", size))


def parse_rule_text(text: str) -> tuple[str, object]:
    """`PATTERN=MODE[:GROUP]` of the command line as a pair; `none` leaves alone.

    Raises:
        OptionError: there is no `=`, or the group is not a number.
    """
    pattern, sign, target = text.rpartition("=")  # a mode holds no "=", a name may
    if not sign or not pattern or not target:
        raise OptionError(f"--rule: expected PATTERN=MODE or PATTERN=MODE:GROUP, got {shown(text)}")
    mode, colon, size = target.partition(":")
    if mode.strip().lower() == "none":
        return pattern, None
    if not colon:
        return pattern, mode
    number = whole_from_text(size)
    if isinstance(number, str):
        raise OptionError(f"--rule: the group in {shown(text)} must be a whole number")
    return pattern, {"mode": mode, "group_size": number}
