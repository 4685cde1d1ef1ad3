"""The formats that a budget chooses from: for each weight those that it can have.

Unless the caller names them they are what the device executes from codes in all of the weight's layers: 8 bits per
channel, 4 and 2 bits in groups of 16 to 128, without those that take much longer than the fastest of as many bits. A
table that rows are picked from and nothing else costs hardly any time, and a layer for which the device executes no
codes at all the same time whatever it holds, so these may have any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ov_weight_compression.ir_utils.device_facts import FormatTimes, time_of, working_groups
from ov_weight_compression.ir_utils.weight_source import ValueRange
from ov_weight_compression.passes.device_rules import runs_from_codes
from ov_weight_compression.passes.method import Method
from ov_weight_compression.passes.option_values import Device, Devices, FragileLayers, GroupSizeFallback, Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.plan import DecidedBy, FormatRequest, PlannedWeight
from ov_weight_compression.passes.planning import fit
from ov_weight_compression.passes.targets import FormatChoice
from ov_weight_compression.patterns import Kind, Skip, Weight
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
    return any(use.kind is not Kind.GATHER for use in weight.consumers)


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
        fitted = fit(weight, FormatRequest(one.mode, one.group, decided_by=(DecidedBy.BUDGET,)), values, strict, method)
        if isinstance(fitted, Skip) or fitted.spec.format.name != format.name:
            continue
        spec = fitted.spec
        found.setdefault((spec.format.name, spec.group_size, spec.scale_type), fitted)
    return list(found.values())


def last_resort(weight: Weight, values: ValueRange, options: Options, method: Method) -> PlannedWeight | Skip:
    """8 bits per channel, or why not even those: for a weight that no candidate fits."""
    request = FormatRequest(Mode.INT8_ASYM, PER_CHANNEL, "no format of the budget fits it", (DecidedBy.FALLBACK,))
    return fit(weight, request, values, options, method)
