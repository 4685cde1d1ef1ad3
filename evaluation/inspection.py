"""Looking into a model, whoever compressed it: what every weight is stored as, and what a device does with it.

A stored weight is called by the option of compression that makes such a weight, whoever made this one (see
`layers.mode_of`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from os import PathLike
from typing import TYPE_CHECKING, Any

import openvino as ov

from ov_weight_compression.evaluation.device import DeviceCheck, Execution, check_device
from ov_weight_compression.evaluation.layers import mode_of, zero_point_of
from ov_weight_compression.ir_utils import option_kinds
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.ir_file import read_model
from ov_weight_compression.ir_utils.model_folder import models_in
from ov_weight_compression.ir_utils.printing import (
    as_text,
    human_bytes,
    result_console,
    short_format,
    short_name,
    terminal_table,
    thousands,
)
from ov_weight_compression.ir_utils.publish import expanded
from ov_weight_compression.ir_utils.types import FLOAT_TYPES
from ov_weight_compression.patterns import (
    CompressedWeight,
    Roles,
    Skip,
    Weight,
    find_compressed,
    find_weights,
    parse_roles,
)
from ov_weight_compression.patterns.compressed import read_metadata
from ov_weight_compression.patterns.find import REPORTED_ELEMENTS
from ov_weight_compression.patterns.graphs import bytes_of, constants_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


@dataclass(frozen=True)
class InspectedWeight:
    """A weight that is stored compressed."""

    name: str
    """Friendly name of the constant that holds its codes."""
    layer: str
    """Friendly name of the first layer that reads it."""
    kind: str
    """What sort of layer: matmul, gather, experts, convolution."""
    mode: str
    """The option of compression that makes such a weight."""
    storage: str
    """Element type of the codes."""
    group_size: int
    """-1: one scale per channel, or for the whole weight."""
    scale_type: str
    """Element type of the scales; with "× f32" where a second scale belongs to the whole weight, with "per 128 × 128"
    where there is one a block; empty for none."""
    zero_point: str
    """Element type of the zero points, with ", one" for a single one; empty for none."""
    shape: tuple[int, ...]
    elements: int
    bytes: int
    """Codes, zero points, scales and table; what several weights share is counted with the first of them."""
    body: str = ""
    """The body of an If or Loop that it lies in; empty in the model itself."""
    executions: tuple[Execution, ...] = ()
    """What the device does with it in each layer; empty where none was asked."""

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element."""
        return 8 * self.bytes / self.elements

    @property
    def executed(self) -> str:
        """What the device does with it, in words; empty where none was asked."""
        runs = [one for one in self.executions if one.verdict == "compressed" and not one.misread]
        plainly = f"runs from codes: {', '.join(dict.fromkeys(one.operation for one in runs))}" if runs else ""
        told = (plainly if one in runs else str(one) for one in self.executions)
        return ", ".join(dict.fromkeys(told))


@dataclass(frozen=True)
class InspectedFloat:
    """A constant of 1024 floating-point elements or more that is not compressed."""

    name: str
    consumer: str
    element_type: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    reason: str
    """Why compression leaves it alone, or "a weight that can be compressed"."""


@dataclass(frozen=True)
class FormatRow:
    """Weights that are stored alike, read by the same sort of layer, and treated alike by the device."""

    kind: str
    mode: str
    storage: str
    group_size: int
    scale_type: str
    zero_point: str
    executed: str
    weights: int
    elements: int
    bytes: int
    bits_per_weight: float


@dataclass(frozen=True)
class FloatRow:
    """Uncompressed constants of one type with one reason."""

    element_type: str
    reason: str
    constants: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """Every compressed weight and every larger float constant of a model, in graph order."""

    model: str
    """Name, or path of the file."""
    weights: tuple[InspectedWeight, ...]
    floats: tuple[InspectedFloat, ...]
    constants_bytes: int
    """Bytes of all constants of the model, those that are listed nowhere included."""
    recipe: dict[str, Any]
    """What the model says about how it was made: the sections `weight_compression`, `nncf`, `optimum` and
    `runtime_options`."""
    device: dict[str, str] | None = None
    """Name of the device, its own name for itself, OpenVINO's version and what was compiled."""

    @property
    def elements(self) -> int:
        """Elements of the compressed weights."""
        return sum(weight.elements for weight in self.weights)

    @property
    def bytes(self) -> int:
        """Bytes of the compressed weights."""
        return sum(weight.bytes for weight in self.weights)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element of the compressed weights; 0 where there are none."""
        return 8 * self.bytes / self.elements if self.elements else 0.0

    @property
    def formats(self) -> tuple[FormatRow, ...]:
        """The compressed weights summed by format, sort of layer and execution, the most bytes first."""
        groups: dict[tuple[str, str, str, int, str, str, str], list[InspectedWeight]] = {}
        for one in self.weights:
            key = (one.kind, one.mode, one.storage, one.group_size, one.scale_type, one.zero_point, one.executed)
            groups.setdefault(key, []).append(one)
        rows = []
        for key, members in groups.items():
            elements, size = sum(one.elements for one in members), sum(one.bytes for one in members)
            rows.append(FormatRow(*key, len(members), elements, size, 8 * size / elements))
        return tuple(sorted(rows, key=lambda row: -row.bytes))

    @property
    def float_groups(self) -> tuple[FloatRow, ...]:
        """The uncompressed constants summed by type and reason, the most bytes first."""
        groups: dict[tuple[str, str], list[InspectedFloat]] = {}
        for one in self.floats:
            groups.setdefault((one.element_type, one.reason), []).append(one)
        rows = [
            FloatRow(*key, len(members), _total(members, "elements"), _total(members, "bytes"))
            for key, members in groups.items()
        ]
        return tuple(sorted(rows, key=lambda row: -row.bytes))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "model": self.model,
            "recipe": self.recipe,
            "device": self.device,
            "totals": {
                "weights": len(self.weights),
                "elements": self.elements,
                "bytes": self.bytes,
                "bits_per_weight": round(self.bits_per_weight, 4),
                "float_constants": len(self.floats),
                "float_bytes": _total(self.floats, "bytes"),
                "constants_bytes": self.constants_bytes,
            },
            "formats": [asdict(row) for row in self.formats],
            "weights": [
                {**asdict(one), "bits_per_weight": round(one.bits_per_weight, 4), "executed": one.executed}
                for one in self.weights
            ],
            "floats": [asdict(one) for one in self.floats],
        }

    def print(self, every: bool = False) -> None:
        """Print tables to the terminal; `every` lists each weight."""
        _print(self, result_console(), every)

    def __str__(self) -> str:
        return as_text(lambda console: _print(self, console), 120)


def _total(members: Iterable[Any], field: str) -> int:
    return sum(getattr(one, field) for one in members)


def inspect(
    model: ov.Model | str | PathLike[str], device: str | None = None, *, roles: Roles | None = None
) -> Inspection:
    """What a model's weights are stored as.

        print(inspect("int4/openvino_model.xml", device="CPU"))

    Args:
        model: an `ov.Model`, which is not changed; an .xml or .onnx file; or a folder with one openvino_*.xml.
        device: look what this device makes of each weight, too; see `check_device`.
        roles: what operations of your own make of their weights, as `WeightCompression` takes it.

    Raises:
        ModelError: the file cannot be read, or the folder holds no model, or several.
        OptionError: there is no such device.
        WorkError: the device cannot compile a layer of the model.
    """
    device = option_kinds.optional(option_kinds.word(), "device", device)
    if isinstance(model, ov.Model):
        name, read = str(model.get_friendly_name()), model
    else:
        path = expanded("model", option_kinds.PATH.parse("model", model))
        models = models_in(path)
        if len(models) > 1:
            names = ", ".join(str(one.relative_to(path)) for one in models)
            raise ModelError(f"{path}: several models ({names}); name one of the files")
        name, read = str(models[0]), read_model(models[0])
    own = None if roles is None else parse_roles(roles)
    found = find_compressed(read, own)
    check = check_device(read, found, device, roles=own) if device is not None else None
    return Inspection(
        model=name,
        weights=_weights(found, check),
        floats=_floats(*find_weights(read, roles=own)),
        constants_bytes=constants_bytes(read),
        recipe=read_metadata(read),
        device=_told(check) if check is not None else None,
    )


def _weights(found: Sequence[CompressedWeight], check: DeviceCheck | None) -> tuple[InspectedWeight, ...]:
    counted: set[ov.Node] = set()
    rows = []
    for number, one in enumerate(found):
        own = [part for part in one.constants if part not in counted]
        counted.update(own)
        rows.append(
            InspectedWeight(
                name=one.name,
                layer=one.consumers[0].name,
                kind=one.kind.value,
                mode=mode_of(one),
                storage=one.storage,
                group_size=one.group_size,
                scale_type=_scales(one),
                zero_point=zero_point_of(one),
                shape=tuple(int(size) for size in one.end.shape),
                elements=one.elements,
                bytes=sum(bytes_of(part) for part in own),
                body=one.body,
                executions=check.executions[number] if check is not None else (),
            )
        )
    return tuple(rows)


def _scales(one: CompressedWeight) -> str:
    """Their type, and what is peculiar to them."""
    text = one.scale_type or ""
    if one.tensor_scale is not None:
        return f"{text} × f32"
    return f"{text} per {one.code_shape[1]} × {one.code_shape[3]}" if one.end != one.last else text


def _floats(weights: Sequence[Weight], skips: Sequence[Skip]) -> tuple[InspectedFloat, ...]:
    """Float constants of some size that are no part of a compressed weight."""
    rows = [
        InspectedFloat(
            one.name,
            one.consumers[0].name,
            one.element_type,
            one.shape,
            one.elements,
            one.bytes,
            "a weight that can be compressed",
        )
        for one in weights
        if one.element_type in FLOAT_TYPES
    ]
    for skip in skips:
        if skip.element_type in FLOAT_TYPES and not skip.reason.startswith("belongs to "):
            size = prod(skip.shape)
            rows.append(
                InspectedFloat(skip.name, skip.consumer, skip.element_type, skip.shape, size, skip.bytes, skip.reason)
            )
    return tuple(row for row in rows if row.elements >= REPORTED_ELEMENTS)


def _told(check: DeviceCheck) -> dict[str, str]:
    return {"device": check.device, "name": check.name, "openvino": check.openvino, "method": check.method}


_NAME = 44


def _print(inspection: Inspection, console: Console, every: bool = False) -> None:
    """Print the model's name, how it was made, its formats (`every`: and each weight), and what is not compressed."""
    total = human_bytes(inspection.constants_bytes)
    console.print(f"{inspection.model}: {total} of constants", style="bold", highlight=False, soft_wrap=True)
    for section, entries in inspection.recipe.items():
        console.print(f"{section}: {_words(entries)}", highlight=False, soft_wrap=True)
    device = inspection.device
    if device is not None:
        text = f"{device['device']} ({device['name']}, OpenVINO {device['openvino']}): {device['method']}"
        console.print(text, highlight=False, soft_wrap=True)
    if not inspection.weights:
        console.print("No weight is stored compressed.")
    else:
        console.print(_stored_formats(inspection))
        if every:
            console.print(_each(inspection))
    if inspection.floats:
        console.print(_float_table(inspection))


def _words(entries: Any) -> str:
    """A section of the recipe in one line; long values (NNCF lists its advanced parameters) and nested ones cut."""
    if not isinstance(entries, dict):
        return str(entries)
    flat = []
    for key, value in entries.items():
        text = f"({_words(value)})" if isinstance(value, dict) else str(value)
        if isinstance(value, dict) or len(text) <= 60:
            flat.append(f"{key} {text}")
    return ", ".join(flat)


def _stored_formats(inspection: Inspection) -> Table:
    device = {f"on {inspection.device['device']}": "text"} if inspection.device is not None else {}
    numbers = dict.fromkeys(("weights", "bytes", "share", "bits"), "number")
    title = "Compressed weights (stored as: codes, scales, zero points)"
    table = terminal_table(title, {"format": "word", "layers": "word", "stored as": "text", **device, **numbers})
    everything = inspection.constants_bytes or 1

    def add(*named: str, executed: str, count: int, size: int, bits: float) -> None:
        told = (str(count), human_bytes(size), f"{size / everything:.1%}", f"{bits:.2f}")
        table.add_row(*named, *([executed] if device else []), *told)

    for row in inspection.formats:
        named = short_format(row.mode, row.group_size), row.kind, _stored(row)
        add(*named, executed=row.executed, count=row.weights, size=row.bytes, bits=row.bits_per_weight)
    table.add_section()
    total = {"count": len(inspection.weights), "size": inspection.bytes}
    add("all", "", "", executed="", **total, bits=inspection.bits_per_weight)
    return table


def _stored(row: FormatRow) -> str:
    zero = row.zero_point.replace(", ", " ")
    return ", ".join([row.storage, row.scale_type or "–", zero] if zero else [row.storage, row.scale_type or "–"])


def _each(inspection: Inspection) -> Table:
    device = {f"on {inspection.device['device']}": "text"} if inspection.device is not None else {}
    numbers = dict.fromkeys(("shape", "bytes", "bits"), "number")
    rows = [
        (
            short_name(one.name.removesuffix("_compressed"), _NAME),
            short_format(one.mode, one.group_size),
            *([one.executed] if device else []),
            "×".join(map(str, one.shape)),
            human_bytes(one.bytes),
            f"{one.bits_per_weight:.2f}",
        )
        for one in inspection.weights
    ]
    return terminal_table("Each weight", {"weight": "text", "format": "word", **device, **numbers}, rows)


def _float_table(inspection: Inspection) -> Table:
    numbers = dict.fromkeys(("constants", "elements", "bytes", "share"), "number")
    everything = inspection.constants_bytes or 1
    rows = []
    for row in inspection.float_groups:
        sizes = (thousands(row.elements), human_bytes(row.bytes), f"{row.bytes / everything:.1%}")
        rows.append((row.element_type, row.reason, str(row.constants), *sizes))
    return terminal_table("Not compressed", {"type": "word", "reason": "text", **numbers}, rows)
