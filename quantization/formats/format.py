"""What a storage format is: one row of plain facts that the arithmetic, the graph and the report all read."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PER_CHANNEL", "Format"]

PER_CHANNEL = -1


@dataclass(frozen=True)
class Format:
    """How the elements of a weight are stored and what they mean.

    A group of weights ``w`` shares one scale ``s`` (and, where there is one, a zero point ``z``). A code ``q`` stands
    for ``(q - z) * s``, or ``levels[q] * s`` where the format has levels. The two families differ in nothing else.

    Attributes:
        name: the mode's value, lower case.
        storage: OpenVINO's name of the codes' element type; for a codebook that of the indices into its table.
        bits: bits of one code.
        default_group: group size where the caller names none, ``PER_CHANNEL`` for one group a row.
        fixed_group: only ``default_group`` is allowed (the format's definition says so).
        scale: OpenVINO's name of the scales' type: ``f16``, ``f8e8m0`` (powers of two) or ``f8e4m3``.
        zero_point: ``None``, ``"group"`` (one code per group, in ``storage``) or ``"scalar"`` (``zero_value``, one i8
            for the
            weight: unsigned storage read as signed).
        zero_type: OpenVINO's name of the type that zero points of groups are stored in; ``storage`` where empty.
        zero_value: what ``"scalar"`` subtracts from each code.
        tensor_scale: one f32 scalar for the whole weight multiplies every scale.
        levels: value of each code, in code order, for formats whose codes are not integers. NaN marks a code
            that is never used.
        ties_to_even: a value half-way between two levels goes to the even code (IEEE rounding), else to the lower
            level.
        unit: the level that the largest magnitude of a group is mapped to, where that is not the largest level.
        table_type: codebooks only: the type in which the levels themselves are stored beside the indices.
        default_search: number of scale candidates that ``scale_search="auto"`` tries; 0 is none.
        search_range: smallest and largest candidate, as multiples of the plain scale.
        search_factors: those of the default number of candidates beside the plain scale, where chosen ones are better
            than evenly spaced ones.
        everywhere: makes sense for every kind of weight, convolutions too; the others are for MatMul, Gather and
            experts.
    """

    name: str
    storage: str
    bits: int
    default_group: int = 128
    fixed_group: bool = False
    scale: str = "f16"
    zero_point: str | None = None
    zero_value: int = 0
    zero_type: str = ""
    tensor_scale: bool = False
    levels: tuple[float, ...] | None = None
    ties_to_even: bool = False
    unit: float | None = None
    table_type: str | None = None
    default_search: int = 0
    search_range: tuple[float, float] = (0.84, 1.1)
    search_factors: tuple[float, ...] = ()
    everywhere: bool = False

    @property
    def asymmetric(self) -> bool:
        """Each group has a zero point of its own."""
        return self.zero_point == "group"

    @property
    def low(self) -> int:
        """Smallest integer level: of ``q`` where asymmetric, of ``q - z`` where symmetric."""
        return 0 if self.asymmetric else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """Largest integer level, counted as ``low`` is."""
        return self.low + (1 << self.bits) - 1

    @property
    def top(self) -> float:
        """The level of a group's largest magnitude: ``scale = absmax / top`` (``range / top`` where asymmetric)."""
        if self.unit is not None:
            return self.unit
        if self.levels is not None:
            return max(abs(level) for level in self.levels if level == level)
        return float(self.high if self.asymmetric else -self.low)
