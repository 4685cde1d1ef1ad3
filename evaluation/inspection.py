"""What a model's weights are stored as: the figures, as data, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ov_weight_compression.evaluation.device import Execution

__all__ = ["FloatRow", "FormatRow", "Inspection", "StoredFloat", "StoredWeight"]


@dataclass(frozen=True)
class StoredWeight:
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
        return ", ".join(dict.fromkeys(map(str, self.executions)))


@dataclass(frozen=True)
class StoredFloat:
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
    weights: tuple[StoredWeight, ...]
    floats: tuple[StoredFloat, ...]
    constants_bytes: int
    """Bytes of all constants of the model, those that are listed nowhere included."""
    recipe: dict[str, Any]
    """What the model says about how it was made: the sections `weight_compression`, `nncf` and `optimum`."""
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
        groups: dict[tuple[str, str, str, int, str, str, str], list[StoredWeight]] = {}
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
        groups: dict[tuple[str, str], list[StoredFloat]] = {}
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
        from rich.console import Console

        from ov_weight_compression.evaluation.tables import print_inspection

        print_inspection(self, Console(), every)

    def __str__(self) -> str:
        from ov_weight_compression.evaluation.tables import print_inspection
        from ov_weight_compression.ir_utils.wording import as_text

        return as_text(lambda console: print_inspection(self, console), 120)


def _total(members: Iterable[Any], field: str) -> int:
    return sum(getattr(one, field) for one in members)
