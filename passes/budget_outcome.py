"""What a budget has chosen, and what there was to choose from: figures for the report, the page and the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["BudgetOutcome", "CurvePoint", "UniformChoice"]


@dataclass(frozen=True)
class CurvePoint:
    """What the best formats within some bytes are predicted to cost."""

    bytes: int
    """Of the .bin."""
    bits: float
    """For each element of the compressed weights."""
    divergence: float


@dataclass(frozen=True)
class UniformChoice:
    """One format for all weights that can have it and are no embedding and no last layer, which have 8 bits."""

    format: str
    bytes: int
    """Of the .bin."""
    divergence: float


@dataclass(frozen=True)
class BudgetOutcome:
    """A choice of formats. Bytes are those of the .bin, everything in it counted."""

    option: str
    """The option that asked for it: `target_bits`, `target_size` or `target_divergence`."""
    target: float
    unit: str
    """Of divergences: `nats` (mean KL), `relative L2`, or `none` where nothing was measured: only ratios count then."""
    bytes: int
    allowed: int | None
    """None for a divergence, which allows whatever it takes."""
    bits: float
    predicted: float
    correction: float
    """Measured over predicted, of the rounds before; it is in all predictions here."""
    shares: Mapping[str, float]
    """Each weight's part of the predicted loss, by the weight's name."""
    curve: tuple[CurvePoint, ...]
    uniform: tuple[UniformChoice, ...]
    """For comparison, the smallest first."""
    token_time: float
    """Predicted time of a generated token in the weights' layers, beside int4_sym in groups of 128."""
    prompt_time: float
    measured: float | None = None
    """The divergence of this choice on data that nothing was predicted from."""
    remarks: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the target is reached, as far as that is known."""
        if self.allowed is not None:
            return self.bytes <= self.allowed
        return (self.predicted if self.measured is None else self.measured) <= self.target

    def fitting(self) -> list[UniformChoice]:
        """The uniform formats that take no more bytes, that of the least divergence first."""
        fitting = [one for one in self.uniform if one.bytes <= max(self.bytes, self.allowed or 0)]
        return sorted(fitting, key=lambda one: (one.divergence, one.bytes))

    def beside(self) -> UniformChoice | None:
        """The best of them."""
        return next(iter(self.fitting()), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {**asdict(self), "met": self.met}
