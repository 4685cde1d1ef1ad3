"""Decide what every weight gets, before anything is edited.

    rule, first match        → its mode, or left alone
    router, recurrence       → backup mode, with all_layers too (unless fragile_layers says otherwise)
    a budget                → what is best within it, and nothing of what follows (see `budget`)
    embedding, last layer    → backup mode (unless all_layers)
    convolution              → 8 bits, whatever the mode
    ratio and sensitivity    → the mode, or the backup mode for the most sensitive
    group does not divide    → adjusted group, backup mode, skip or error, as group_size_fallback says

What is asked for is a request; `fit` makes of it what the weight's shape, the device and the values allow. What comes
of it is data: a `PlannedWeight` for each weight, a `Skip` for every other constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import F16_MAX
from ov_weight_compression.ir_utils.weight_source import ValueRange
from ov_weight_compression.ir_utils.worker_pool import in_threads
from ov_weight_compression.passes.device_rules import (
    CHECKED,
    executed_instead,
    misread_on_cpu,
    refused_on_cpu,
    working_groups,
)
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.option_values import BackupMode, Device, FragileLayers, GroupSizeFallback, Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.plan import (
    Algorithm,
    DecidedBy,
    FormatRequest,
    Method,
    Plan,
    PlannedWeight,
    Statistic,
    is_beyond_f16,
    joined_reasons,
)
from ov_weight_compression.passes.rules import Rule, rules_by_weight
from ov_weight_compression.patterns import Kind, Skip, Weight
from ov_weight_compression.patterns.experts import expert_blocks
from ov_weight_compression.quantization.allocation import sensitivity, weight_noise
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Spec

_PIECE_ELEMENTS = 1 << 19
_EPSILON = {"f16": 2.0**-10, "bf16": 2.0**-10, "f32": 2.0**-23, "f64": 2.0**-52}


def make_plan(
    weights: Sequence[Weight],
    skips: Iterable[Skip],
    options: Options,
    data: Measurements,
    shared_out: bool = False,
) -> Plan:
    """Decide for every weight. Values are scanned of those that will be stored otherwise, and their noise is measured
    where a ratio shares out between them; data are run where its metric asks for them.

    `shared_out`: the model has been compressed with these options, so what `ratio` decides over is decided already.

    Raises:
        OptionError: a group does not divide a weight's channels and `group_size_fallback` is `error`; a rule matches
            nothing.
    """
    skips = tuple(skips)
    rules = rules_by_weight(options.rules, weights, skips) if options.rules else {}
    left, wanted = list(skips), []
    for weight in weights:
        request = _forced(weight, rules.get(weight.name), options)
        if isinstance(request, Skip):
            left.append(request)
        elif request is None and shared_out:
            left.append(weight.skipped("left alone when the model was compressed with this ratio"))
        else:
            wanted.append((weight, request))
    ranges = in_threads(lambda weight: data.sources[weight].scan(), [weight for weight, _ in wanted], options.threads)
    nonfinite = [
        weight.skipped(f"{found.bad} NaN or infinite {'value' if found.bad == 1 else 'values'}")
        for (weight, _), found in zip(wanted, ranges, strict=True)
        if found.bad
    ]
    sound = [(*pair, found) for pair, found in zip(wanted, ranges, strict=True) if not found.bad]
    if options.budget is not None:
        from ov_weight_compression.passes.budget import survey, with_choice

        ranged = [
            (weight, None if request is None else fit(weight, request, values, options, data.method), values)
            for weight, request, values in sound
        ]
        found = survey(ranged, options, data)
        left += [one for one in found.settled if isinstance(one, Skip)]
        plan = Plan((), (*left, *nonfinite), tuple(nonfinite), data.sources, data.method, survey=found)
        return with_choice(plan)
    free = [weight for weight, request, _ in sound if request is None]
    kept = {free[place].name for place in _most_sensitive(free, options, data)} if options.ratio < 1 else ()
    primary = FormatRequest(options.format_of(options.mode), options.effective_group, decided_by=(DecidedBy.RATIO,))
    fitted: list[PlannedWeight | Skip] = []
    for weight, request, values in sound:
        asked: FormatRequest | Skip = request or primary
        if weight.name in kept:
            asked = _backup(weight, options, f"among the most sensitive {1 - options.ratio:.0%}", DecidedBy.RATIO)
        fitted.append(asked if isinstance(asked, Skip) else fit(weight, asked, values, options, data.method))
    if any(weight.kind is Kind.EXPERTS for weight, _, _ in sound):
        ranges_by_name = {weight.name: values for weight, _, values in sound}
        fitted = _with_equal_experts(fitted, ranges_by_name, options, data.method)
    left += [one for one in fitted if isinstance(one, Skip)]
    planned = tuple(one for one in fitted if isinstance(one, PlannedWeight))
    return Plan(planned, (*left, *nonfinite), tuple(nonfinite), data.sources, data.method)


def _with_equal_experts(
    fitted: Sequence[PlannedWeight | Skip], values: Mapping[str, ValueRange], options: Options, method: Method
) -> list[PlannedWeight | Skip]:
    """The weights with one format and one group for all experts of a block, unless a rule says otherwise: the smaller
    of their groups, the more of their bits. GPUs run a block as a whole or not at all."""
    places = {one.weight.name: place for place, one in enumerate(fitted) if isinstance(one, PlannedWeight)}
    settled = list(fitted)
    for block in expert_blocks(fitted[place].weight for place in places.values()):  # type: ignore[union-attr]
        members = [one for one in (fitted[places[weight.name]] for weight in block) if isinstance(one, PlannedWeight)]
        kinds = {(one.spec.format, one.spec.group_size) for one in members}
        if len(kinds) == 1 or any(DecidedBy.RULE in one.decided_by for one in members):
            continue
        groups = [one.spec.group_of(one.weight.columns) for one in members]
        most, size = max(zip(members, groups, strict=True), key=lambda pair: (pair[0].spec.format.bits, -pair[1]))
        size = PER_CHANNEL if most.spec.format.default_group == PER_CHANNEL else size
        for one, own in zip(members, groups, strict=True):
            if one.spec.format != most.spec.format or size not in (own, one.spec.group_size):
                request = FormatRequest(one.spec.format, own, one.reason, one.decided_by)
                request = request.instead(
                    most.spec.format, size, "as the other experts of its block", DecidedBy.FALLBACK
                )
                settled[places[one.weight.name]] = fit(one.weight, request, values[one.weight.name], options, method)
    return settled


def _forced(weight: Weight, rule: Rule | None, options: Options) -> FormatRequest | Skip | None:
    """What a weight gets whatever the ratio or the budget; None where one of them decides."""
    if rule is not None:
        if rule.mode is None:
            return weight.skipped(f"rule {rule.pattern!r} leaves it alone")
        group = FORMATS[rule.mode.value].default_group if rule.group_size is None else rule.group_size
        return FormatRequest(options.format_of(rule.mode), group, f"rule {rule.pattern!r}", (DecidedBy.RULE,))
    if weight.fragile and options.fragile_layers is FragileLayers.FLOAT:
        return weight.skipped(f"{weight.fragile}, and fragile_layers is float")
    if options.budget is not None:
        return None
    own = FORMATS[options.mode.value]
    if options.mode.is_int8:
        return FormatRequest(own, PER_CHANNEL, decided_by=(DecidedBy.MODE,))
    if weight.kind is Kind.CONVOLUTION and not own.everywhere:
        return _backup(weight, options, "convolution")
    if weight.fragile and options.fragile_layers is FragileLayers.BACKUP:
        return _backup(weight, options, weight.fragile)
    if weight.backup_reason and not options.all_layers:
        return _backup(weight, options, weight.backup_reason)
    return None


def _backup(
    weight: Weight, options: Options, reason: str, decider: DecidedBy = DecidedBy.BACKUP
) -> FormatRequest | Skip:
    if options.backup_mode is BackupMode.NONE:
        return weight.skipped(f"{reason}, and backup_mode is none")
    format = FORMATS[options.backup_mode.value]
    return FormatRequest(format, format.default_group, reason, (decider,))


def _most_sensitive(weights: Sequence[Weight], options: Options, data: Measurements) -> set[int]:
    """The places of the weights that keep the backup mode, so that the mode covers at most `ratio` of the parameters.

    From the least sensitive on, every weight that still fits gets the mode: one that is too large does not end the
    filling, so no gap is left that a smaller weight could fill. The experts of a block count as one weight.
    """
    everything = set(range(len(weights)))
    if not weights or options.ratio <= 0:
        return everything
    scores = _sensitivity(weights, options, data)
    room = options.ratio * sum(weight.elements for weight in weights)
    chosen: set[int] = set()
    for unit in sorted(_units(weights), key=lambda unit: (max(scores[place] for place in unit), unit)):
        size = sum(weights[place].elements for place in unit)
        if size <= room:
            room -= size
            chosen.update(unit)
    return everything - chosen


def _units(weights: Sequence[Weight]) -> list[tuple[int, ...]]:
    """The places of weights that are decided over together: the experts of a block, any other by itself."""
    places = {weight.name: place for place, weight in enumerate(weights)}
    blocks = [tuple(places[weight.name] for weight in block) for block in expert_blocks(weights)]
    together = {place for block in blocks for place in block}
    return [*((place,) for place in range(len(weights)) if place not in together), *blocks]


def _sensitivity(weights: Sequence[Weight], options: Options, data: Measurements) -> list[float]:
    """A score for each weight, higher for those that suffer more from few bits."""
    metric = options.sensitivity_metric
    means = data.means(weights) if metric.needs_data else [None] * len(weights)

    def score(place: int) -> float:
        source = data.sources[weights[place]]
        pieces = (piece for _, piece in source.pieces(_PIECE_ELEMENTS))
        return sensitivity(metric.value, weight_noise(pieces, _EPSILON[source.element_type]), means[place])

    return in_threads(score, range(len(weights)), options.threads)


_LARGEST = 2.0**100  # where scales in f32 and f8e8m0 end, so that no product overflows


def fit(
    weight: Weight, request: FormatRequest, values: ValueRange, options: Options, method: Method
) -> PlannedWeight | Skip:
    """The planned weight that comes of a request, or why there is none.

    Raises:
        OptionError: the group does not divide the weight's channels and `group_size_fallback` is `error`; CPUs misread
            codes in groups of the size that was asked for.
    """
    fitted = _fit(weight, request, options)
    if isinstance(fitted, Skip):
        return fitted
    format, group, reason, absmax = fitted.format, fitted.group, fitted.reason, values.absmax
    problem = misread_on_cpu(options.device, weight, format, group) if group == PER_CHANNEL else None
    problem = problem or refused_on_cpu(options.device, weight, format, group)
    if problem is not None:
        reason = joined_reasons(reason, f"{problem}, so it is stored in a way that they expand")
    if absmax > _LARGEST * min(1.0, format.top):
        return weight.skipped(f"values up to {absmax:.1e}, beyond what scales reach")
    if 2 * absmax > F16_MAX and _is_read_in_f16(weight):
        return weight.skipped(f"values up to {absmax:g}, which f16 does not hold once they are rounded")
    scale_type = format.scale
    if scale_type == "f16" and is_beyond_f16(format, absmax):
        scale_type = "f32"
        if group != PER_CHANNEL and weight.is_embedding:  # the CPU plugin wants scales in groups in f16 there
            format, group = FORMATS["int8_asym"], PER_CHANNEL
            reason = joined_reasons(reason, "f16 cannot hold its scales, and an embedding in groups cannot have others")
    search = 0
    if options.scale_search != "off" and format.default_search > 0:
        search = format.default_search if isinstance(options.scale_search, str) else options.scale_search
    algorithms: list[Algorithm] = []
    if method.folds and format.bits <= 4:
        algorithms.append(Algorithm.AWQ)
    if format.name == Mode.ADAPTIVE_CODEBOOK.value:
        algorithms.append(Algorithm.CODEBOOK_FIT)
    if search:
        algorithms.append(Algorithm.SCALE_SEARCH)
    statistics = [Statistic.ENERGY] if algorithms and method.weighted else []
    if method.layer_by_layer and format.default_search > 0:
        algorithms += [Algorithm.LAYERWISE] if method.steps is not None else []
        algorithms += [Algorithm.LORA] if method.lora_rank else []
        statistics.append(Statistic.GRAM)
    return PlannedWeight(
        weight,
        Spec(format, group, scale_type, search),
        absmax,
        reason,
        fitted.decided_by,
        tuple(algorithms),
        tuple(statistics),
        kept_from_codes=problem is not None,
        regrouped=fitted.regrouped,
    )


def _fit(weight: Weight, request: FormatRequest, options: Options) -> FormatRequest | Skip:
    """Fit a request to the device and the weight's shape: what the format takes, and what the group size divides."""
    named = DecidedBy.RULE in request.decided_by  # for this very weight, so the device does not change it
    instead = None if named else executed_instead(options.device, weight, request.format, request.group)
    request = request if instead is None else request.instead(*instead, DecidedBy.DEVICE)
    format, group, fallback = request.format, request.group, options.group_size_fallback
    if format.storage == weight.element_type:
        return weight.skipped(f"stored as {format.storage} already")
    if weight.kind is Kind.CONVOLUTION and not format.everywhere:
        return _fall_back(weight, request, options, f"{format.name} is not for convolutions")
    if group == PER_CHANNEL or (group == weight.columns and not format.fixed_group):
        return replace(request, group=PER_CHANNEL)
    if not weight.groupable:
        why = "groups cannot run along its reduction axes"
        if fallback is GroupSizeFallback.ERROR:
            raise OptionError(_group_error(weight, group, why))
        return _fall_back(weight, request, options, why)
    if weight.columns % group:
        problem = f"{weight.columns} channels cannot be cut into groups of {group}"
        return _adjust(weight, request, options, problem)
    misread = misread_on_cpu(options.device, weight, format, group)
    if misread is None:
        return request
    if named or fallback is GroupSizeFallback.ERROR:
        raise OptionError(_misread_error(weight, request))
    adjusted = _adjust(weight, request, options, misread)
    return adjusted if isinstance(adjusted, Skip) else replace(adjusted, regrouped=options.group_size is not None)


def _adjust(weight: Weight, request: FormatRequest, options: Options, problem: str) -> FormatRequest | Skip:
    """The largest power of two that cuts the weight's channels, or what `group_size_fallback` says in its place."""
    format, fallback = request.format, options.group_size_fallback
    if fallback is GroupSizeFallback.ERROR:
        raise OptionError(_group_error(weight, request.group, f"it has {weight.columns} channels"))
    if fallback is GroupSizeFallback.IGNORE:
        return weight.skipped(problem)
    if not format.fixed_group:
        if Device.NPU in options.device:
            return request.instead(format, PER_CHANNEL, problem, DecidedBy.FALLBACK)
        size = 1 << (request.group.bit_length() - 1)
        while size >= options.min_adjusted_group_size:
            if weight.columns % size == 0:
                group = PER_CHANNEL if weight.columns == size else size
                return request.instead(format, group, problem, DecidedBy.FALLBACK)
            size //= 2
    return _fall_back(weight, request, options, problem)


def _fall_back(weight: Weight, request: FormatRequest, options: Options, problem: str) -> FormatRequest | Skip:
    """The backup mode, per channel 8 bits if that has groups which do not fit either, or a skip."""
    if options.group_size_fallback is GroupSizeFallback.IGNORE:
        return weight.skipped(joined_reasons(request.reason, problem))
    if options.backup_mode is BackupMode.NONE:
        return weight.skipped(f"{joined_reasons(request.reason, problem)}, and backup_mode is none")
    format = FORMATS[options.backup_mode.value]
    fits = format.default_group == PER_CHANNEL or (weight.groupable and weight.columns % format.default_group == 0)
    if not fits or (weight.kind is Kind.CONVOLUTION and not format.everywhere):
        format = FORMATS["int8_asym"]
    backup = request.instead(format, format.default_group, problem, DecidedBy.FALLBACK)
    instead = executed_instead(options.device, weight, format, format.default_group)
    return backup if instead is None else backup.instead(*instead, DecidedBy.DEVICE)


def _is_read_in_f16(weight: Weight) -> bool:
    """Whether something computes with its values in f16; a Convert takes them as the chain has them."""
    readers = [target.get_node() for target in weight.constant.output(0).get_target_inputs()]
    return weight.element_type == "f16" and any(reader.get_type_name() != "Convert" for reader in readers)


def _group_error(weight: Weight, group: int, why: str) -> str:
    return (
        f"group_size: {group} does not fit {weight.name} (used by {weight.consumers[0].name}): {why}; "
        "choose a divisor, group_size_fallback='adjust' or 'ignore', or give this weight a rule"
    )


def _misread_error(weight: Weight, request: FormatRequest) -> str:
    """A group size that was asked for by name is refused, with those that work."""
    said = f"{request.reason}: group_size" if DecidedBy.RULE in request.decided_by else "group_size"
    sizes = ", ".join(map(str, working_groups(weight.columns) or working_groups()))
    return (
        f"{said}: {request.group} cannot be used for {weight.name} (used by {weight.consumers[0].name}): the CPU "
        f"plugin of OpenVINO {CHECKED[-1]} computes something else from {request.format.storage} in groups of "
        f"{request.group}; sizes that work for its {weight.columns} channels: {sizes}; device='GPU' or 'NPU' says that "
        "no CPU will run it"
    )
