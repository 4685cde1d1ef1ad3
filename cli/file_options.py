"""What each model of a folder is compressed with.

    options for all  <  the pipeline's own defaults  <  options for some files  <  rules, which may name a file

A pipeline's parts are not alike (see `ir_utils.model_folder`). Where the mode has fewer than 8 bits, only the large
ones get it, and the others 8 bits; unless a file's own options say otherwise, or the caller wants it everywhere.

A rule, or an entry of the ignored scope, that names a file (`openvino_language_model.xml:*q_proj*`) is for that file
alone; any other has to match something in at least one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from ov_weight_compression.ir_utils.errors import OptionError, one_line
from ov_weight_compression.ir_utils.model_folder import PipelineKind, names_file, part_of, pipeline_of, split_file
from ov_weight_compression.ir_utils.option_kinds import parse_enum, shown
from ov_weight_compression.passes.option_values import BackupMode, Mode
from ov_weight_compression.passes.options import OPTIONS
from ov_weight_compression.passes.recipe import Recipe
from ov_weight_compression.passes.rules import Rule, matching
from ov_weight_compression.passes.targets import BUDGETS, DECIDED, OF_BUDGETS
from ov_weight_compression.patterns import IgnoredScope, find_weights
from ov_weight_compression.patterns.graphs import graphs_of
from ov_weight_compression.quantization.formats import FORMATS

_ENTRIES = ("names", "patterns", "types")
_Entry = TypeVar("_Entry", Rule, str)


@dataclass(frozen=True)
class FileOptions:
    """One model's."""

    options: dict[str, Any]
    """Keyword arguments of the pass."""
    data: str | None = None
    """What to calibrate with, as the command line names it."""
    note: str = ""
    """What was chosen for the caller, in words."""


def options_by_file(names: Sequence[str], asked: Recipe, read: Callable[[str], Any]) -> dict[str, FileOptions]:
    """What each of the models with these paths in their folder gets.

    Args:
        names: with slashes, relative to the folder.
        asked: what for. Of its further options for some files, the first that name a file count, and their rules come
            before those for all; models that get 8 bits are not calibrated with its data.
        read: a model by its name; called only where rules and ignored names are shared out between several.

    Raises:
        OptionError: a rule, an entry of the ignored scope, or a pattern for files that matches nothing.
    """
    for pattern in asked.files:
        if not any(names_file(pattern, name) for name in names):
            raise OptionError(f"files: {shown(pattern)} names no model of the folder; it has {_listed(names)}")
    if asked.options.get("target_size") is not None and len(names) > 1:
        raise OptionError(
            f"target_size: is that of one model's .bin, and the folder has {len(names)} models: use target_bits, or "
            "give it to one of them in a recipe (files)"
        )
    pipeline = pipeline_of(names) if asked.pipeline_defaults else None
    found = {name: _own(name, asked, pipeline) for name in names}
    models = _Models(read)
    _share_rules(found, models)
    _share_scopes(found, models)
    return found


def given_to_passes(folder: Path) -> Callable[[FileOptions, str], dict[str, Any]]:
    """What gives the keyword arguments of the pass for a model of the folder: its options and the dataset that they
    name, which is read once for all models unless it has samples for each.

    Raises:
        OptionError: when asked, of data that are not there or cannot be read.
    """

    @cache
    def dataset(data: str, name: str) -> Any:
        from ov_weight_compression.calibration import read_data

        return read_data(data, folder, name)

    def given(own: FileOptions, name: str) -> dict[str, Any]:
        if own.data is None:
            return own.options
        return {**own.options, "dataset": dataset(own.data, name if Path(own.data).is_dir() else "")}

    return given


def _listed(names: Iterable[str]) -> str:
    return one_line(", ".join(names), 150)


def _own(name: str, asked: Recipe, pipeline: PipelineKind | None) -> FileOptions:
    options, data = asked.options, asked.data
    own = next((more for pattern, more in asked.files.items() if names_file(pattern, name)), {})
    note, few_bits = "", _few_bits(options)
    mode = None if "mode" not in own else parse_enum(Mode, own["mode"], "mode")
    if pipeline is not None and few_bits and mode is None and not pipeline.is_main(name):
        mode = _eight_bits(options)
        note = (
            f"the {pipeline.kind} pipeline's {part_of(name)} gets {mode.value}, not {few_bits}: it is small, or all "
            "the rest goes by it (--no-pipeline-defaults gives every part the same)"
        )
    given = {key: value for key, value in options.items() if mode is None or _suits(key, mode)}
    if any(budget in own for budget in BUDGETS):
        given = {key: value for key, value in given.items() if key not in (*BUDGETS, "mode", *DECIDED)}
    given |= {key: value for key, value in own.items() if key != "data"} | ({} if mode is None else {"mode": mode})
    if "rules" in own and "rules" in options:
        given["rules"] = (*_rules(own), *_rules(options))
    return FileOptions(given, own.get("data", None if mode is not None and mode.is_int8 else data), note)


def _few_bits(options: Mapping[str, Any]) -> str:
    """The mode that was asked for, where it has fewer than 8 bits, or the budget; else nothing."""
    budget = next((name for name in BUDGETS if options.get(name) is not None), None)
    word = options.get("mode")
    if budget is not None:
        return f"what {budget} leaves it"
    if word in (None, "none"):
        return ""
    mode = parse_enum(Mode, word, "mode").value
    return mode if FORMATS[mode].bits < 8 else ""


def _eight_bits(options: Mapping[str, Any]) -> Mode:
    """What small parts get: the backup mode, where that is of 8-bit integers."""
    word = options.get("backup_mode")
    backup = BackupMode.INT8_ASYM if word is None else parse_enum(BackupMode, word, "backup_mode")
    return Mode.INT8_SYM if backup is BackupMode.INT8_SYM else Mode.INT8_ASYM


def _suits(name: str, mode: Mode) -> bool:
    """Whether an option that was given for all files means something for one with another mode."""
    row = OPTIONS.get(name)
    if name in (*BUDGETS, *OF_BUDGETS):
        return False
    if name == "group_size":
        return not mode.is_int8 and not FORMATS[mode.value].fixed_group
    if row is None or not mode.is_int8:
        return True
    return not (row.below_8_bits or row.with_data or name == "ratio" or name.startswith("codebook"))


def _rules(options: Mapping[str, Any]) -> tuple[Rule, ...]:
    found: tuple[Rule, ...] = OPTIONS["rules"].kind.parse("rules", options.get("rules", ()))
    return found


def _share_rules(found: Mapping[str, FileOptions], models: _Models) -> None:
    """Leave each file the rules that are for it."""
    met: dict[Rule, bool] = {}
    for name, one in found.items():
        if "rules" in one.options:
            rules = {rule: rule.pattern for rule in _rules(one.options)}
            kept = _kept(name, rules, met, partial(models.has, name) if len(found) > 1 else None)
            one.options["rules"] = tuple(replace(rule, pattern=pattern) for rule, pattern in kept.items())
    for rule, matches in met.items():
        _check_met(f"rules: {shown(rule.pattern)}", rule.pattern, matches, found)


def _share_scopes(found: Mapping[str, FileOptions], models: _Models) -> None:
    """Leave each file the entries of its ignored scope that are for it."""
    met: dict[str, dict[str, bool]] = {kind: {} for kind in _ENTRIES}
    validate = True
    for name, one in found.items():
        scope = IgnoredScope.of(one.options.get("ignored_scope"))
        if scope is None:
            continue
        kept: dict[str, list[str]] = {}
        for kind in _ENTRIES:
            matches = partial(models.ignores, name, kind) if len(found) > 1 else None
            kept[kind] = [*_kept(name, {entry: entry for entry in getattr(scope, kind)}, met[kind], matches).values()]
        validate = validate and scope.validate
        if any(kept.values()) or scope.subgraphs:
            one.options["ignored_scope"] = {**kept, "subgraphs": scope.subgraphs, "validate": scope.validate}
        else:
            del one.options["ignored_scope"]
    for kind in _ENTRIES if validate else ():
        for entry, is_met in met[kind].items():
            _check_met(f"ignored_scope: {kind[:-1]} {shown(entry)}", entry, is_met, found)


def _kept(
    name: str, texts: Mapping[_Entry, str], met: dict[_Entry, bool], matches: Callable[[str], bool] | None
) -> dict[_Entry, str]:
    """The entries that are for a file, without the file's name that they may begin with; `met` is told which are for
    some file. `matches` says whether one that names no file is for this one; None where there is no other."""
    kept = {}
    for entry, text in texts.items():
        file, rest = split_file(text)
        own = names_file(file, name) if file else matches is None or matches(rest)
        met[entry] = met.get(entry, False) or own
        if own:
            kept[entry] = rest
    return kept


def _check_met(what: str, text: str, met: bool, names: Iterable[str]) -> None:
    if not met and split_file(text)[0]:
        raise OptionError(f"{what} is for a file that the folder does not have; its models: {_listed(names)}")
    if not met:
        raise OptionError(f"{what} matches nothing in any of the folder's models: {_listed(names)}")


class _Models:
    """The names in the models of a folder, each read once, and only where somebody asks."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = cache(read)
        self._weights = cache(lambda name: find_weights(self._read(name)))
        self._graphs = cache(lambda name: graphs_of(self._read(name)))

    def has(self, name: str, pattern: str) -> bool:
        """Whether a rule's pattern matches something in a model."""
        weights, skips = self._weights(name)
        apart = {own for skip in skips for own in (skip.name, skip.consumer)}
        return pattern in apart or bool(matching(pattern, weights))

    def ignores(self, name: str, kind: str, entry: str) -> bool:
        """Whether an entry of an ignored scope matches something in a model."""
        scope = IgnoredScope.of({kind: [entry], "validate": False})
        if scope is not None and scope.resolve(self._graphs(name)):
            return True
        weights, skips = self._weights(name)
        return kind == "names" and entry in {*(one.name for one in weights), *(one.name for one in skips)}
