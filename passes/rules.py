"""Rules: what particular weights get, by name, before `mode` decides for the rest. The first match wins.

    rules=[("*down_proj*", "int8_asym"),
           ("*experts*", {"mode": "int4_sym", "group_size": 32}),
           ("re:.*layers\\.[0-3]\\..*", "int8_sym"),
           ("*gate*", None)]

What a pattern may be is told in `patterns.matching`. None leaves the weight alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes.modes import Mode, parse_enum
from ov_weight_compression.patterns.matching import check_pattern

__all__ = ["Rule", "check_group", "parse_rule_text", "parse_rules"]


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


def parse_rules(value: object) -> tuple[Rule, ...]:
    """Rules from a list of pairs or a mapping.

    Raises:
        OptionError: not a list of pairs; an unknown mode or key; a regular expression that does not compile.
    """
    if value is None:
        return ()
    pairs: object = value.items() if isinstance(value, Mapping) else value
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise OptionError(f"rules: expected a list of (pattern, mode) pairs, got {value!r}")
    return tuple(_parse_rule(number, pair) for number, pair in enumerate(pairs))


def _parse_rule(number: int, pair: object) -> Rule:
    field = f"rules[{number}]"
    if isinstance(pair, Rule):
        return pair
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        raise OptionError(f"{field}: expected a pair (pattern, mode), got {pair!r}")
    pattern, target = pair
    check_pattern(pattern)
    if target is None:
        return Rule(pattern, None)
    if not isinstance(target, Mapping):
        return Rule(pattern, parse_enum(Mode, target, field))
    unknown = sorted(set(map(str, target)) - {"mode", "group_size"})
    if unknown:
        raise OptionError(f"{field}: unknown key {unknown[0]!r}; allowed are mode and group_size")
    if "mode" not in target:
        raise OptionError(f"{field}: the key 'mode' is missing from {dict(target)!r}")
    group = target.get("group_size")
    return Rule(pattern, parse_enum(Mode, target["mode"], field), None if group is None else check_group(group, field))


def check_group(value: object, field: str) -> int:
    """A group size: a whole number from 2 up, or -1 for one group a channel."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise OptionError(f"{field}: group_size must be a whole number, got {value!r}")
    number = int(value.__index__())
    if number != -1 and number < 2:
        raise OptionError(f"{field}: group_size must be -1 (per channel) or at least 2, got {number}")
    return number


def parse_rule_text(text: str) -> tuple[str, object]:
    """`PATTERN=MODE[:GROUP]` of the command line as a pair; `none` leaves alone.

    Raises:
        OptionError: there is no `=`, or the group is not a number.
    """
    pattern, sign, target = text.rpartition("=")
    if not sign or not pattern or not target:
        raise OptionError(f"--rule: expected PATTERN=MODE or PATTERN=MODE:GROUP, got {text!r}")
    mode, _, group = target.partition(":")
    if mode.lower() == "none":
        return pattern, None
    if not group:
        return pattern, mode
    try:
        return pattern, {"mode": mode, "group_size": int(group)}
    except ValueError:
        raise OptionError(f"--rule: the group in {text!r} must be a whole number") from None
