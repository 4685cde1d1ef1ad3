"""Rules by name: which weights a caller's pattern speaks for.

A pattern is first taken as it stands: if the report calls a weight so, or a layer that uses it has that name, then it
speaks for that alone, whatever signs the name holds (`blocks[0].w`, `w#2`). Else it is a wildcard that must match a
whole name, with case (`*down_proj*`, `model.layers.?.mlp.*`), or, after `re:`, a regular expression that may match
anywhere in it (`re:layers\\.(0|1)\\.`), tried on the name of the weight's constant and on those of the layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from fnmatch import translate
from functools import lru_cache

from ov_weight_compression.ir_utils.errors import OptionError, one_line
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.patterns.weight import Weight

__all__ = ["check_pattern", "matching"]

_REGEX = "re:"


def matching(pattern: str, weights: Sequence[Weight], others: Container[str] = ()) -> list[Weight]:
    """The weights of a model, `weights`, that a pattern speaks for, in their order; none where it is one of the names
    in `others`, of what cannot be compressed or is already.

    Raises:
        OptionError: the pattern is no regular expression.
    """
    matches = _compiled(pattern)
    literal = [weight for weight in weights if pattern == weight.name or pattern in _layers(weight)]
    if literal or pattern in others:
        return literal
    return [weight for weight in weights if any(map(matches, _names_of(weight)))]


def check_pattern(pattern: str) -> None:
    """Raise OptionError where a pattern cannot be one."""
    _compiled(pattern)


def _names_of(weight: Weight) -> tuple[str, ...]:
    """The names that a wildcard may match: the weight's own, its constant's, those of the layers that use it."""
    own = dict.fromkeys((weight.name, str(weight.constant.get_friendly_name())))
    return (*own, *_layers(weight))


def _layers(weight: Weight) -> tuple[str, ...]:
    return tuple(consumer.name for consumer in weight.consumers)


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> Callable[[str], object]:
    if not pattern.startswith(_REGEX):
        return re.compile(translate(pattern)).match
    try:
        return re.compile(pattern[len(_REGEX) :]).search
    except (re.error, OverflowError, RecursionError) as error:
        reason = one_line(str(error), 80)
        raise OptionError(f"rules: {shown(pattern)} is no regular expression: {reason}") from None
