"""Choose each weight's format for a number of bytes, or for how far predictions may move.

    candidates of each weight ─▸ their bytes and losses ─▸ allocation ─▸ planned weights, and what is told of them

Bytes are those of the stored constants, exactly; rules' weights and, for `target_size`, whatever else the .bin holds
are taken off before anything is chosen. Losses add up over the weights (see `layer_losses`).

2-bit formats come in only where the bytes cannot be met without, unless the caller names the formats: what they do to a
model is worse than a sum of losses says, so where they come in they count for more.

**Candidates.** Unless the caller names them they are what the device executes from codes in all of the weight's layers:
8 bits per channel, 4 and 2 bits in groups of 16 to 128, without those that take much longer than the fastest of as many
bits. A table that rows are picked from and nothing else costs hardly any time, and a layer for which the device
executes no codes at all the same time whatever it holds, so these may have any of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import floor, inf
from typing import Any

import numpy as np

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.printing import plain, thousands
from ov_weight_compression.ir_utils.weight_source import ValueRange
from ov_weight_compression.passes.budget_outcome import BudgetOutcome, CurvePoint, UniformChoice
from ov_weight_compression.passes.device_rules import (
    FormatTimes,
    read_format_times,
    runs_from_codes,
    time_of,
    working_groups,
)
from ov_weight_compression.passes.layer_losses import LayerLosses, layer_losses
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.option_values import Device, Devices, FragileLayers, GroupSizeFallback, Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.plan import DecidedBy, FormatRequest, Method, Plan, PlannedWeight
from ov_weight_compression.passes.planning import fit
from ov_weight_compression.passes.targets import FormatChoice
from ov_weight_compression.patterns import Kind, Skip, Sources, Weight
from ov_weight_compression.patterns.equalization import EqualizationGroup, equalization_groups
from ov_weight_compression.patterns.experts import expert_blocks
from ov_weight_compression.patterns.fold_targets import RowsTarget
from ov_weight_compression.patterns.graphs import bytes_of, graphs_of, is_postponed
from ov_weight_compression.quantization.allocation import Allocation, allocate, curve
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL

_LARGEST_GROUP = 128
_BITS_OF_FRAGILE = 8
_WHOLE = (Mode.INT8_ASYM, Mode.INT8_SYM)
_GROUPED = (Mode.INT4_SYM, Mode.INT4_ASYM, Mode.NF4, Mode.FP4, Mode.INT2_SYM, Mode.INT2_ASYM)


def usual_formats(max_slowdown: float, devices: Devices, times: FormatTimes | None = None) -> list[FormatChoice]:
    """What there is where the caller names nothing, without what is too slow on a CPU; of other devices no times are
    known, so nothing is left out for them."""
    groups = [size for size in working_groups() if size <= _LARGEST_GROUP]
    every = [FormatChoice(mode, PER_CHANNEL) for mode in _WHOLE]
    every += [FormatChoice(mode, size) for mode in _GROUPED for size in groups]
    if devices and Device.CPU not in devices:
        return every
    taken = {one: time_of(one.mode.value, one.group, times).one_row for one in every}
    fastest: dict[int, float] = {}
    for one in every:
        bits = FORMATS[one.mode.value].bits
        fastest[bits] = min(taken[one], fastest.get(bits, taken[one]))
    return [one for one in every if taken[one] <= max_slowdown * fastest[FORMATS[one.mode.value].bits] * (1 + 1e-9)]


def is_multiplied(weight: Weight) -> bool:
    """Whether a layer computes with it; none does with a table that rows are picked from and nothing else."""
    return any(use.role.kind is not Kind.GATHER for use in weight.consumers)


def candidates_for(
    weight: Weight,
    values: ValueRange,
    choices: Sequence[FormatChoice],
    slow: Sequence[FormatChoice],
    options: Options,
    method: Method,
) -> list[PlannedWeight]:
    """The weight in each of the formats that it can have as they are, in their order; none where it can have none.
    `slow` are more of them, for weights whose layers take no longer with those."""
    wanted = [(one, FORMATS[one.mode.value]) for one in choices]
    if options.formats is None:
        every = [*wanted, *((one, FORMATS[one.mode.value]) for one in slow)]
        run = [pair for pair in every if runs_from_codes(options.device, weight, pair[1])]
        fast = [pair for pair in wanted if pair in run] if is_multiplied(weight) else []
        wanted = fast or run or every
    if weight.fragile and options.fragile_layers is FragileLayers.BACKUP:
        wanted = [pair for pair in wanted if pair[1].bits >= _BITS_OF_FRAGILE]
    # What does not fit is no candidate, neither adjusted nor in another format.
    strict = replace(options, group_size_fallback=GroupSizeFallback.IGNORE)
    found: dict[tuple[str, int, str], PlannedWeight] = {}
    for one, format in wanted:
        if one.group != PER_CHANNEL and weight.columns % one.group:
            continue
        fitted = fit(weight, FormatRequest(format, one.group, decided_by=(DecidedBy.BUDGET,)), values, strict, method)
        if isinstance(fitted, Skip) or fitted.spec.format.name != format.name:
            continue
        spec = fitted.spec
        found.setdefault((spec.format.name, spec.group_size, spec.scale_type), fitted)
    return list(found.values())


def last_resort(weight: Weight, values: ValueRange, options: Options, method: Method) -> PlannedWeight | Skip:
    """8 bits per channel, or why not even those: for a weight that no candidate fits."""
    request = FormatRequest(FORMATS["int8_asym"], PER_CHANNEL, "no format of the budget fits it", (DecidedBy.FALLBACK,))
    return fit(weight, request, values, options, method)


_FEW_BITS = 2
_FEW_BITS_PENALTY = 1.5
"""Held out, choices with many 2-bit weights lost 1.2 to 1.5 times what the sum of their losses said."""
_CURVE_POINTS = 64
_UNSURE = (
    "Nothing was measured, so that no choice is known to be better than the uniform format {}: weights have that, or a "
    "larger format in the bytes that it leaves."
)
_ROUNDS = 3


@dataclass(frozen=True)
class _Item:
    """Weights that get one format, and what they may get."""

    places: tuple[int, ...]
    candidates: tuple[tuple[PlannedWeight, ...], ...]
    """Each says what every one of the weights becomes."""
    losses: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(sum(one.nbytes for one in candidate) for candidate in self.candidates)

    def better_than(self, chosen: int) -> list[int]:
        """A candidate, and the larger ones that lose no more."""
        pairs = list(zip(self.sizes, self.losses, strict=True))
        size, loss = pairs[chosen]
        return [chosen, *(place for place, own in enumerate(pairs) if own[0] > size and own[1] <= loss)]

    def of_no_fewer_bits_than(self, chosen: int) -> list[int]:
        """A candidate, and all whose codes have as many bits."""
        bits = [candidate[0].spec.format.bits for candidate in self.candidates]
        return [chosen, *(place for place, own in enumerate(bits) if own >= bits[chosen] and place != chosen)]

    def only(self, places: Sequence[int]) -> _Item:
        """With some of its candidates."""
        candidates = tuple(self.candidates[place] for place in places)
        return replace(self, candidates=candidates, losses=tuple(self.losses[place] for place in places))


@dataclass(frozen=True)
class _Bytes:
    """What the .bin will hold beside what is chosen, and for how many elements bits are counted."""

    other: int
    elements: int

    def allowed(self, options: Options) -> int | None:
        """Of the .bin; None where a divergence is asked for."""
        if options.target_bits is not None:
            return self.other + floor(options.target_bits * self.elements / 8)
        return options.target_size

    def bits(self, size: int) -> float:
        """Of an element, in a .bin of some size."""
        return 8 * (size - self.other) / max(1, self.elements)


@dataclass(frozen=True)
class Survey:
    """All that a choice is made from; nothing has to be measured again for another choice."""

    options: Options
    settled: tuple[PlannedWeight | Skip, ...]
    """Of every weight; what is chosen takes the place of some of them."""
    items: tuple[_Item, ...]
    others: tuple[_Item, ...]
    """With losses of the other kind, where nothing but trying tells which of two kinds of losses a model has."""
    held: _Bytes
    known: LayerLosses
    sources: Sources
    times: FormatTimes | None

    @cached_property
    def best_by_size(self) -> tuple[tuple[int, float], ...]:
        """The least loss for every number of bytes of the items, at most so many points of it."""
        if not self.items:
            return ()
        item_sizes, item_losses = [item.sizes for item in self.items], [item.losses for item in self.items]
        sizes, losses = curve(item_sizes, item_losses)
        wanted = np.linspace(sizes[0], sizes[-1], _CURVE_POINTS)
        found = {int(sizes[step]): float(losses[step]) for step in np.searchsorted(sizes, wanted, side="right") - 1}
        reached = np.isin(np.arange(_CURVE_POINTS), np.searchsorted(wanted, sizes))
        for most in wanted[~reached].astype(np.int64).tolist():
            best = allocate(item_sizes, item_losses, most)  # within one large step along the hulls
            if best is not None:
                found[best.size] = min(best.loss, found.get(best.size, np.inf))
        every = sorted(found)
        least = np.minimum.accumulate([found[size] for size in every]).tolist()  # sums in another order differ in a bit
        return tuple(zip(every, least, strict=True))


def survey(
    wanted: Sequence[tuple[Weight, PlannedWeight | Skip | None, ValueRange]], options: Options, data: Measurements
) -> Survey:
    """What there is to choose from, and what it costs.

    Args:
        wanted: weights, what rules have made of them (None where the budget decides), and the range of their values.
        options, data: what the budget is, and what losses are measured with.

    Raises:
        OptionError: not even the smallest formats are small enough.
    """
    times = None if options.format_times is None else read_format_times(options.format_times)
    choices = options.formats or usual_formats(options.max_slowdown, options.device, times)
    slow = [one for one in usual_formats(inf, options.device, times) if one not in choices]
    every: list[list[PlannedWeight]] = []
    settled: list[PlannedWeight | Skip] = []
    for weight, fixed, values in wanted:
        found = [] if fixed is not None else candidates_for(weight, values, choices, slow, options, data.method)
        only = found[0] if found else last_resort(weight, values, options, data.method) if fixed is None else fixed
        every.append(found if found or isinstance(only, Skip) else [only])
        settled.append(only)
    places = [place for place, found in enumerate(every) if found]
    weights = [every[place][0].weight for place in places]
    held = _Bytes(_other_bytes(data.model, weights, data.method), sum(weight.elements for weight in weights))
    allowed = held.allowed(options)
    many = every if options.formats is not None else [_without_few_bits(found) for found in every]
    if allowed is not None and _smallest(many) + held.other > allowed:
        many = every
    if allowed is not None and _smallest(many) + held.other > allowed:
        raise OptionError(_too_small(options, held, _smallest(many)))
    known = layer_losses({every[place][0].weight.name: [one.spec for one in many[place]] for place in places}, data)
    items = _items(places, many, known.losses, options.tie_inputs)
    others: list[_Item] = []
    if known.evened is not None:
        items, others = _items(places, many, known.evened, options.tie_inputs), items
    return Survey(options, tuple(settled), tuple(items), tuple(others), held, known, data.sources, times)


def with_choice(plan: Plan, correction: float = 1.0, uniform: str = "", other: bool = False) -> Plan:
    """A plan that a budget is chosen for, with what becomes of each weight, and what is told of the choice.

    Args:
        plan: one with a survey of what there is.
        correction: measured over predicted divergence, of an earlier choice.
        uniform: the format of `UniformChoice` that all weights get, in place of a choice for each. What bytes that
            leaves are spent where they gain most, on weights that lose no more in a larger format.
        other: by `Survey.others`.

    Where nothing was measured the choice begins at the best uniform format that fits, unless too many bytes are left
    then: a prior may be wrong about which layers matter, but not about which of two formats a layer loses less in.

    Raises:
        OptionError: not even the best formats reach the target.
    """
    assert plan.survey is not None
    found = replace(plan.survey, items=plan.survey.others) if other else plan.survey
    options, items, held, known = found.options, found.items, found.held, found.known
    all_uniform, remarks = _uniform(found, correction), []
    chosen = _solved_from(found, uniform, correction) if uniform else _solved(found, correction).formats
    if not uniform and known.unit == "none":
        allowed = held.allowed(options)
        fitting = [one for one in all_uniform if allowed is not None and one.bytes <= allowed]
        name = min(fitting, key=lambda one: (one.divergence, one.bytes)).format if fitting else ""
        from_uniform = _solved_from(found, name, correction) if name else chosen
        if name and _uses_the_bytes(found, from_uniform):
            chosen, remarks = from_uniform, [_UNSURE.format(name)]
    settled, loss = list(found.settled), 0.0
    shares: dict[str, float] = {}  # tied weights have that of all of them together, divided evenly
    for item, one in zip(items, chosen, strict=True):
        loss += item.losses[one]
        for place, planned in zip(item.places, item.candidates[one], strict=True):
            settled[place] = planned
            shares[planned.weight.name] = item.losses[one] / len(item.places)
    weights = [one for one in settled if isinstance(one, PlannedWeight)]
    size = held.other + sum(one.nbytes for one in weights) - _stored_once(weights, found.sources)
    outcome = BudgetOutcome(
        option=str(options.budget),
        target=getattr(options, str(options.budget)),
        unit=known.unit,
        bytes=size,
        allowed=held.allowed(options),
        bits=held.bits(size),
        predicted=correction * known.divergence(loss),
        correction=correction,
        shares={name: share / (loss or 1.0) for name, share in shares.items()},
        curve=tuple(
            CurvePoint(held.other + size, held.bits(held.other + size), correction * known.divergence(max(0.0, least)))
            for size, least in found.best_by_size
        ),
        uniform=all_uniform,
        token_time=_time(weights, found.times, lambda one: one.one_row),
        prompt_time=_time(weights, found.times, lambda one: one.many_rows),
        remarks=tuple(remarks),
    )
    return replace(plan, weights=tuple(weights), budget=outcome)


def _without_few_bits(found: list[PlannedWeight]) -> list[PlannedWeight]:
    return [one for one in found if one.spec.format.bits > _FEW_BITS] or found


def _smallest(every: Iterable[Sequence[PlannedWeight]]) -> int:
    return sum(min(one.nbytes for one in found) for found in every if found)


def _items(
    places: Sequence[int],
    every: Sequence[Sequence[PlannedWeight]],
    losses: Mapping[str, Sequence[float]],
    tied: bool,
) -> list[_Item]:
    """What is chosen for: each weight by itself, or those that read one input together, and the experts of a block that
    devices run as a whole. Of a block that none does each layer is run by itself, whatever the others have."""
    groups: dict[object, list[int]] = {}
    weights = [every[place][0].weight for place in places]
    blocks = {weight.name: number for number, block in enumerate(expert_blocks(weights)) for weight in block}
    for place, weight in zip(places, weights, strict=True):
        key: object = ("block", blocks[weight.name]) if weight.name in blocks else _input_of(weight) if tied else place
        groups.setdefault(key if len(every[place]) > 1 else place, []).append(place)
    items = []
    for group in groups.values():
        tables = [_by_format(every[place], losses[every[place][0].weight.name]) for place in group]
        common = [key for key in tables[0] if all(key in table for table in tables)]
        parts = [group] if common else [[place] for place in group]
        for part in parts:
            own = [table for place, table in zip(group, tables, strict=True) if place in part]
            keys = common or list(own[0])
            candidates = tuple(tuple(table[key][0] for table in own) for key in keys)
            items.append(_Item(tuple(part), candidates, tuple(sum(table[key][1] for table in own) for key in keys)))
    return items


def _by_format(
    found: Sequence[PlannedWeight], losses: Sequence[float]
) -> dict[tuple[str, int], tuple[PlannedWeight, float]]:
    table = {}
    for one, loss in zip(found, losses, strict=True):
        penalty = _FEW_BITS_PENALTY if one.spec.format.bits <= _FEW_BITS else 1.0
        table[one.spec.format.name, one.spec.group_size] = one, penalty * loss
    return table


def _input_of(weight: Weight) -> object:
    """What a weight's layers read, where they are MatMuls; the weight itself where they are not, or read several."""
    inputs = {None if use.input is None else (use.input.get_node(), use.input.get_index()) for use in weight.consumers}
    return inputs.pop() or weight.name if len(inputs) == 1 and weight.kind is Kind.MATMUL else weight.name


def _solved(found: Survey, correction: float) -> Allocation:
    """The best formats within the bytes; for a divergence the fewest bytes."""
    sizes, losses = [item.sizes for item in found.items], [item.losses for item in found.items]
    allowed = found.held.allowed(found.options)
    if allowed is None:
        return _least_bytes(found, correction)
    room = allowed - found.held.other
    best = allocate(sizes, losses, room)
    assert best is not None, "it was seen before that the smallest fit"
    for _ in range(_ROUNDS):  # what is stored once leaves room that the sum over weights does not see
        saved = _stored_once(_chosen(found.items, best), found.sources)
        more = allocate(sizes, losses, room + saved)
        if more is None or more.loss >= best.loss:
            break
        if more.size - _stored_once(_chosen(found.items, more), found.sources) > room:
            break
        best = more
    return best


def _solved_from(found: Survey, uniform: str, correction: float) -> tuple[int, ...]:
    """One format for all, and better ones where there are bytes left; that one alone where it does not even fit. Where
    that leaves more than half a layer, some weights get larger groups to make room for others."""
    base = _same_for_all(found.items, uniform)
    allowed = found.held.allowed(found.options)
    needed = sum(item.sizes[one] for item, one in zip(found.items, base, strict=True))
    if allowed is None or needed > allowed - found.held.other:
        return base
    pairs = list(zip(found.items, base, strict=True))
    chosen = _solved_among(found, [item.better_than(one) for item, one in pairs], correction)
    if _uses_the_bytes(found, chosen):
        return chosen
    return _solved_among(found, [item.of_no_fewer_bits_than(one) for item, one in pairs], correction)


def _solved_among(found: Survey, allowed: Sequence[Sequence[int]], correction: float) -> tuple[int, ...]:
    """The best formats within the bytes, of some of each item's candidates."""
    items = tuple(item.only(own) for item, own in zip(found.items, allowed, strict=True))
    solved = _solved(replace(found, items=items), correction)
    return tuple(own[one] for own, one in zip(allowed, solved.formats, strict=True))


def _uses_the_bytes(found: Survey, chosen: Sequence[int]) -> bool:
    """Whether no more of what is allowed is left than half a layer."""
    allowed = found.held.allowed(found.options)
    taken = [item.sizes[one] for item, one in zip(found.items, chosen, strict=True)]
    return allowed is not None and allowed - found.held.other - sum(taken) <= min(taken) / 2


def _least_bytes(found: Survey, correction: float) -> Allocation:
    """The smallest allocation whose predicted divergence is no larger than what was asked for."""
    target, known = found.options.target_divergence, found.known
    assert target is not None
    if known.unit == "none":
        raise OptionError(
            "target_divergence: nothing was measured from which a divergence could be predicted; give a dataset of the "
            "model's inputs, or use target_bits or target_size"
        )
    sizes, losses = [item.sizes for item in found.items], [item.losses for item in found.items]
    if not sizes:
        return Allocation((), 0, 0.0, 0.0)
    reached, lost = curve(sizes, losses)
    fine = [correction * known.divergence(max(0.0, loss)) <= target for loss in lost.tolist()]
    if not any(fine):
        least = correction * known.divergence(max(0.0, float(lost[-1])))
        raise OptionError(
            f"target_divergence: {plain(target)} cannot be reached: with the best formats there are to choose from "
            f"{plain(least)} {known.unit} are predicted"
        )
    best = allocate(sizes, losses, int(reached[fine.index(True)]))
    assert best is not None
    return best


def _chosen(items: Sequence[_Item], found: Allocation) -> list[PlannedWeight]:
    return [planned for item, one in zip(items, found.formats, strict=True) for planned in item.candidates[one]]


def _uniform(survey: Survey, correction: float) -> tuple[UniformChoice, ...]:
    """What each format for all weights would cost."""
    items, found = survey.items, []
    for name in dict.fromkeys(_format_name(candidate[0]) for item in items for candidate in item.candidates):
        chosen = list(zip(items, _same_for_all(items, name), strict=True))
        planned = [one for item, place in chosen for one in item.candidates[place]]
        size = survey.held.other + sum(one.nbytes for one in planned) - _stored_once(planned, survey.sources)
        loss = sum(item.losses[one] for item, one in chosen)
        found.append(UniformChoice(name, size, correction * survey.known.divergence(loss)))
    return tuple(sorted(found, key=lambda one: (one.bytes, one.divergence)))


def _same_for_all(items: Sequence[_Item], name: str) -> tuple[int, ...]:
    """One format for all: embeddings and last layers, and what cannot have it, have the largest of their candidates."""
    chosen = []
    for item in items:
        names = [_format_name(candidate[0]) for candidate in item.candidates]
        largest = max(range(len(names)), key=lambda place: (item.sizes[place], -place))
        backup = bool(item.candidates[0][0].weight.backup_reason)
        chosen.append(largest if backup or name not in names else names.index(name))
    return tuple(chosen)


def _format_name(planned: PlannedWeight) -> str:
    group = planned.spec.group_size
    return planned.spec.format.name + ("" if group == -1 else f":{group}")


def _time(planned: Iterable[PlannedWeight], times: FormatTimes | None, part: Any) -> float:
    """Of all layers that multiply, beside the same with every weight in int4_sym in groups of 128."""
    multiplied = [one for one in planned if is_multiplied(one.weight)]
    elements = sum(one.weight.elements for one in multiplied)
    taken = sum(
        one.weight.elements * part(time_of(one.spec.format.name, one.spec.group_size, times)) for one in multiplied
    )
    return float(taken) / elements if elements else 1.0


def _other_bytes(model: Any, weights: Sequence[Weight], method: Method) -> int:
    """What the .bin will hold beside the weights: all other constants, equal ones once, the shapes to which weights in
    groups are brought, and what AWQ may insert. Constants that take its factors may be equal no longer."""
    own = {node for weight in weights for node in weight.parts or (weight.constant,)}
    seen: set[object] = set()
    groups = equalization_groups(model, weights) if method.folds else []
    takers = {constant for group in groups for constant in _takers(group)}
    total = sum(_shape_bytes(shape) for shape in {weight.shape for weight in weights})
    total += sum(_multiply_bytes(group) for group in groups) if method.inserts else 0
    for graph in graphs_of(model):
        for constant, kind in graph.constants:
            if constant in own:
                continue
            size = bytes_of(constant)
            if not is_postponed(constant) and kind != "string" and size and constant not in takers:
                digest = hashlib.blake2b(constant.get_tensor_view().data.tobytes()).digest()
                if digest in seen:
                    continue
                seen.add(digest)
            total += size
    return total


def _takers(group: EqualizationGroup) -> list[Any]:
    """The constants that are divided by a group's factors, weights aside."""
    if isinstance(group.target, RowsTarget):
        return [bias.constant for bias in group.target.biases]
    found = () if group.target is None else (group.target.gain, group.target.bias)
    return [one.constant for one in found if one is not None]


def _multiply_bytes(group: EqualizationGroup) -> int:
    """Of the Multiplies that AWQ may insert where nothing takes a group's factors."""
    if group.target is not None or not group.behind_activation:
        return 0
    return 4 * group.columns * group.experts * len({layer.input_value(port) for layer, port in group.layers})


def _shape_bytes(shape: Sequence[int]) -> int:
    """Of the constant that a weight in groups is brought to its shape with."""
    return 8 * len(shape)


def _stored_once(planned: Sequence[PlannedWeight], sources: Sources) -> int:
    """Bytes that the sum over the weights and `_other_bytes` count and nobody stores: of weights that are stored as
    another's are (two constants of the same values), of scalars that many have, of shapes that no group needs. Where
    scales are searched for weights of the same values may differ, by what their layers read, and count as different."""
    first: dict[object, list[PlannedWeight]] = {}
    shapes = {one.weight.shape for one in planned}
    grouped = {one.weight.shape for one in planned if one.spec.group_size != -1}
    scalars = Counter(one.spec.format.zero_value for one in planned if one.spec.format.zero_point == "scalar")
    units = sum(one.has_unit_factor for one in planned)
    saved = sum(count - 1 for count in scalars.values()) + 4 * max(0, units - 1)
    saved += sum(_shape_bytes(shape) for shape in shapes - grouped)
    for one in planned:
        source = sources[one.weight]
        if one.spec.search or source.identity is None:
            continue
        key = (one.spec, one.weight.layout, one.absmax, one.expanded, source.element_type, source.fingerprint)
        others = first.setdefault(key, [])
        if any(sources[other.weight].equals(source) for other in others):
            saved += one.nbytes
        else:
            others.append(one)
    return saved


def _too_small(options: Options, held: _Bytes, smallest: int) -> str:
    name, size = str(options.budget), held.other + smallest
    if options.target_bits is not None:
        return (
            f"{name}: {options.target_bits:g} bits a weight cannot be reached: the smallest formats that there are to "
            f"choose from take {held.bits(size):.3f}"
        )
    assert options.target_size is not None
    return (
        f"{name}: {thousands(options.target_size)} bytes cannot be reached: with the smallest formats there are to "
        f"choose from the .bin takes {thousands(size)} bytes, {thousands(held.other)} of them for what is no weight or "
        "is left alone"
    )
