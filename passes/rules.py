"""Rules: what particular weights get, by name, before `mode` decides for the rest. The first match wins.

    rules=[("*down_proj*", "int8_asym"),
           ("*experts*", {"mode": "int4_sym", "group_size": 32}),
           ("re:.*layers\\.[0-3]\\..*", "int8_sym"),
           ("*gate*", None)]

None leaves the weight alone.

A pattern is first taken as it stands: if the report calls a weight so, or a layer that uses it has that name, then it
speaks for that alone, whatever signs the name holds (`blocks[0].w`, `w#2`). Else it is a wildcard that must match a
whole name, with case (`*down_proj*`, `model.layers.?.mlp.*`), or, after `re:`, a regular expression that may match
anywhere in it (`re:layers\\.(0|1)\\.`), tried on the name of the weight's constant and on those of the layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from itertools import islice
from typing import Any, TypeAlias

from ov_weight_compression.ir_utils.errors import OptionError, one_line
from ov_weight_compression.ir_utils.option_kinds import group, parse_enum, shown, whole_from_text
from ov_weight_compression.passes.option_values import Mode
from ov_weight_compression.patterns import Skip, Weight

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
    _compiled(pattern)
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


_REGEX = "re:"


def matching(pattern: str, weights: Sequence[Weight], others: Container[str] = ()) -> list[Weight]:
    """The weights of a model, `weights`, that a pattern speaks for, in their order; none where it is one of the names
    in `others`, of what cannot be compressed or is already.

    Raises:
        OptionError: the pattern is no regular expression.
    """
    matches = _compiled(pattern)
    layers = {weight.name: [consumer.name for consumer in weight.consumers] for weight in weights}
    literal = [weight for weight in weights if pattern == weight.name or pattern in layers[weight.name]]
    if literal or pattern in others:
        return literal
    found = []
    for weight in weights:
        if any(map(matches, (weight.name, str(weight.constant.get_friendly_name()), *layers[weight.name]))):
            found.append(weight)
    return found


def rules_by_weight(rules: Sequence[Rule], weights: Sequence[Weight], skips: Sequence[Skip]) -> dict[str, Rule]:
    """The first rule that speaks for each weight, by the weight's name.

    Raises:
        OptionError: a rule matches nothing in the model.
    """
    found: dict[str, Rule] = {}
    apart = {name for skip in skips for name in (skip.name, skip.consumer)}
    for number, rule in enumerate(rules):
        matched = matching(rule.pattern, weights, apart)
        if not matched and rule.pattern not in apart:
            raise OptionError(
                f"rules[{number}]: {shown(rule.pattern)} matches no weight of the model; "
                "names are those of constants and of the layers that use them, as the report lists them"
            )
        for weight in matched:
            found.setdefault(weight.name, rule)
    return found


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Callable[[str], object]:
    if not pattern.startswith(_REGEX):
        return re.compile(translate(pattern)).match
    try:
        return re.compile(pattern[len(_REGEX) :]).search
    except (re.error, OverflowError, RecursionError) as error:
        reason = one_line(str(error), 80)
        raise OptionError(f"rules: {shown(pattern)} is no regular expression: {reason}") from None
