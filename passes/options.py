"""What a caller asks for, checked once: loose keyword arguments become one frozen `Options`.

Everything is validated before a model is touched, and a combination that means nothing is refused with the field, the
limit and the value, never silently ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.jobs import default_threads
from ov_weight_compression.passes import readers
from ov_weight_compression.passes.advanced import read_advanced
from ov_weight_compression.passes.modes import (
    Accuracy,
    BackupMode,
    CodebookSharing,
    Device,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
    parse_enum,
)
from ov_weight_compression.passes.rules import Rule, check_group, parse_rules
from ov_weight_compression.passes.tuning import Tuning
from ov_weight_compression.patterns import IgnoredScope
from ov_weight_compression.quantization.formats import FORMATS, TABLE_TYPES, Format, with_table
from ov_weight_compression.quantization.lloyd import stand_in

__all__ = ["Options", "read_options"]

LORA_RANK = 8
SMALLEST_ADJUSTED_GROUP = 16


@dataclass(frozen=True)
class Options:
    """Every option, parsed. `read_options` makes one from keyword arguments; the fields are explained there."""

    mode: Mode = Mode.INT8_ASYM
    ratio: float = 1.0
    group_size: int | None = None
    ignored_scope: IgnoredScope | None = None
    all_layers: bool = False
    backup_mode: BackupMode = BackupMode.INT8_ASYM
    sensitivity_metric: SensitivityMetric = SensitivityMetric.WEIGHT_QUANTIZATION_ERROR
    group_size_fallback: GroupSizeFallback = GroupSizeFallback.ADJUST
    min_adjusted_group_size: int = SMALLEST_ADJUSTED_GROUP
    rules: tuple[Rule, ...] = ()
    scale_search: str | int = "auto"
    dataset: Any = None
    subset_size: int | None = None
    context_length: int | None = None
    scale_estimation: bool = False
    gptq: bool = False
    awq: bool | None = None
    """None: where `accuracy="fast"` has data."""
    lora_correction: bool = False
    lora_rank: int = LORA_RANK
    accuracy: Accuracy | None = None
    statistics_path: Path | None = None
    calibration_memory: int | None = None
    quiet: bool = True
    codebook: tuple[float, ...] | None = None
    codebook_type: str = "f8e4m3"
    codebook_size: int = 16
    codebook_sharing: CodebookSharing = CodebookSharing.NONE
    lazy: bool = True
    threads: int = field(default_factory=default_threads)
    device: Device | None = None
    tuning: Tuning = field(default_factory=Tuning)

    def row(self, mode: Mode) -> Format:
        """The format of a mode; for `codebook` the one with the caller's table, for `adaptive_codebook` one with a
        stand-in for the tables that will be fitted."""
        row = FORMATS[mode.value]
        if mode is Mode.ADAPTIVE_CODEBOOK:
            return _stand_in(row, self.codebook_size, self.codebook_type)
        if mode is not Mode.CODEBOOK:
            return row
        assert self.codebook is not None
        return with_table(row, self.codebook, self.codebook_type)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The mode that was asked for, and those of the rules."""
        return (self.mode, *(rule.mode for rule in self.rules if rule.mode is not None))

    def uses(self, mode: Mode) -> bool:
        """Whether a mode is the one that was asked for, or that of a rule."""
        return mode in self.modes

    @property
    def effective_group(self) -> int:
        """The group size asked for, or the mode's own."""
        return FORMATS[self.mode.value].default_group if self.group_size is None else self.group_size

    def recipe(self) -> dict[str, str]:
        """The options as strings, for the model's rt_info: what a reader needs to make the same model again."""
        recipe = {
            "mode": self.mode.value,
            "ratio": repr(self.ratio),
            "group_size": str(self.effective_group),
            "backup_mode": self.backup_mode.value,
            "all_layers": str(self.all_layers),
            "sensitivity_metric": self.sensitivity_metric.value,
            "group_size_fallback": self.group_size_fallback.value,
            "scale_search": str(self.scale_search),
        }
        if self.uses(Mode.CODEBOOK) or self.uses(Mode.ADAPTIVE_CODEBOOK):
            recipe["codebook_type"] = self.codebook_type
        if self.uses(Mode.ADAPTIVE_CODEBOOK):
            recipe.update(codebook_size=str(self.codebook_size), codebook_sharing=self.codebook_sharing.value)
        if self.accuracy is not None:
            recipe["accuracy"] = self.accuracy.value
        for name in ("awq", "scale_estimation", "gptq", "lora_correction"):
            if getattr(self, name):
                recipe[name] = "True"
        if self.awq is False and self.accuracy is Accuracy.FAST:
            recipe["awq"] = "False"
        if self.lora_correction:
            recipe["lora_rank"] = str(self.lora_rank)
        if self.dataset is not None:
            recipe["dataset"] = self.dataset if isinstance(self.dataset, str) else type(self.dataset).__name__
        if self.rules:
            recipe["rules"] = "; ".join(map(str, self.rules))
        if self.ignored_scope is not None:
            scope = self.ignored_scope
            parts = [f"{part.name}={getattr(scope, part.name)}" for part in fields(scope) if getattr(scope, part.name)]
            recipe["ignored_scope"] = "; ".join(parts)
        if self.device is not None:
            recipe["device"] = self.device.value
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


def read_options(**given: Any) -> Options:
    """Check keyword arguments and make `Options` of them. `WeightCompression` documents each.

    Raises:
        OptionError: an unknown option, an impossible value, or a combination that means nothing.
    """
    advanced, tuning = given.pop("advanced_parameters", None), Tuning()
    if advanced is not None:
        more, tuning = read_advanced(advanced, _running(given))
        given = {**more, **{name: value for name, value in given.items() if value is not None}}
    known = {*_READERS, "compression_format"}
    for name in given:
        if name not in known:
            raise OptionError(f"unknown option {name!r}; there are {', '.join(sorted(known))}")
    how = given.get("compression_format")
    if str(getattr(how, "value", how) or "dequantize") != "dequantize":
        raise OptionError("compression_format: only 'dequantize' is written, for the others train with NNCF")
    values = {name: reader(given[name]) for name, reader in _READERS.items() if given.get(name) is not None}
    if "sensitivity_metric" not in values and "dataset" in values:
        values["sensitivity_metric"] = SensitivityMetric.MAX_ACTIVATION_VARIANCE  # as NNCF chooses with data
    if values.get("codebook") is not None:
        _follow_table(values, given["codebook"])
    options = Options(**values, tuning=tuning)
    _check_together(options, given)
    return options


def _running(given: Mapping[str, Any]) -> set[str]:
    """The algorithms that are asked for, by their parts of NNCF's advanced parameters."""
    wanted = {f"{name}_params" for name in ("awq", "scale_estimation", "gptq", "lora_correction") if given.get(name)}
    modes = [given.get("mode"), *(rule.mode for rule in parse_rules(given.get("rules")))]
    if any(str(getattr(mode, "value", mode)).strip().lower() == "adaptive_codebook" for mode in modes):
        wanted.add("adaptive_codebook_params")
    return wanted


def _follow_table(values: dict[str, Any], table: Any) -> None:
    """What a table that is given decides where nothing else does: its type for `codebook`, and how many entries the
    fitted ones of `adaptive_codebook` have."""
    modes = {values.get("mode"), *(rule.mode for rule in values.get("rules", ()))}
    if Mode.ADAPTIVE_CODEBOOK in modes:
        size = values.setdefault("codebook_size", len(values["codebook"]))
        if size != len(values["codebook"]):
            raise OptionError(f"codebook_size: must be that of the codebook, {len(values['codebook'])}, got {size}")
    elif "codebook_type" not in values:
        own = readers.table_type(table)
        if own is not None:
            values["codebook_type"] = own


_MEANINGLESS_IN_INT8 = (
    *("all_layers", "backup_mode", "sensitivity_metric", "dataset", "awq", "scale_estimation", "gptq"),
    *("accuracy", "statistics_path", "lora_correction", "lora_rank"),
)

_READERS: Mapping[str, Any] = {
    "mode": lambda value: parse_enum(Mode, value, "mode"),
    "ratio": readers.number("ratio", 0, 1),
    "group_size": lambda value: check_group(value, "group_size"),
    "ignored_scope": IgnoredScope.of,
    "all_layers": readers.flag("all_layers"),
    "backup_mode": lambda value: parse_enum(BackupMode, value, "backup_mode"),
    "sensitivity_metric": lambda value: parse_enum(SensitivityMetric, value, "sensitivity_metric"),
    "group_size_fallback": lambda value: parse_enum(GroupSizeFallback, value, "group_size_fallback"),
    "min_adjusted_group_size": readers.count("min_adjusted_group_size", 2),
    "rules": parse_rules,
    "scale_search": readers.scale_search,
    "dataset": lambda value: value,
    "subset_size": readers.count("subset_size", 1),
    "context_length": readers.count("context_length", 2),
    "scale_estimation": readers.flag("scale_estimation"),
    "gptq": readers.flag("gptq"),
    "awq": readers.flag("awq"),
    "lora_correction": readers.flag("lora_correction"),
    "lora_rank": readers.count("lora_rank", 1),
    "accuracy": lambda value: parse_enum(Accuracy, value, "accuracy"),
    "statistics_path": readers.path("statistics_path"),
    "calibration_memory": readers.count("calibration_memory", 1 << 26),
    "quiet": readers.flag("quiet"),
    "codebook": readers.table("codebook"),
    "codebook_size": readers.count("codebook_size", 2, 65536),
    "codebook_sharing": lambda value: parse_enum(CodebookSharing, value, "codebook_sharing"),
    "codebook_type": readers.choice("codebook_type", TABLE_TYPES),
    "lazy": readers.flag("lazy"),
    "threads": readers.count("threads", 1),
    "device": lambda value: parse_enum(Device, value, "device"),
}


def _check_together(options: Options, given: Mapping[str, Any]) -> None:
    mode = options.mode.value
    own = FORMATS[mode]
    if own.fixed_group and options.effective_group != own.default_group:
        raise OptionError(f"group_size: {mode} is defined for groups of {own.default_group}, got {options.group_size}")
    if own.fixed_group and given.get("group_size_fallback") and options.group_size_fallback is GroupSizeFallback.ADJUST:
        raise OptionError(
            f"group_size_fallback: {mode} has groups of {own.default_group} and no others, so they cannot be adjusted; "
            "use 'ignore' or 'error', or leave it out"
        )
    if options.mode.is_int8:
        if options.ratio != 1:
            raise OptionError(f"ratio: {mode} gives every weight 8 bits, so only 1 is allowed, got {options.ratio:g}")
        if options.effective_group != -1:
            raise OptionError(f"group_size: {mode} is per channel, so only -1 is allowed, got {options.group_size}")
        for name in _MEANINGLESS_IN_INT8:
            if given.get(name) is not None and given[name] is not False:
                raise OptionError(f"{name}: means nothing with {mode}, which gives every weight 8 bits; leave it out")
    if options.sensitivity_metric.needs_data and options.dataset is None:
        raise OptionError(
            f"sensitivity_metric: {options.sensitivity_metric.value} needs a dataset; give one, or use "
            "weight_quantization_error"
        )
    if given.get("lora_rank") is not None and not options.lora_correction:
        raise OptionError(f"lora_rank: {options.lora_rank} means nothing without lora_correction=True")
    if options.scale_search == "off" and (options.scale_estimation or options.accuracy is not None):
        raise OptionError("scale_search: must not be 'off' with scale_estimation or accuracy, which are made of it")
    _check_codebook(options, given)
    _check_few_bits(options, given)
    for number, rule in enumerate(options.rules):
        if rule.mode is None:
            continue
        row = FORMATS[rule.mode.value]
        if rule.group_size is not None and row.fixed_group and rule.group_size != row.default_group:
            raise OptionError(
                f"rules[{number}]: {rule.mode.value} is defined for groups of {row.default_group}, "
                f"got {rule.group_size}"
            )


def _check_few_bits(options: Options, given: Mapping[str, Any]) -> None:
    """Refuse what is for weights of 4 bits or fewer where no weight will have so few."""
    if options.mode.is_int8 or any(options.row(mode).default_search for mode in options.modes):
        return
    told = f"{options.mode.value} with {len(options.codebook or ())} values" if options.codebook else options.mode.value
    fitted = options.uses(Mode.ADAPTIVE_CODEBOOK)
    for name in ("gptq", "awq", "lora_correction", "scale_estimation", "accuracy"):
        if given.get(name) not in (None, False) and not (fitted and name in ("scale_estimation", "accuracy")):
            raise OptionError(
                f"{name}: changes only weights of 4 bits or fewer, of which {told} makes none; leave it out, or use a "
                "mode or a rule of 4 bits"
            )


@lru_cache(maxsize=8)
def _stand_in(row: Format, size: int, table_type: str) -> Format:
    return stand_in(row, size, table_type)


def _check_codebook(options: Options, given: Mapping[str, Any]) -> None:
    used, fitted = options.uses(Mode.CODEBOOK), options.uses(Mode.ADAPTIVE_CODEBOOK)
    for name, wanted in (
        ("codebook_type", used or fitted),
        ("codebook_size", fitted),
        ("codebook_sharing", fitted),
    ):
        if given.get(name) is not None and not wanted:
            modes = "adaptive_codebook" if name != "codebook_type" else "codebook and adaptive_codebook"
            raise OptionError(f"{name}: means nothing with {options.mode.value}, only with {modes}; leave it out")
    if used and options.codebook is None:
        raise OptionError("codebook: the mode codebook needs a table of 2 to 65536 values; cb4 has one of its own")
    if options.codebook is not None and not used and not fitted:
        raise OptionError(f"codebook: means nothing with {options.mode.value}; use mode='codebook', or leave it out")
    if fitted and options.codebook_type == "u8":
        raise OptionError("codebook_type: adaptive_codebook fits values of both signs, which u8 cannot hold; use i8")
    if options.codebook is not None:
        try:
            with_table(FORMATS[Mode.CODEBOOK.value], options.codebook, options.codebook_type)
        except ValueError as error:
            raise OptionError(str(error)) from None
