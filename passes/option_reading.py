"""Make `Options` of what a caller gives, before a model is touched: what means nothing or contradicts itself is refused
with the field, the limit and the value, never silently ignored.

    recipe's options ◂─ what is given ◂─ what NNCF's advanced parameters say ─▸ each parsed by its kind ─▸ together
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import table_type, unknown_option
from ov_weight_compression.passes.advanced_parameters import read_advanced
from ov_weight_compression.passes.device_rules import refused_by_name
from ov_weight_compression.passes.method import Tuning
from ov_weight_compression.passes.option_values import Codebook, Device, GroupSizeFallback, Mode, SensitivityMetric
from ov_weight_compression.passes.options import OPTIONS, Options, differs, option_text
from ov_weight_compression.passes.rules import parse_rules
from ov_weight_compression.passes.runtime_hints import check_hints_for_cpu
from ov_weight_compression.passes.targets import BUDGETS, check_budget
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, with_codebook


def read_options(**given: Any) -> Options:
    """Check keyword arguments and make `Options` of them.

    Raises:
        OptionError: an unknown option, an impossible value, or a combination that means nothing.
    """
    if isinstance(given.get("codebook"), Codebook):
        given = given["codebook"].spread(given)
    if given.get("recipe") is not None:
        given = _with_recipe(given)
    asked, tuning = _parsed(given), Tuning()
    advanced = asked.pop("advanced_parameters", None)
    if advanced is not None:
        more, tuning = read_advanced(advanced, _running(asked))
        if asked.get("mode", Mode.INT8_ASYM).is_int8:
            more.pop("statistics_path", None)  # as NNCF's own example says it: there are none to keep
        given = {**more, **{name: given[name] for name in asked}}
        asked = _parsed(given)
    values = dict(asked)
    if any(name in asked for name in BUDGETS):
        check_budget(asked, "mode" in asked or given.get("mode", Mode.INT8_ASYM) is not Mode.INT8_ASYM)
        values["mode"] = Mode.INT4_SYM  # what the chosen formats are compared with
    if "sensitivity_metric" not in values and "dataset" in values:
        values["sensitivity_metric"] = SensitivityMetric.MAX_ACTIVATION_VARIANCE  # as NNCF chooses with data
    if "codebook" in values:
        _follow_table(values, given["codebook"])
    options = Options(**values, tuning=tuning)
    _check_together(options, asked)
    return options


def _with_recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe's file says, and over it what was given; given rules come before the recipe's."""
    from ov_weight_compression.passes.recipe import read_recipe

    read = read_recipe(OPTIONS["recipe"].kind.parse("recipe", given["recipe"]))
    own = {name: value for name, value in given.items() if name not in OPTIONS or value is not OPTIONS[name].default}
    said = dict(read.options) | ({} if read.data is None else {"dataset": read.data})
    if own.get("rules") and said.get("rules"):
        own["rules"] = (*parse_rules(own["rules"]), *parse_rules(said["rules"]))
    return {**said, **{name: value for name, value in own.items() if name != "recipe" and value is not None}}


def _modes(asked: Mapping[str, Any]) -> set[Mode | None]:
    return {asked.get("mode"), *(rule.mode for rule in asked.get("rules", ()))}


def _running(asked: Mapping[str, Any]) -> set[str]:
    """The algorithms that are asked for, by their parts of NNCF's advanced parameters."""
    wanted = {f"{name}_params" for name in ("awq", "scale_estimation", "gptq", "lora_correction") if asked.get(name)}
    return wanted | ({"adaptive_codebook_params"} if Mode.ADAPTIVE_CODEBOOK in _modes(asked) else set())


def _follow_table(values: dict[str, Any], table: Any) -> None:
    """What a table that is given decides where nothing else does: its type for `codebook`, and how many entries the
    fitted ones of `adaptive_codebook` have."""
    if Mode.ADAPTIVE_CODEBOOK in _modes(values):
        size = values.setdefault("codebook_size", len(values["codebook"]))
        if size != len(values["codebook"]):
            raise OptionError(f"codebook_size: must be that of the codebook, {len(values['codebook'])}, got {size}")
    elif "codebook_type" not in values:
        own = table_type(table)
        if own is not None:
            values["codebook_type"] = own


def _parsed(given: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, parsed."""
    values = {}
    for name, value in given.items():
        if name not in OPTIONS:
            raise unknown_option(name, OPTIONS)
        option = OPTIONS[name]
        value = option.kind.none if value is None else value
        if value is not None and differs(value, option.default):
            read = option.kind.parse(name, value)
            if differs(read, option.default):
                values[name] = read
    return values


def _check_together(options: Options, asked: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself or means nothing; `asked` are the options that are not left at their defaults."""
    mode = options.mode.value
    for name, value in asked.items():
        option = OPTIONS[name]
        if option.below_8_bits and options.mode.is_int8 and value is not False:
            given = "" if "mode" in asked else " (the default)"
            raise OptionError(
                f"{name}: means nothing with {mode}{given}, which gives every weight 8 bits; leave it out, or choose a "
                "mode of fewer bits, as int4_sym or nf4"
            )
        if option.need is not None and not option.need.met(options):
            raise OptionError(f"{name}: {option.need.words.format(mode=mode, value=option_text(value))}")
    if options.dataset is None and (
        options.scale_estimation or options.gptq or options.lora_correction or options.algorithm is not None
    ):
        raise OptionError(
            "dataset: scale_estimation, gptq, algorithm and lora_correction need one; "
            "give model inputs, or 'random' or 'self' for a language model"
        )
    if options.sensitivity_metric.needs_data and options.dataset is None:
        raise OptionError(
            f"sensitivity_metric: {options.sensitivity_metric.value} needs a dataset; give one, or use "
            "weight_quantization_error"
        )
    if options.scale_search == "off" and (options.scale_estimation or options.accuracy is not None):
        raise OptionError("scale_search: must not be 'off' with scale_estimation or accuracy, which are made of it")
    if options.runtime_hints and (not options.device or Device.CPU in options.device):
        check_hints_for_cpu(options.runtime_hints)
    used, fitted = Mode.CODEBOOK in options.modes, Mode.ADAPTIVE_CODEBOOK in options.modes
    if used and options.codebook is None:
        raise OptionError("codebook: the mode codebook needs a table of 2 to 65536 values; cb4 has one of its own")
    if options.codebook is not None and not used and not fitted:
        raise OptionError(f"codebook: means nothing with {mode}; use mode='codebook', or leave it out")
    if fitted and options.codebook_type == "u8":
        raise OptionError("codebook_type: adaptive_codebook fits values of both signs, which u8 cannot hold; use i8")
    if options.codebook is not None:
        try:
            with_codebook(FORMATS[Mode.CODEBOOK.value], options.codebook, options.codebook_type)
        except ValueError as error:
            raise OptionError(str(error)) from None
    _check_formats(options, asked)
    refused = (
        refused_by_name(options.device, options.mode, options.group_size, options.rules) if options.device else None
    )
    if refused is not None:
        raise OptionError(refused)


def _check_formats(options: Options, asked: Mapping[str, Any]) -> None:
    """Refuse what the formats do not allow: groups of another size than theirs, and what is for weights of 4 bits or
    fewer where no weight will have so few."""
    mode, own = options.mode.value, FORMATS[options.mode.value]
    if own.fixed_group and options.effective_group != own.default_group:
        raise OptionError(f"group_size: {mode} is defined for groups of {own.default_group}, got {options.group_size}")
    if own.fixed_group and "group_size_fallback" in asked and options.group_size_fallback is GroupSizeFallback.ADJUST:
        raise OptionError(
            f"group_size_fallback: {mode} has groups of {own.default_group} and no others, so they cannot be adjusted; "
            "use 'ignore' or 'error', or leave it out"
        )
    for place, rule in enumerate(options.rules):
        row = None if rule.mode is None else FORMATS[rule.mode.value]
        if row is not None and row.fixed_group and rule.group_size not in (None, row.default_group):
            raise OptionError(
                f"rules[{place}]: {row.name} is defined for groups of {row.default_group}, got {rule.group_size}"
            )
    if options.mode.is_int8:
        if options.ratio != 1:
            raise OptionError(f"ratio: {mode} gives every weight 8 bits, so only 1 is allowed, got {options.ratio:g}")
        if options.effective_group != PER_CHANNEL:
            raise OptionError(f"group_size: {mode} is per channel, so only -1 is allowed, got {options.group_size}")
        return
    if any(options.format_of(mode).default_search for mode in options.modes):
        return
    called = f"{mode} with {len(options.codebook)} values" if options.codebook else mode
    fitted = Mode.ADAPTIVE_CODEBOOK in options.modes
    for name in ("gptq", "algorithm", "awq", "lora_correction", "scale_estimation", "accuracy"):
        if asked.get(name) not in (None, False) and not (fitted and name in ("scale_estimation", "accuracy")):
            raise OptionError(
                f"{name}: changes only weights of 4 bits or fewer, of which {called} makes none; leave it out, or use "
                "a mode or a rule of 4 bits"
            )
