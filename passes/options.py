"""Every option, declared once: its name, type, default, what it takes, and what it means nothing without.

From this table follow the keyword arguments of `WeightCompression` and `apply_weight_compression` (written out there,
for editors and type checkers; a test holds them equal), the flags of the command with their help, and the recipe that a
model keeps in its rt_info. What is left at its default was not asked for, and None is the default everywhere.

`read_options` makes one frozen `Options` of what a caller gives, before a model is touched: what means nothing or
contradicts itself is refused with the field, the limit and the value, never silently ignored.

    recipe's options ◂─ what is given ◂─ what NNCF's advanced parameters say ─▸ each parsed by its kind ─▸ together
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import (
    PATH,
    OptionKind,
    anything,
    candidates,
    choice,
    count,
    flag,
    functions,
    group,
    number,
    one_of,
    table,
    table_type,
    unknown_option,
)
from ov_weight_compression.ir_utils.worker_pool import default_threads
from ov_weight_compression.passes.device_rules import check_by_name
from ov_weight_compression.passes.option_values import (
    DEVICES,
    Accuracy,
    BackupMode,
    Codebook,
    CodebookSharing,
    Device,
    Devices,
    FragileLayers,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
)
from ov_weight_compression.passes.plan import Tuning
from ov_weight_compression.passes.rules import Rule, parse_rules
from ov_weight_compression.passes.runtime_hints import check_hints_for_cpu, parse_runtime_hints
from ov_weight_compression.passes.targets import (
    BUDGETS,
    FormatChoice,
    byte_count,
    check_budget,
    format_choices,
    slowdown,
)
from ov_weight_compression.patterns import GivenSources, IgnoredScope, Roles, given_sources, parse_roles
from ov_weight_compression.patterns.ignored_scope import SCOPE
from ov_weight_compression.quantization.formats import CODEBOOK_TYPES, FORMATS, PER_CHANNEL, Format, with_codebook
from ov_weight_compression.quantization.lloyd import stand_in

if TYPE_CHECKING:
    from ov_weight_compression.quantization.gptq import Step


# ruff: noqa: RUF009  (`declared` makes a `dataclasses.field`)


_LEAST_MEMORY = 1 << 26
_MOST_THREADS = 4096


@dataclass(frozen=True)
class Need:
    """What an option means nothing without."""

    met: Callable[[Options], bool]
    words: str
    """After "means nothing": "{value} means nothing without lora_correction=True"; `{mode}` is the mode's name."""


@dataclass(frozen=True)
class Option:
    """One row of the table."""

    name: str
    default: Any
    """In a signature: None where it depends on other options or on the machine."""
    kind: OptionKind
    help: str
    flag: str | None
    """On the command line; None where it has none, or one that the command reads itself."""
    recorded: Literal["always", "asked", "never"]
    """In the recipe: "asked" means where it is not the default, or where its need is met."""
    below_8_bits: bool
    """It means nothing with the 8-bit integer modes, which give every weight 8 bits."""
    need: Need | None
    with_data: bool
    usual: str
    """In the help of the command: what None means where it is the default."""


def declared(
    default: Any,
    kind: OptionKind,
    help: str,
    *,
    flag: str | None = "",
    recorded: Literal["always", "asked", "never"] = "asked",
    below_8_bits: bool = False,
    need: Need | None = None,
    with_data: bool = False,
    make: Callable[[], Any] | None = None,
    usual: str = "",
) -> Any:
    """A field of `Options`; see `Option`. `make` computes its value where None stands in the signature."""
    row = (default, kind, help, flag, recorded, below_8_bits, need, with_data, usual)
    return field(default=MISSING if make else default, default_factory=make or MISSING, metadata={"option": row})


def _read_format(value: Any) -> str:
    if str(getattr(value, "value", value)) != "dequantize":
        raise OptionError("compression_format: only 'dequantize' is written, for the others train with NNCF")
    return "dequantize"


def _read_executor(value: Any) -> Executor:
    if not callable(getattr(value, "submit", None)):
        raise ValueError(value)
    found: Executor = value
    return found


_RULES = OptionKind("a list of (pattern, mode) pairs", parse_rules, "RulesLike")
_EXECUTOR = OptionKind("an executor as concurrent.futures has them", _read_executor, "Executor")
_ROLES = OptionKind("", parse_roles, "Roles")
_STEPS = functions("Step", "target, draft, hessian, grid")
_CODEBOOK = replace(table(), annotation="Sequence[float] | NDArray[Any] | Codebook")
_HINTS = OptionKind("a dict of runtime hints' names and values", parse_runtime_hints, "Mapping[str, Any]")
_SOURCES = OptionKind("a mapping from weights' names to their sources, or a function", given_sources, "GivenSources")

_WITH_TABLE = Need(
    lambda options: Mode.CODEBOOK in options.modes or Mode.ADAPTIVE_CODEBOOK in options.modes,
    "means nothing with {mode}, only with codebook and adaptive_codebook; leave it out",
)
_WITH_FITTED_TABLE = Need(
    lambda options: Mode.ADAPTIVE_CODEBOOK in options.modes,
    "means nothing with {mode}, only with adaptive_codebook; leave it out",
)
_OWN_VALUES = Need(lambda options: options.sources is None, "means nothing with sources, which it cannot tell apart")
_FEWER_BITS = Need(
    lambda options: not (options.mode.is_int8 and options.fragile_layers is FragileLayers.MODE),
    "{value} means nothing with {mode}, which they have anyway; leave it out",
)
_COMPUTED = Need(lambda options: not options.lazy, "{value} means nothing without lazy=False")
_WITH_BUDGET = Need(
    lambda options: options.budget is not None,
    "means nothing without target_bits, target_size or target_divergence; leave it out",
)
_OWN_CHOICE = Need(
    lambda options: options.budget is not None and options.formats is None,
    "means nothing but for a budget that chooses among the formats a device executes: it needs target_bits, "
    "target_size or target_divergence, and no formats",
)
_WITH_LORA = Need(lambda options: options.lora_correction, "{value} means nothing without lora_correction=True")


@dataclass(frozen=True)
class Options:
    """Every option, parsed; `read_options` makes one from keyword arguments."""

    mode: Mode = declared(Mode.INT8_ASYM, one_of(Mode), "how weights are stored", recorded="always")
    ratio: float = declared(1.0, number(0, 1), "share of the parameters in that mode", recorded="always")
    group_size: int | None = declared(
        None,
        group(),
        "weights that share a scale, -1 for one scale a channel",
        recorded="always",
        usual="the mode's own",
    )
    ignored_scope: IgnoredScope | None = declared(None, SCOPE, "what to leave alone", flag=None)
    all_layers: bool = declared(
        False, flag(), "the mode for embeddings and the last layer too", recorded="always", below_8_bits=True
    )
    backup_mode: BackupMode = declared(
        BackupMode.INT8_ASYM, one_of(BackupMode), "what the rest gets", recorded="always", below_8_bits=True
    )
    fragile_layers: FragileLayers = declared(
        FragileLayers.BACKUP,
        one_of(FragileLayers),
        "what routers of experts and gates of recurrences get: backup, float or mode",
        need=_FEWER_BITS,
    )
    sensitivity_metric: SensitivityMetric = declared(
        None,
        one_of(SensitivityMetric),
        "what decides which weights keep the backup mode where the ratio is below 1",
        recorded="always",
        below_8_bits=True,
        make=lambda: SensitivityMetric.WEIGHT_QUANTIZATION_ERROR,
        usual="weight_quantization_error; with data max_activation_variance",
    )
    group_size_fallback: GroupSizeFallback = declared(
        None,
        one_of(GroupSizeFallback),
        "for weights that the group size does not divide",
        recorded="always",
        make=lambda: GroupSizeFallback.ADJUST,
        usual="adjust",
    )
    min_adjusted_group_size: int = declared(16, count(2), "the smallest group that a group size is adjusted to")
    rules: tuple[Rule, ...] = declared((), _RULES, "what particular weights get, by name", flag=None)
    target_bits: float | None = declared(
        None,
        number(0.5, 32),
        "best formats for so many bits a weight, scales counted",
        usual="none",
    )
    target_size: int | None = declared(
        None,
        byte_count(),
        "best formats for so large a .bin",
        usual="none",
    )
    target_divergence: float | None = declared(
        None,
        number(1e-9, 1e3),
        "smallest model within this KL",
        usual="none",
    )
    formats: tuple[FormatChoice, ...] | None = declared(
        None,
        format_choices(),
        "what a target chooses from, as in int4_sym:64,nf4:32,int8_asym",
        need=_WITH_BUDGET,
        usual="what the device executes",
    )
    max_slowdown: float = declared(
        1.25,
        slowdown(),
        "how slow a format may be beside the fastest of the same bits for a target to choose it; none for any",
        need=_OWN_CHOICE,
    )
    format_times: Path | None = declared(
        None,
        PATH,
        "table of benchmarks.format_times, measured on your machine",
        recorded="never",
        need=_WITH_BUDGET,
        usual="the package's",
    )
    tie_inputs: bool = declared(
        False,
        flag(),
        "one format for layers that read the same input, so that they can be fused",
        need=_WITH_BUDGET,
    )
    roles: Roles | None = declared(None, _ROLES, "what operations of one's own make of their weights", flag=None)
    scale_search: str | int = declared(
        "auto",
        candidates(),
        "better scales for 4 bits and fewer: auto, off or a number of candidates",
        recorded="always",
    )
    dataset: Any = declared(
        None, anything("Any"), "what to calibrate with", flag=None, below_8_bits=True, with_data=True
    )
    accuracy: Accuracy | None = declared(
        None,
        one_of(Accuracy),
        "what to do with data, in rising order of time and accuracy",
        below_8_bits=True,
        with_data=True,
        usual="scales weighted by the data alone",
    )
    scale_estimation: bool = declared(
        False, flag(), "scale search weighted by the data", below_8_bits=True, with_data=True
    )
    gptq: bool = declared(False, flag(), "codes by GPTQ", below_8_bits=True, with_data=True)
    algorithm: tuple[Step, ...] | None = declared(
        None, _STEPS, "the steps for each layer, in place of GPTQ's", flag=None, below_8_bits=True, with_data=True
    )
    awq: bool | None = declared(
        None,
        flag(),
        "scale input channels so that important ones lose less; works without data too",
        below_8_bits=True,
        with_data=True,
        usual="on with accuracy=fast, else off",
    )
    lora_correction: bool = declared(
        False, flag(), "thin layers that carry what rounding lost", below_8_bits=True, with_data=True
    )
    lora_rank: int = declared(
        8, count(1), "how thin: channels between the two", below_8_bits=True, need=_WITH_LORA, with_data=True
    )
    subset_size: int | None = declared(None, count(1), "windows of the data to use", with_data=True, usual="128")
    context_length: int | None = declared(None, count(2), "tokens in a window", with_data=True, usual="256")
    statistics_path: Path | None = declared(
        None,
        PATH,
        "folder to keep statistics in, and to read them from if they are there",
        recorded="never",
        below_8_bits=True,
        need=_OWN_VALUES,
        with_data=True,
        usual="none are kept",
    )
    calibration_memory: int | None = declared(
        None,
        count(_LEAST_MEMORY, 1 << 48),
        "bytes that calibration may hold",
        recorded="never",
        with_data=True,
        usual="2 GiB",
    )
    codebook: tuple[float, ...] | None = declared(
        None, _CODEBOOK, "the table of codebook, 2 to 65536 values", recorded="never", usual="none"
    )
    codebook_type: str = declared(
        None,
        choice(CODEBOOK_TYPES),
        "what a table is stored as",
        need=_WITH_TABLE,
        usual="f8e4m3",
        make=lambda: "f8e4m3",
    )
    codebook_size: int = declared(
        None,
        count(2, 65536),
        "entries of the tables of adaptive_codebook",
        need=_WITH_FITTED_TABLE,
        usual="as many as the codebook has, or 16",
        make=lambda: 16,
    )
    codebook_sharing: CodebookSharing = declared(
        CodebookSharing.NONE, one_of(CodebookSharing), "which weights share one of them", need=_WITH_FITTED_TABLE
    )
    device: Devices = declared(
        (),
        DEVICES,
        "choose formats that this device executes compressed, or all of several, or of AUTO",
        usual="none",
    )
    runtime_hints: Mapping[str, str] | None = declared(
        None, _HINTS, "what a device is to do at inference, written into the model", flag=None
    )
    lazy: bool = declared(
        True, flag(), "compute the weights when the model is saved or compiled", flag=None, recorded="never"
    )
    verify: bool = declared(False, flag(), "run layers and compare", flag=None, recorded="never", need=_COMPUTED)
    executor: Executor | None = declared(
        None, _EXECUTOR, "where probes run and layers are coded", flag=None, recorded="never", with_data=True
    )
    threads: int = declared(
        None,
        count(1, _MOST_THREADS),
        "threads to compute with",
        recorded="never",
        make=default_threads,
        usual="OMP_NUM_THREADS, or the processors there are",
    )
    quiet: bool = declared(True, flag(), "show no progress while calibrating", flag=None, recorded="never")
    compression_format: str = declared(
        "dequantize", OptionKind("", _read_format, "str"), "NNCF's; no other is written", flag=None, recorded="never"
    )
    advanced_parameters: Any = declared(
        None, anything("Any"), "NNCF's; what has a counterpart here is taken", flag=None, recorded="never"
    )
    sources: GivenSources | None = declared(None, _SOURCES, "where values come from", flag=None, recorded="never")
    recipe: Path | None = declared(None, PATH, "a file that says the options", flag=None, recorded="never")
    tuning: Tuning = field(default_factory=Tuning)
    """No option: what NNCF's advanced parameters say of the algorithms."""
    modes: tuple[Mode, ...] = field(init=False)
    """The mode that was asked for, and those of the rules and of the budget's formats."""
    effective_group: int = field(init=False)
    """The group size asked for, or the mode's own."""
    budget: str | None = field(init=False)
    """The name of the option that says what the formats are chosen for; None where `mode` says it all."""

    def __post_init__(self) -> None:
        named = (rule.mode for rule in self.rules if rule.mode is not None)
        own = FORMATS[self.mode.value].default_group
        object.__setattr__(self, "modes", (self.mode, *named, *(one.mode for one in self.formats or ())))
        object.__setattr__(self, "effective_group", own if self.group_size is None else self.group_size)
        object.__setattr__(self, "budget", next((name for name in BUDGETS if getattr(self, name) is not None), None))

    def format_of(self, mode: Mode) -> Format:
        """The format of a mode; for `codebook` the one with the caller's table, for `adaptive_codebook` one with a
        stand-in for the tables that will be fitted."""
        row = FORMATS[mode.value]
        if mode is Mode.ADAPTIVE_CODEBOOK:
            return stand_in(row, self.codebook_size, self.codebook_type)
        if mode is not Mode.CODEBOOK:
            return row
        assert self.codebook is not None
        return with_codebook(row, self.codebook, self.codebook_type)

    def as_recipe(self) -> dict[str, str]:
        """The options as strings, for the model's rt_info: what a reader needs to make the same model again."""
        recipe = {}
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            asked = type(value) is not type(option.default) or value != option.default
            met = option.need is not None and option.need.met(self)
            if option.recorded == "always" or (option.recorded == "asked" and (met or asked)):
                recipe[name] = option_text(self.effective_group if name == "group_size" else value)
        return recipe

    def nncf_recipe(self) -> dict[str, Any]:
        """The options by NNCF's keys and in its spellings, which other tools read: texts, and a section for a scope."""
        scope = self.ignored_scope
        filled = {} if scope is None else {part.name: getattr(scope, part.name) for part in fields(scope)}
        ignored = {name: str(list(value)) for name, value in filled.items() if name != "validate" and value}
        advanced = {
            "statistics_path": None if self.statistics_path is None else str(self.statistics_path),
            "group_size_fallback_mode": self.group_size_fallback.value,
            "min_adjusted_group_size": self.min_adjusted_group_size,
        }
        return {
            "mode": self.mode.value,
            "group_size": str(self.effective_group),
            "ratio": f"{self.ratio:g}",
            "all_layers": str(self.all_layers),
            "ignored_scope": ignored or "[]",
            "sensitivity_metric": self.sensitivity_metric.value,
            "awq": str(bool(self.awq)),
            "scale_estimation": str(self.scale_estimation),
            "gptq": str(self.gptq),
            "lora_correction": str(self.lora_correction),
            "backup_mode": self.backup_mode.value,
            "compression_format": "dequantize",
            "advanced_parameters": str(advanced),
        }


OPTIONS: Mapping[str, Option] = {
    one.name: Option(one.name, *one.metadata["option"]) for one in fields(Options) if "option" in one.metadata
}
"""The table, in the order of the signatures."""


def option_text(value: Any) -> str:
    """An option's value as a text, for a message or a recipe."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, IgnoredScope):
        parts = [(part.name, getattr(value, part.name)) for part in fields(value)]
        return "; ".join(f"{name}={own}" for name, own in parts if own)
    if isinstance(value, Mapping) and all(isinstance(key, tuple) for key in value):  # roles
        return "; ".join(f"{operation}:{port}" for operation, port in value)
    if isinstance(value, Mapping) and all(isinstance(own, str) for own in value.values()):  # runtime hints
        return "; ".join(f"{name}={own}" for name, own in value.items())
    if isinstance(value, tuple):
        return "; ".join(getattr(part, "__name__", None) or str(getattr(part, "value", part)) for part in value)
    return str(value) if isinstance(value, (str, bool, int, float)) else type(value).__name__


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
        from ov_weight_compression.passes.compat import read_advanced

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
        kind, default = OPTIONS[name].kind, OPTIONS[name].default
        value = kind.none if value is None else value
        if value is None or (type(value) is type(default) and value == default):
            continue
        value = kind.parse(name, value)
        if type(value) is not type(default) or value != default:
            values[name] = value
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
    if len(options.device) == 1:
        check_by_name(options.device[0], options.mode, options.effective_group, options.rules)


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
