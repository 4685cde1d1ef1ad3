"""What was done to every constant of a model, and why: as data, as JSON, and as tables for people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import openvino as ov

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import check_model
from ov_weight_compression.ir_utils.printing import as_text, format_name, human_bytes, terminal_table
from ov_weight_compression.ir_utils.publish import write_text
from ov_weight_compression.passes.budget_outcome import BudgetOutcome
from ov_weight_compression.passes.device_rules import CHECKED, RELEASE, device_warnings
from ov_weight_compression.passes.option_values import Device, Devices
from ov_weight_compression.passes.plan import DecidedBy, Plan
from ov_weight_compression.patterns import Skip

if TYPE_CHECKING:
    from ov_weight_compression.passes.lora import Correction
    from ov_weight_compression.passes.scale_folding import Scaling


COMPUTED = "computed by the exporter"
"""The origin of a weight that is no single tensor of the checkpoint."""


@dataclass(frozen=True)
class Row:
    """One compressed weight. Bytes are those of its constants in the .bin file, scales and zero points included; none
    where an earlier row's are the same and serve for both."""

    name: str
    consumer: str
    kind: str
    shape: tuple[int, ...]
    element_type: str
    mode: str
    group_size: int
    scale_type: str
    elements: int
    bytes_before: int
    bytes_after: int
    reason: str
    in_ratio: bool
    origin: str = ""
    """Which file and tensor of a checkpoint it is; empty where the model itself is the source."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element, everything counted."""
        return 8 * self.bytes_after / self.elements


@dataclass(frozen=True)
class Share:
    """One line of the shares per format, counted as NNCF counts them."""

    mode: str
    group_size: int
    weights: int
    elements: int
    bytes_before: int
    bytes_after: int
    ratio_weights: int
    ratio_elements: int


@dataclass(frozen=True)
class Report:
    """Every compressed weight and every constant that was left alone, in graph order."""

    rows: tuple[Row, ...]
    skips: tuple[Skip, ...]
    recipe: dict[str, str]
    warnings: tuple[str, ...] = ()
    """What the caller is warned of: weights left alone or regrouped, samples left out, what the target device (the CPU
    where none is named) is known to expand when it compiles the model, an OpenVINO that nobody has looked at."""
    scalings: tuple[Scaling, ...] = ()
    """AWQ: for each tensor that layers of few bits read, what took its factors, or why it has none."""
    corrections: tuple[Correction, ...] = ()
    """LoRA correction: for each weight of few bits, the adapters beside its layer, or why there are none."""
    note: str = ""
    """What was chosen for the caller in place of what was asked for, in words."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Tensors of a checkpoint that are in no constant of its models, and why."""
    budget: BudgetOutcome | None = None
    """What a budget has chosen, and what there was to choose from."""

    @property
    def bytes_before(self) -> int:
        """Bytes of the compressed weights as they were."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes_after(self) -> int:
        """Bytes of the compressed weights as they are, scales, zero points and whatever was added included."""
        added = [*(scaling.bytes for scaling in self.scalings), *(line.bytes for line in self.corrections)]
        return sum(row.bytes_after for row in self.rows) + sum(added)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element of the compressed weights; 0 where there are none."""
        elements = sum(row.elements for row in self.rows)
        return 8 * self.bytes_after / elements if elements else 0.0

    @property
    def shares(self) -> tuple[Share, ...]:
        """The weights summed by mode and group, the largest share first."""
        grouped: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault((row.mode, row.group_size), []).append(row)
        found = [
            Share(
                *key,
                weights=len(rows),
                elements=sum(row.elements for row in rows),
                bytes_before=sum(row.bytes_before for row in rows),
                bytes_after=sum(row.bytes_after for row in rows),
                ratio_weights=sum(row.in_ratio for row in rows),
                ratio_elements=sum(row.elements for row in rows if row.in_ratio),
            )
            for key, rows in grouped.items()
        ]
        return tuple(sorted(found, key=lambda share: -share.elements))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "recipe": self.recipe,
            "totals": {
                "weights": len(self.rows),
                "skipped": len(self.skips),
                "bytes_before": self.bytes_before,
                "bytes_after": self.bytes_after,
                "bits_per_weight": round(self.bits_per_weight, 4),
            },
            **({"note": self.note} if self.note else {}),
            "warnings": list(self.warnings),
            "shares": [asdict(share) for share in self.shares],
            **({} if self.budget is None else {"budget": self.budget.to_dict()}),
            "weights": [
                {key: own for key, own in asdict(row).items() if key != "origin" or own}
                | {"bits_per_weight": round(row.bits_per_weight, 4)}
                for row in self.rows
            ],
            **({"scalings": [asdict(scaling) for scaling in self.scalings]} if self.scalings else {}),
            **({"corrections": [asdict(line) for line in self.corrections]} if self.corrections else {}),
            "skips": [asdict(skip) for skip in self.skips],
            **({"unused": dict(self.unused)} if self.unused else {}),
        }

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    def __str__(self) -> str:
        return as_text(lambda console: print_report(self, console), 120)


def make_report(plan: Plan, recipe: dict[str, str], devices: Devices) -> Report:
    """The report of a plan: sizes follow from shapes and formats, so they are exact before anything is computed."""
    warnings = plan.remarks + device_warnings(devices, ((one.weight, one.spec.format) for one in plan.weights))
    if (not devices or Device.CPU in devices) and RELEASE not in CHECKED:
        warnings += (
            f"what CPUs misread was measured with OpenVINO {', '.join(CHECKED)}, and nobody has looked at "
            f"{RELEASE}: `ov-compress verify` does",
        )
    lines: tuple[Correction, ...] = ()
    if plan.method.lora_rank:
        from ov_weight_compression.passes.lora import corrections

        lines = corrections(plan)
    rows = []
    first = {place: plan.weights[places[0]].weight.name for places in plan.equal for place in places[1:]}
    for place, planned in enumerate(plan.weights):
        weight, spec = planned.weight, planned.spec
        shared = f"the same bytes as {first[place]}" if place in first else ""
        rows.append(
            Row(
                name=weight.name,
                consumer=weight.consumers[0].name,
                kind=weight.kind.value,
                shape=weight.shape,
                element_type=weight.element_type,
                mode=spec.format.name,
                group_size=spec.group_size,
                scale_type=planned.stored_scale_type,
                elements=weight.elements,
                bytes_before=weight.bytes,
                bytes_after=0 if shared else planned.nbytes,
                reason="; ".join(filter(None, (planned.reason, shared))),
                in_ratio=DecidedBy.RATIO in planned.decided_by,
            )
        )
    scalings = (*(fold.report() for fold in plan.folding.folds), *plan.folding.left)
    return Report(tuple(rows), tuple(plan.skips), recipe, warnings, scalings, lines, budget=plan.budget)


def with_origins(report: Report, origins: Mapping[str, str], unused: Mapping[str, str]) -> Report:
    """A report that says of each weight where it came from, by the weight's name, and what was not needed."""
    otherwise = COMPUTED if origins else ""
    rows = tuple(replace(row, origin=origins.get(row.name, otherwise)) for row in report.rows)
    return replace(report, rows=rows, unused=unused)


def joined(kept: Report, made: Report) -> Report:
    """The report of a model of which some weights had their codes already, and others were compressed."""
    names = {row.name for row in kept.rows}
    skips = tuple(skip for skip in made.skips if skip.name not in names)
    warnings = tuple(dict.fromkeys((*kept.warnings, *made.warnings)))  # of the device, both may say the same
    return replace(made, rows=(*kept.rows, *made.rows), skips=skips, warnings=warnings)


REPORTS: WeakKeyDictionary[ov.Model, Report] = WeakKeyDictionary()
"""What `report_of` gives for a model, for as long as it lives."""


def report_of(model: ov.Model) -> Report:
    """What `apply_weight_compression` did to this very model, the last time.

    Args:
        model: what it was called with.

    Raises:
        OptionError: nothing, in this process. Clones and models that were read have no report; `inspect` looks at what
            is stored.
    """
    check_model(model)
    if model not in REPORTS:
        raise OptionError(
            "report_of: apply_weight_compression has not been called with this model (clones, and models that were "
            "read from files, have no report: inspect says what they hold)"
        )
    return REPORTS[model]


_NAMED = 3


def share_cells(report: Report, share: Share) -> tuple[str, str, str, str, str, str]:
    """What is said of a share: its format, what its weights were ("f16"), how many, bytes before and after, bits."""
    own = (row for row in report.rows if (row.mode, row.group_size) == (share.mode, share.group_size))
    return (
        format_name(share.mode, share.group_size),
        ", ".join(sorted({row.element_type for row in own})),
        str(share.weights),
        human_bytes(share.bytes_before),
        human_bytes(share.bytes_after),
        f"{8 * share.bytes_after / share.elements:.2f}",
    )


def _shares_table(report: Report, title: str) -> Any:
    numbers = dict.fromkeys(("weights", "params", "before", "after", "bits/weight"), "number")
    everything = sum(row.elements for row in report.rows) or 1
    rows = []
    for share in report.shares:
        *named, before, after, bits = share_cells(report, share)
        rows.append((*named, f"{share.elements / everything:.1%}", before, after, bits))
    table = terminal_table(title, {"format": "word", "was": "word", **numbers}, rows)
    table.add_section()
    sizes = human_bytes(report.bytes_before), human_bytes(report.bytes_after)
    table.add_row("all of them", "", str(len(report.rows)), "100.0%", *sizes, f"{report.bits_per_weight:.2f}")
    return table


def ratio_line(report: Report) -> str:
    """What a ratio below 1 decided, in words; nothing where none was asked for."""
    decided = [row for row in report.rows if row.in_ratio]
    if float(report.recipe.get("ratio", 1)) >= 1 or not decided:
        return ""
    mode = report.recipe["mode"]
    own = [row for row in decided if row.mode == mode]
    share = sum(row.elements for row in own) / sum(row.elements for row in decided)
    return (
        f"ratio {report.recipe['ratio']}: {mode} for {len(own)} of the {len(decided)} weights that it is about, "
        f"{share:.1%} of their parameters; the others are the most sensitive."
    )


def exceptions(report: Report) -> list[tuple[str, str, str, str, str]]:
    """Weights that got another format than the mode, or got it with something to be said: format, why, how many, bytes
    before and after; the most bytes first."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        if row.reason:
            grouped.setdefault((format_name(row.mode, row.group_size), explained(row.reason)), []).append(row)
    found = []
    for (name, reason), own in sorted(grouped.items(), key=lambda item: -sum(row.bytes_after for row in item[1])):
        before, after = (human_bytes(sum(getattr(row, key) for row in own)) for key in ("bytes_before", "bytes_after"))
        found.append((name, reason, str(len(own)), before, after))
    return found


def explained(reason: str) -> str:
    """A reason for those who do not know the options."""
    for start, more in _EXPLAINED.items():
        if reason == start or reason.startswith((f"{start};", f"{start},")):
            return f"{start} {more}{reason[len(start) :]}"
    return reason


_EXPLAINED = {
    "embedding": "(gets the backup mode; all_layers gives it the mode)",
    "last layer": "(gets the backup mode; all_layers gives it the mode)",
}


def left_in_floats(report: Report) -> list[tuple[str, str, str]]:
    """Constants that were left alone, by reason: why, how many, bytes; the most bytes first."""
    counts, sizes = Counter(skip.reason for skip in report.skips), Counter[str]()
    for skip in report.skips:
        sizes[skip.reason] += skip.bytes
    return [(reason, str(counts[reason]), human_bytes(size)) for reason, size in sizes.most_common()]


def _scaling_lines(report: Report) -> list[str]:
    """What AWQ did, counted; inserted Multiplies by name, for they cost something at run time."""
    if not report.scalings:
        return []
    counts = Counter(scaling.into for scaling in report.scalings)
    lines = [
        f"AWQ scaled {len(report.scalings) - counts['']} of {len(report.scalings)} layer inputs: "
        f"{counts['norm']} folded into norms, {counts['weight']} into weights, "
        f"{counts['multiply']} by an inserted Multiply."
    ]
    lines += [f"  inserted {scaling.name}" for scaling in report.scalings if scaling.into == "multiply"]
    reasons = Counter(scaling.reason for scaling in report.scalings if not scaling.into)
    return lines + [f"  {count} left: {reason}" for reason, count in reasons.most_common()]


def _correction_lines(report: Report) -> list[str]:
    """What LoRA correction added, and what it could not."""
    if not report.corrections:
        return []
    added = [line for line in report.corrections if not line.reason]
    size = human_bytes(sum(line.bytes for line in added))
    ranks = sorted({line.rank for line in added}, reverse=True)
    kinds = f" of rank {', '.join(map(str, ranks))}" if ranks else ""
    lines = [f"LoRA correction: adapters{kinds} beside {len(added)} of {len(report.corrections)} layers, {size}."]
    left = [line.left for line in added if line.left is not None]
    if left:
        lines.append(f"  they leave {sum(left) / len(left):.0%} of the output error of a layer, on average")
    reasons = Counter(line.reason for line in report.corrections if line.reason)
    return lines + [f"  {count} without: {reason}" for reason, count in reasons.most_common()]


def print_report(report: Report, console: Any, notes: bool = True, planned: bool = False) -> None:
    """Print the tables to a rich console, and what the caller is warned of unless that is said elsewhere; `planned` of
    what was not done."""
    if report.note:
        console.print(report.note, highlight=False, soft_wrap=True)
    if not report.rows:
        console.print("No weight would be compressed." if planned else "No weight was compressed.")
    else:
        console.print(_shares_table(report, "What the weights would become" if planned else "What the weights became"))
    if ratio_line(report):
        console.print(ratio_line(report), highlight=False, soft_wrap=True)
    numbers = dict.fromkeys(("weights", "before", "after"), "number")
    if rows := exceptions(report):
        title = "Not in the format asked for, or not simply, and why"
        console.print(terminal_table(title, {"format": "word", "why": "text", **numbers}, rows), highlight=False)
    if left := left_in_floats(report):
        columns = {"why": "text", "constants": "number", "size": "number"}
        console.print(terminal_table("Left in floats, and why", columns, left), highlight=False)
    if report.budget is not None:
        from ov_weight_compression.passes.budget_outcome import print_budget

        print_budget(report.budget, console)
    for line in (*_scaling_lines(report), *_correction_lines(report)):
        console.print(line, highlight=False, soft_wrap=True)
    if "data" in report.recipe:
        console.print(f"Calibrated with {report.recipe['data']}.", highlight=False, soft_wrap=True)
    for reason, count in Counter(report.unused.values()).items():
        names = [name for name, why in report.unused.items() if why == reason]
        more = ", …" if count > _NAMED else ""
        line = f"In no model: {count} of the checkpoint's tensors: {reason} ({', '.join(names[:_NAMED])}{more})."
        console.print(line, highlight=False, soft_wrap=True)
    for warning in report.warnings if notes else ():
        console.print(f"note: {warning}", style="yellow", highlight=False, soft_wrap=True)
