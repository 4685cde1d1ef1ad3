"""Rules by name: which of the caller's rules speaks for a weight.

A rule's pattern is a wildcard that must match a whole name, with case (`*down_proj*`, `model.layers.?.mlp.*`), or,
after `re:`, a regular expression that may match anywhere in it (`re:layers\\.(0|1)\\.`). It is tried on the name of the
weight's constant and on the names of the layers that use it. The first rule that matches wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import TypeVar

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.patterns.weight import Weight

__all__ = ["check_pattern", "first_match", "matches", "names_of"]

T = TypeVar("T")

_REGEX = "re:"


def first_match(rules: Sequence[tuple[str, T]], weight: Weight) -> tuple[int, T] | None:
    """The place in `rules` and the value of the first rule `(pattern, value)` that matches a weight, or None.

    Raises:
        OptionError: a pattern is no regular expression.
    """
    names = names_of(weight) if rules else ()
    for index, (pattern, value) in enumerate(rules):
        if any(map(_compiled(pattern), names)):
            return index, value
    return None


def matches(pattern: str, weight: Weight) -> bool:
    """Whether a pattern matches a weight. Raises OptionError as `first_match` does."""
    return any(map(_compiled(pattern), names_of(weight)))


def check_pattern(pattern: str) -> None:
    """Raise OptionError where a pattern cannot be one."""
    _compiled(pattern)


def names_of(weight: Weight) -> tuple[str, ...]:
    """The names that a rule may match: the weight's own, its constant's, those of the layers that use it."""
    own = dict.fromkeys((weight.name, str(weight.constant.get_friendly_name())))
    return (*own, *(consumer.name for consumer in weight.consumers))


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Callable[[str], object]:
    if not pattern.startswith(_REGEX):
        return re.compile(translate(pattern)).match
    try:
        return re.compile(pattern[len(_REGEX) :]).search
    except re.error as error:
        raise OptionError(f"rules: {pattern!r} is no regular expression: {error}") from None
