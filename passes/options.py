"""Every option, declared once: its name, type, default, what it takes, and what it means nothing without.

From this table follow the keyword arguments of `WeightCompression` and `apply_weight_compression` (written out there,
for editors and type checkers; a test holds them equal), the flags of the command with their help, and the recipe that a
model keeps in its rt_info. What a caller gives becomes one frozen `Options` (`option_reading`). What is left at its
default was not asked for, and None is the default everywhere.
"""

# ruff: noqa: RUF009  (`declared` makes a `dataclasses.field`)

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import (
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
    path,
    table,
)
from ov_weight_compression.ir_utils.worker_pool import default_threads
from ov_weight_compression.passes.method import Tuning
from ov_weight_compression.passes.option_values import (
    DEVICES,
    Accuracy,
    BackupMode,
    CodebookSharing,
    Devices,
    FragileLayers,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
)
from ov_weight_compression.passes.rules import Rule, parse_rules
from ov_weight_compression.passes.runtime_hints import parse_runtime_hints
from ov_weight_compression.passes.targets import (
    BUDGETS,
    FormatChoice,
    byte_count,
    format_choices,
    slowdown,
)
from ov_weight_compression.patterns import GivenSources, IgnoredScope, Roles, given_sources, parse_roles
from ov_weight_compression.quantization.formats import CODEBOOK_TYPES, FORMATS, Format, with_codebook
from ov_weight_compression.quantization.lloyd import stand_in

if TYPE_CHECKING:
    from ov_weight_compression.quantization.layerwise import Step

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
_SCOPE = OptionKind("", IgnoredScope.of, "Any")
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
    """Every option, parsed; `option_reading.read_options` makes one from keyword arguments."""

    mode: Mode = declared(Mode.INT8_ASYM, one_of(Mode), "how weights are stored", recorded="always")
    ratio: float = declared(1.0, number(0, 1), "share of the parameters in that mode", recorded="always")
    group_size: int | None = declared(
        None,
        group(),
        "weights that share a scale, -1 for one scale a channel",
        recorded="always",
        usual="the mode's own",
    )
    ignored_scope: IgnoredScope | None = declared(None, _SCOPE, "what to leave alone", flag=None)
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
        path(),
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
        path(),
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
    recipe: Path | None = declared(None, path(), "a file that says the options", flag=None, recorded="never")
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
            met = option.need is not None and option.need.met(self)
            if option.recorded == "always" or (option.recorded == "asked" and (met or differs(value, option.default))):
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


def differs(value: Any, default: Any) -> bool:
    """Whether a parsed value is not the default. Only values of one type are compared: others may not like it."""
    return value is not default and not (type(value) is type(default) and bool(value == default))
