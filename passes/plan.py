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
from dataclasses import dataclass, replace

from ov_weight_compression.ir_utils.constants import ValueRange
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes.device_rules import executed_variant
from ov_weight_compression.passes.modes import BackupMode, GroupSizeFallback, Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.patterns import Kind, Skip, Weight
from ov_weight_compression.patterns.matching import first_match, matches
from ov_weight_compression.quantization.formats import FORMATS, Format
from ov_weight_compression.quantization.spec import Spec

__all__ = ["Choice", "Plan", "Sensitivity", "make_plan"]

SMALLEST_ADJUSTED_GROUP = 16
_F16_MAX = 65504.0
_F16_COARSE = 2.0**-21  # below it an f16 scale is a subnormal with a relative error of up to 2⁻⁴ and more

Sensitivity = Callable[[Sequence[Weight]], Sequence[float]]
"""Scores of weights, higher for those that suffer more from few bits."""


@dataclass(frozen=True)
class Choice:
    """A weight and how it will be stored."""

    weight: Weight
    spec: Spec
    absmax: float
    reason: str
    """Why it is not simply the mode that was asked for; empty where it is."""
    in_ratio: bool = False
    """Whether `ratio` decided over this weight."""


@dataclass(frozen=True)
class Plan:
    """What will be done: nothing is decided after this."""

    choices: tuple[Choice, ...]
    skips: tuple[Skip, ...]


@dataclass(frozen=True)
class _Wish:
    """A mode and group before they are fitted to the weight; `mode` None is the reason for a skip."""

    mode: Mode | None
    group: int
    reason: str = ""
    in_ratio: bool = False
    by_rule: bool = False
    """A rule names it for this very weight, so the device does not change it."""


def make_plan(
    weights: Sequence[Weight],
    skips: Iterable[Skip],
    options: Options,
    scan: Callable[[Sequence[Weight]], Sequence[ValueRange]],
    sensitivity: Sensitivity,
) -> Plan:
    """Decide for every weight; `scan` and `sensitivity` are asked only about the weights they are needed for.

    Raises:
        OptionError: a group does not divide a weight's channels and `group_size_fallback` is `error`; a rule matches
            nothing.
    """
    _check_rules_match(weights, options)
    wishes = _wishes(weights, options, sensitivity)
    fitted = [_fit(weight, wish, options) for weight, wish in zip(weights, wishes, strict=True)]
    wanted = [entry.weight for entry in fitted if isinstance(entry, Choice)]
    ranges = dict(zip(map(id, wanted), scan(wanted), strict=True))
    choices: list[Choice] = []
    left = list(skips)
    for entry in fitted:
        settled = _check_values(entry, ranges[id(entry.weight)]) if isinstance(entry, Choice) else entry
        if isinstance(settled, Choice):
            choices.append(_with_search(settled, options))
        else:
            left.append(settled)
    return Plan(tuple(choices), tuple(left))


def _check_rules_match(weights: Sequence[Weight], options: Options) -> None:
    for number, rule in enumerate(options.rules):
        if not any(matches(rule.pattern, weight) for weight in weights):
            raise OptionError(
                f"rules[{number}]: {rule.pattern!r} matches no weight of the model; "
                "names are those of constants and of the layers that use them, as the report lists them"
            )


def _wishes(weights: Sequence[Weight], options: Options, sensitivity: Sensitivity) -> list[_Wish]:
    """What each weight should get by rules, roles and ratio."""
    wishes: list[_Wish | None] = [_forced(weight, options) for weight in weights]
    primary = _Wish(options.mode, options.effective_group, in_ratio=True)
    open_places = [place for place, wish in enumerate(wishes) if wish is None]
    kept = _most_sensitive([weights[place] for place in open_places], options, sensitivity)
    for number, place in enumerate(open_places):
        sensitive = f"among the most sensitive {1 - options.ratio:.0%}"
        wishes[place] = replace(_backup(options, sensitive), in_ratio=True) if number in kept else primary
    return [wish for wish in wishes if wish is not None]


def _forced(weight: Weight, options: Options) -> _Wish | None:
    """What a weight gets whatever the ratio; None where the ratio decides."""
    found = first_match([(rule.pattern, rule) for rule in options.rules], weight)
    if found is not None:
        rule = found[1]
        if rule.mode is None:
            return _Wish(None, -1, f"rule {rule.pattern!r} leaves it alone")
        group = FORMATS[rule.mode.value].default_group if rule.group_size is None else rule.group_size
        return _Wish(rule.mode, group, f"rule {rule.pattern!r}", by_rule=True)
    if options.mode.is_int8:
        return _Wish(options.mode, -1)
    if weight.kind is Kind.CONVOLUTION and not FORMATS[options.mode.value].everywhere:
        return _backup(options, "convolution")
    if weight.backup_reason and not options.all_layers:
        return _backup(options, weight.backup_reason)
    return None


def _backup(options: Options, reason: str) -> _Wish:
    if options.backup_mode is BackupMode.NONE:
        return _Wish(None, -1, f"{reason}, and backup_mode is none")
    mode = Mode(options.backup_mode.value)
    return _Wish(mode, FORMATS[mode.value].default_group, reason)


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


def _fit(weight: Weight, wish: _Wish, options: Options) -> Choice | Skip:
    """Fit a wish to the device and the weight's shape: what the format takes, and what the group size divides."""
    wish = _for_device(weight, wish, options)
    if wish.mode is None:
        return _skip(weight, wish.reason)
    row = FORMATS[wish.mode.value]
    if weight.kind is Kind.CONVOLUTION and not row.everywhere:
        return _fall_back(weight, wish, options, f"{row.name} is not for convolutions")
    group = wish.group
    if group == -1 or (group == weight.columns and not row.fixed_group):
        return _choice(weight, row, -1, wish)
    if not _groupable(weight):
        if options.group_size_fallback is GroupSizeFallback.ERROR:
            raise OptionError(_group_error(weight, group, "groups cannot run along its reduction axes"))
        return _fall_back(weight, wish, options, "groups cannot run along its reduction axes")
    if weight.columns % group == 0:
        return _choice(weight, row, group, wish)
    return _adjust(weight, wish, options, row)


def _for_device(weight: Weight, wish: _Wish, options: Options) -> _Wish:
    """The wish, or what the device executes in its place."""
    if options.device is None or wish.by_rule or wish.mode is None:
        return wish
    variant = executed_variant(options.device, weight, FORMATS[wish.mode.value], wish.group)
    if variant is None:
        return wish
    return replace(wish, mode=variant.mode, group=variant.group, reason=_join(wish.reason, variant.reason))


def _adjust(weight: Weight, wish: _Wish, options: Options, row: Format) -> Choice | Skip:
    problem = f"{weight.columns} channels cannot be cut into groups of {wish.group}"
    fallback = options.group_size_fallback
    if fallback is GroupSizeFallback.ERROR:
        raise OptionError(_group_error(weight, wish.group, f"it has {weight.columns} channels"))
    if fallback is GroupSizeFallback.IGNORE:
        return _skip(weight, problem)
    size = 1 << (wish.group.bit_length() - 1)
    while size >= SMALLEST_ADJUSTED_GROUP and not row.fixed_group:
        if weight.columns % size == 0:
            return _choice(weight, row, size, replace(wish, reason=_join(wish.reason, problem)))
        size //= 2
    return _fall_back(weight, wish, options, problem)


def _fall_back(weight: Weight, wish: _Wish, options: Options, problem: str) -> Choice | Skip:
    """The backup mode, per channel 8 bits if that has groups which do not fit either, or a skip."""
    reason = _join(wish.reason, problem)
    if options.group_size_fallback is GroupSizeFallback.IGNORE:
        return _skip(weight, reason)
    if options.backup_mode is BackupMode.NONE:
        return _skip(weight, f"{reason}, and backup_mode is none")
    row = FORMATS[options.backup_mode.value]
    fits = row.default_group == -1 or (_groupable(weight) and weight.columns % row.default_group == 0)
    if not fits or (weight.kind is Kind.CONVOLUTION and not row.everywhere):
        row = FORMATS[Mode.INT8_ASYM.value]
    variant = executed_variant(options.device, weight, row, row.default_group) if options.device else None
    if variant is not None:
        row, reason = FORMATS[variant.mode.value], _join(reason, variant.reason)
    return _choice(weight, row, row.default_group, replace(wish, reason=reason))


def _groupable(weight: Weight) -> bool:
    return weight.groupable and weight.kind is not Kind.CONVOLUTION


def _choice(weight: Weight, row: Format, group: int, wish: _Wish) -> Choice:
    return Choice(weight, Spec(row, group, row.scale), 0.0, wish.reason, wish.in_ratio)


def _check_values(choice: Choice, values: ValueRange) -> Choice | Skip:
    """What the values themselves forbid: NaN, infinity, and scales that f16 cannot hold."""
    if values.bad:
        noun = "value" if values.bad == 1 else "values"
        return _skip(choice.weight, f"{values.bad} NaN or infinite {noun}")
    spec = choice.spec
    row = spec.format
    if spec.scale_type == "f16" and values.absmax > 0:
        spread = 2 * values.absmax if row.asymmetric else values.absmax
        if spread / row.top > _F16_MAX or values.absmax / row.top < _F16_COARSE:
            return _with_wide_scales(replace(choice, absmax=values.absmax))
    return replace(choice, absmax=values.absmax)


def _with_wide_scales(choice: Choice) -> Choice:
    """f32 scales; with 8 bits per channel where a Gather reads groups, whose scales the CPU plugin wants in f16."""
    spec, reason = replace(choice.spec, scale_type="f32"), choice.reason
    if spec.group_size != -1 and any(consumer.kind is Kind.GATHER for consumer in choice.weight.consumers):
        spec = Spec(FORMATS[Mode.INT8_ASYM.value], -1, "f32")
        reason = _join(reason, "f16 cannot hold its scales, and an embedding in groups cannot have others")
    return replace(choice, spec=spec, reason=reason)


def _with_search(choice: Choice, options: Options) -> Choice:
    """Scale search where it pays: formats of 4 bits and fewer."""
    row = choice.spec.format
    if options.scale_search == "off" or not row.default_search:
        return choice
    candidates = row.default_search if isinstance(options.scale_search, str) else options.scale_search
    return replace(choice, spec=replace(choice.spec, search=candidates))


def _skip(weight: Weight, reason: str) -> Skip:
    consumer = weight.consumers[0].name
    return Skip(weight.name, consumer, weight.shape, weight.element_type, reason, weight.bytes)


def _group_error(weight: Weight, group: int, why: str) -> str:
    return (
        f"group_size: {group} does not fit {weight.name} (used by {weight.consumers[0].name}): {why}; "
        "choose a divisor, group_size_fallback='adjust' or 'ignore', or give this weight a rule"
    )


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second
