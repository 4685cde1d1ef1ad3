"""Decide what every weight gets, before anything is edited.

    rule, first match        → its mode, or left alone
    embedding, last layer    → backup mode (unless all_layers)
    convolution              → 8 bits, whatever the mode
    ratio and sensitivity    → the mode, or the backup mode for the most sensitive
    group does not divide    → adjusted group, backup mode, skip or error, as group_size_fallback says

Only numbers and names leave this room: a `Choice` per weight, a `Skip` for every other constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.weight_source import ValueRange
from ov_weight_compression.passes.choice import Choice, Plan, Wish, skipped
from ov_weight_compression.passes.fit import fit
from ov_weight_compression.passes.modes import BackupMode, Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.rules import Rule
from ov_weight_compression.patterns import Kind, Skip, Weight
from ov_weight_compression.patterns.matching import matching
from ov_weight_compression.quantization.formats import FORMATS

__all__ = ["Sensitivity", "make_plan"]

Sensitivity = Callable[[Sequence[Weight]], Sequence[float]]
"""Scores of weights, higher for those that suffer more from few bits."""


def make_plan(
    weights: Sequence[Weight],
    skips: Iterable[Skip],
    options: Options,
    scan: Callable[[Sequence[Weight]], Sequence[ValueRange]],
    sensitivity: Sensitivity,
    shared_out: bool = False,
) -> Plan:
    """Decide for every weight; `scan` and `sensitivity` are asked only about the weights they are needed for.
    `shared_out`: the model has been compressed with these options, so what `ratio` decides over is decided already.

    Raises:
        OptionError: a group does not divide a weight's channels and `group_size_fallback` is `error`; a rule matches
            nothing.
    """
    skips = tuple(skips)
    rules = _rules_by_weight(weights, skips, options)
    forced = [_forced(weight, rules.get(weight.name), options) for weight in weights]
    left, wanted = list(skips), []
    for weight, wish in zip(weights, forced, strict=True):
        if wish is not None and wish.mode is None:
            left.append(skipped(weight, wish.reason))
        elif wish is None and shared_out:
            left.append(skipped(weight, "left alone when the model was compressed with this ratio"))
        else:
            wanted.append((weight, wish))
    ranges = scan([weight for weight, _ in wanted])
    spoiled = [_spoiled(weight, seen) for (weight, _), seen in zip(wanted, ranges, strict=True) if seen.bad]
    sound = [(*pair, seen) for pair, seen in zip(wanted, ranges, strict=True) if not seen.bad]
    wishes = _settle_ratio([weight for weight, _, _ in sound], [wish for _, wish, _ in sound], options, sensitivity)
    choices: list[Choice] = []
    for (weight, _, seen), wish in zip(sound, wishes, strict=True):
        fitted = fit(weight, wish, seen, options)
        choices.append(fitted) if isinstance(fitted, Choice) else left.append(fitted)
    return Plan(tuple(choices), (*left, *spoiled), tuple(spoiled))


def _rules_by_weight(weights: Sequence[Weight], skips: Sequence[Skip], options: Options) -> dict[str, Rule]:
    """The first rule that speaks for each weight, by the weight's name."""
    found: dict[str, Rule] = {}
    apart = {name for skip in skips for name in (skip.name, skip.consumer)}
    for number, rule in enumerate(options.rules):
        matched = matching(rule.pattern, weights, apart)
        if not matched and rule.pattern not in apart:
            raise OptionError(
                f"rules[{number}]: {shown(rule.pattern)} matches no weight of the model; "
                "names are those of constants and of the layers that use them, as the report lists them"
            )
        for weight in matched:
            found.setdefault(weight.name, rule)
    return found


def _settle_ratio(
    weights: Sequence[Weight], forced: Sequence[Wish | None], options: Options, sensitivity: Sensitivity
) -> list[Wish]:
    """The forced wishes as they are, and for all other weights what the ratio gives them."""
    primary = Wish(options.mode, options.effective_group, in_ratio=True)
    backup = replace(_backup(options, f"among the most sensitive {1 - options.ratio:.0%}"), in_ratio=True)
    places = [place for place, wish in enumerate(forced) if wish is None]
    kept = {places[n] for n in _most_sensitive([weights[place] for place in places], options, sensitivity)}
    return [wish or (backup if place in kept else primary) for place, wish in enumerate(forced)]


def _forced(weight: Weight, rule: Rule | None, options: Options) -> Wish | None:
    """What a weight gets whatever the ratio; None where the ratio decides."""
    if rule is not None:
        if rule.mode is None:
            return Wish(None, -1, f"rule {rule.pattern!r} leaves it alone")
        group = FORMATS[rule.mode.value].default_group if rule.group_size is None else rule.group_size
        return Wish(rule.mode, group, f"rule {rule.pattern!r}", by_rule=True)
    if options.mode.is_int8:
        return Wish(options.mode, -1)
    if weight.kind is Kind.CONVOLUTION and not FORMATS[options.mode.value].everywhere:
        return _backup(options, "convolution")
    if weight.backup_reason and not options.all_layers:
        return _backup(options, weight.backup_reason)
    return None


def _backup(options: Options, reason: str) -> Wish:
    if options.backup_mode is BackupMode.NONE:
        return Wish(None, -1, f"{reason}, and backup_mode is none")
    mode = Mode(options.backup_mode.value)
    return Wish(mode, FORMATS[mode.value].default_group, reason)


def _most_sensitive(weights: Sequence[Weight], options: Options, sensitivity: Sensitivity) -> set[int]:
    """The places of the weights that keep the backup mode, so that the mode covers at most `ratio` of the parameters.

    From the least sensitive on, every weight that still fits gets the mode: one that is too large does not end the
    filling, so no gap is left that a smaller weight could fill.
    """
    everything = set(range(len(weights)))
    if options.ratio >= 1 or not weights:
        return set()
    if options.ratio <= 0:
        return everything
    scores = sensitivity(weights)
    room = options.ratio * sum(weight.elements for weight in weights)
    chosen = set()
    for place in sorted(everything, key=lambda place: (scores[place], place)):
        if weights[place].elements <= room:
            room -= weights[place].elements
            chosen.add(place)
    return everything - chosen


def _spoiled(weight: Weight, values: ValueRange) -> Skip:
    return skipped(weight, f"{values.bad} NaN or infinite {'value' if values.bad == 1 else 'values'}")
