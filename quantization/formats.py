"""Every storage format, a row each; how one weight is stored (`Spec`), and its arrays as stored (`Encoded`).

Adding a format is adding a row to one of the tables here (or, at run time, to ``FORMATS``): the arithmetic, the kernels
and the scale search work from the row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ov_weight_compression.ir_utils.types import F16_MAX, Array, Float32

PER_CHANNEL = -1
SCALE_DTYPES = {"f16": np.float16, "f32": np.float32, "f8e8m0": np.uint8, "f8e4m3": np.uint8}
"""numpy's type of stored scales, by OpenVINO's name of theirs: bit patterns of what numpy does not know."""


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
            for the weight: unsigned storage read as signed).
        zero_type: OpenVINO's name of the type that zero points of groups are stored in; ``storage`` where empty.
        zero_value: what ``"scalar"`` subtracts from each code.
        tensor_scale: one f32 scalar for the whole weight multiplies every scale.
        levels: value of each code, in code order, for formats whose codes are not integers. NaN marks a code
            that is never used.
        ties_to_even: a value half-way between two levels goes to the even code (IEEE rounding), else to the lower
            level.
        unit: the level that the largest magnitude of a group is mapped to, where that is not the largest level.
        codebook_type: codebooks only: the type in which the levels themselves are stored beside the indices.
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
    codebook_type: str | None = None
    default_search: int = 0
    search_range: tuple[float, float] = (0.84, 1.1)
    search_factors: tuple[float, ...] = ()
    everywhere: bool = False

    asymmetric: bool = field(init=False, repr=False, compare=False)
    """Each group has a zero point of its own."""
    low: int = field(init=False, repr=False, compare=False)
    """Smallest integer level: of ``q`` where asymmetric, of ``q - z`` where symmetric."""
    high: int = field(init=False, repr=False, compare=False)
    """Largest integer level, counted as ``low`` is."""
    top: float = field(init=False, repr=False, compare=False)
    """The level of a group's largest magnitude: ``scale = absmax / top`` (``range / top`` where asymmetric)."""
    reach: float = field(init=False, repr=False, compare=False)
    """Of a search: the largest error of one weight, in levels, that is told apart; beyond it all errors count alike."""
    code_dtype: type[np.unsignedinteger[Any]] = field(init=False, repr=False, compare=False)
    """numpy's type of unpacked codes."""
    flip: int = field(init=False, repr=False, compare=False)
    """Codes counted from the lowest level up are stored XORed with this: signed ones in two's complement."""
    table: Array | None = field(init=False, repr=False, compare=False)
    """A codebook's levels as they are stored, in code order: uint8 bit patterns for f8e4m3; None for other formats."""

    def __post_init__(self) -> None:
        asymmetric = self.zero_point == "group"
        low = 0 if asymmetric else -(1 << (self.bits - 1))
        high = low + (1 << self.bits) - 1
        top, reach, table = float(high if asymmetric else -low), 2.0, None
        if self.levels is not None:
            levels = np.array(self.levels, dtype=np.float32)
            finite = np.unique(levels[np.isfinite(levels)])
            top = max(abs(level) for level in self.levels if level == level) if self.unit is None else self.unit
            reach = max(float(np.diff(finite).max(initial=0.0)), top / 4)
            if self.codebook_type is not None:
                types = {"f16": np.float16, "f32": np.float32, "i8": np.int8, "u8": np.uint8}
                kind = types.get(self.codebook_type)
                table = e4m3_codes(levels) if kind is None else levels.astype(kind)
        elif self.unit is not None:
            top = self.unit
        follows = {
            "asymmetric": asymmetric,
            "low": low,
            "high": high,
            "top": top,
            "reach": reach,
            "code_dtype": np.uint16 if self.bits > 8 else np.uint8,
            "flip": 1 << (self.bits - 1) if self.levels is None and self.zero_point is None else 0,
            "table": table,
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)


def minifloat(exponent: int, mantissa: int, bias: int) -> tuple[float, ...]:
    """Value of each code of a type of a sign, ``exponent`` and ``mantissa`` bits without special values, in code order:

    ``(-1)^sign * 2^(e - bias) * (1 + m / 2^mantissa)``, and for ``e = 0`` the subnormals
    ``(-1)^sign * 2^(1 - bias) * m / 2^mantissa``.
    """
    positive = []
    for code in range(1 << (exponent + mantissa)):
        e, m = code >> mantissa, code & ((1 << mantissa) - 1)
        significand = m / (1 << mantissa) + (1 if e else 0)
        positive.append(math.ldexp(significand, max(e, 1) - bias))
    return (*positive, *(-value for value in positive))


E2M1 = minifloat(2, 1, bias=1)

# OCP's E4M3 gives up one code a sign, all ones, to NaN; E2M1 has no special values.
E4M3 = tuple(math.nan if code & 0x7F == 0x7F else value for code, value in enumerate(minifloat(4, 3, bias=7)))

# Sixteen quantiles of the normal distribution, scaled to [-1, 1], with an exact zero (QLoRA), as OpenVINO's nf4
# converts to f32.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

# Sixteen E4M3 values, denser around zero than int4.
CB4 = (
    *(-3.5, -2.5, -1.875, -1.375, -1.0, -0.625, -0.3125, 0.0),
    *(0.28125, 0.5625, 0.875, 1.125, 1.5, 2.0, 2.5, 3.5),
)

E4M3_VALUES = np.array(E4M3, dtype=np.float32)
"""[256], NaN where there is none."""
_E4M3_MIDDLES = (E4M3_VALUES[1:0x7F] + E4M3_VALUES[:0x7E]) / 2
# Ties go to the even code: where the upper one is even the middle itself lies beyond the threshold.
_E4M3_THRESHOLDS = np.where(np.arange(1, 0x7F) % 2 == 0, np.nextafter(_E4M3_MIDDLES, np.float32(0)), _E4M3_MIDDLES)


def e4m3_codes(values: Float32) -> npt.NDArray[np.uint8]:
    """Bit patterns of ``values`` (f32, any shape) rounded to E4M3: ties to even, saturating, zeros positive."""
    codes = np.searchsorted(_E4M3_THRESHOLDS, np.abs(values), side="left")
    return np.asarray(codes | np.where((values < 0) & (codes > 0), 0x80, 0), dtype=np.uint8)


# Integers: evenly spaced levels. Symmetric ones are ``-n .. n - 1`` with ``n = 2 ** (bits - 1)``: there is one more
# below zero than above, so the scale carries a sign: it is negative when the largest magnitude of the group is
# positive, and that weight gets the level ``-n``. Asymmetric ones are ``0 .. 2 ** bits - 1`` less an integer zero
# point; the range is first extended to hold 0, so that zeros stay zeros.

# Found on groups of real models: five chosen factors gain what nine evenly spaced ones do.
_FACTORS = (0.92, 0.95, 0.975, 1.03, 1.075)

INTEGERS = (
    Format("int8_asym", "u8", 8, default_group=PER_CHANNEL, zero_point="group", everywhere=True),
    Format("int8_sym", "i8", 8, default_group=PER_CHANNEL, everywhere=True),
    Format("int4_asym", "u4", 4, zero_point="group", default_search=6, search_factors=_FACTORS),
    Format("int4_sym", "i4", 4, default_search=6, search_factors=_FACTORS),
    Format("int3_sym", "u3", 3, zero_point="scalar", zero_value=4, default_search=10),
    Format("int2_sym", "u2", 2, zero_point="scalar", zero_value=2, default_search=10),
    # Zero points in i8: with unsigned ones the CPU plugin quantises the activations, has no kernel for that in bf16 and
    # ends the first inference (seen with OpenVINO 2026.4, AVX-512 without AMX).
    Format("int2_asym", "u2", 2, default_group=64, zero_point="group", zero_type="i8", default_search=10),
)

# Float-like formats: levels denser around zero, where most weights are. ``nf4`` and ``fp4`` keep an f16 scale per
# group. The OCP microscaling formats ``mxfp4`` and ``mxfp8_e4m3`` keep one power of two (E8M0) per 32 weights,
# ``nvfp4`` one E4M3 number per 16 and one f32 for the whole weight, which brings the scales into E4M3's range.
FLOATS = (
    Format("nf4", "nf4", 4, levels=NF4, default_search=10),
    Format("fp4", "f4e2m1", 4, levels=E2M1, ties_to_even=True, default_search=10),
    Format(
        "mxfp4",
        "f4e2m1",
        4,
        default_group=32,
        fixed_group=True,
        scale="f8e8m0",
        levels=E2M1,
        ties_to_even=True,
        default_search=3,
    ),
    Format(
        "nvfp4",
        "f4e2m1",
        4,
        default_group=16,
        fixed_group=True,
        scale="f8e4m3",
        tensor_scale=True,
        levels=E2M1,
        ties_to_even=True,
        default_search=9,
    ),
    Format("fp8_e4m3", "f8e4m3", 8, levels=E4M3, ties_to_even=True),
    Format(
        "mxfp8_e4m3",
        "f8e4m3",
        8,
        default_group=32,
        fixed_group=True,
        scale="f8e8m0",
        levels=E4M3,
        ties_to_even=True,
    ),
)

# Codebooks: a code is an index into a table that is stored beside the weight. ``cb4`` has a fixed one, ``codebook``
# the caller's, ``adaptive_codebook`` one fitted to each weight (see ``lloyd``); the rows of the last two stand for
# the mode, and ``with_codebook`` makes the format of one weight from such a row.
CODEBOOKS = (
    Format("cb4", "u4", 4, default_group=PER_CHANNEL, levels=CB4, codebook_type="f8e4m3", default_search=10),
    Format("codebook", "u4", 4, default_group=PER_CHANNEL, levels=CB4, codebook_type="f8e4m3", default_search=10),
    Format(
        "adaptive_codebook", "u4", 4, default_group=PER_CHANNEL, levels=CB4, codebook_type="f8e4m3", default_search=10
    ),
)

FORMATS: dict[str, Format] = {format.name: format for format in (*INTEGERS, *FLOATS, *CODEBOOKS)}

CODEBOOK_TYPES = ("f8e4m3", "f16", "f32", "i8", "u8")


def with_codebook(format: Format, table: Sequence[float], codebook_type: str) -> Format:
    """The format that stores indices into ``table``: u4 up to 16 entries, u8 up to 256, u16 up to 65536.

    Args:
        format: the mode's, ``codebook`` or ``adaptive_codebook``.
        table: 2 to 65536 finite values, at least two of them different in ``codebook_type``, to which they are
            rounded; in any order.
        codebook_type: one of ``CODEBOOK_TYPES``.

    Raises:
        ValueError: a table or type that cannot be used; the message says why.
    """
    if codebook_type not in CODEBOOK_TYPES:
        raise ValueError(f"codebook type is {codebook_type!r}, must be one of {', '.join(CODEBOOK_TYPES)}")
    values = np.asarray(table, dtype=np.float32)
    if values.ndim != 1 or not 2 <= values.size <= 65536:
        raise ValueError(f"codebook has shape {list(values.shape)}, must be one list of 2 to 65536 values")
    if not np.isfinite(values).all():
        raise ValueError("codebook holds NaN or infinity")
    rounded = round_to_type(values, codebook_type)
    if not rounded.any():
        raise ValueError(f"codebook holds nothing but zeros in {codebook_type}")
    if np.all(rounded == rounded[0]):
        raise ValueError(f"codebook holds nothing but {rounded[0]:g} in {codebook_type}; it needs two different values")
    bits = 4 if values.size <= 16 else 8 if values.size <= 256 else 16
    search = format.default_search if bits == 4 else 0
    levels = tuple(rounded.tolist())
    return replace(
        format, storage=f"u{bits}", bits=bits, levels=levels, codebook_type=codebook_type, default_search=search
    )


def round_to_type(values: Float32, codebook_type: str) -> Float32:
    """``values`` rounded to what ``codebook_type`` can hold (saturating), as f32; any shape."""
    rounded = values
    if codebook_type == "f16":
        rounded = np.clip(values, -F16_MAX, F16_MAX).astype(np.float16)
    if codebook_type == "i8":
        rounded = np.clip(np.rint(values), -128, 127)
    if codebook_type == "u8":
        rounded = np.clip(np.rint(values), 0, 255)
    if codebook_type == "f8e4m3":
        rounded = E4M3_VALUES[e4m3_codes(values)]
    return np.asarray(rounded, dtype=np.float32)


@dataclass(frozen=True)
class Spec:
    """How one weight is stored and computed.

    Attributes:
        format: one of ``FORMATS`` (for a codebook the one ``with_codebook`` made).
        group_size: weights that share a scale, or ``PER_CHANNEL`` (-1) for one scale a row.
        scale_type: ``format.scale``, or ``"f32"`` in place of ``"f16"`` where f16 cannot hold a scale of the weight.
        search: number of scale candidates to try in each group, 0 for the plain absmax or min-max scale.
    """

    format: Format
    group_size: int = PER_CHANNEL
    scale_type: str = "f16"
    search: int = 0

    def __post_init__(self) -> None:
        if self.group_size != PER_CHANNEL and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}, must be at least 1, or -1 for one group a row")
        if self.format.fixed_group and self.group_size != self.format.default_group:
            raise ValueError(
                f"group_size is {self.group_size}, must be {self.format.default_group} for {self.format.name}"
            )
        allowed = ("f16", "f32") if self.format.scale == "f16" else (self.format.scale,)
        if self.scale_type not in allowed:
            raise ValueError(
                f"scale_type is {self.scale_type!r}, must be {' or '.join(allowed)} for {self.format.name}"
            )
        if self.search < 0:
            raise ValueError(f"search is {self.search}, must be 0 (no search) or a number of candidates")

    def group_of(self, width: int) -> int:
        """Weights in one group of a row of ``width`` weights.

        Raises:
            ValueError: the row cannot be cut into such groups.
        """
        if self.group_size == PER_CHANNEL:
            return width
        if width % self.group_size:
            raise ValueError(f"a row of {width} weights cannot be cut into groups of {self.group_size}")
        return self.group_size


@dataclass(frozen=True)
class Encoded:
    """One weight, or some rows of it, as stored. Codes are unpacked: ``ir_utils.types`` packs them.

    Attributes:
        codes: [rows, in] uint8 bit patterns, one per element (i4 -8 is 0x8, i8 -1 is 0xff); uint16 for u16 indices.
        scale: [rows, groups] float16 or float32, or uint8 bit patterns of f8e8m0 and f8e4m3.
        zero_point: [rows, groups] uint8, where each group has one, else None.
        tensor_scale: the weight's f32 scalar, where the format has one, else None.
        codebook: codebooks: the levels as stored, in code order (uint8 bit patterns for f8e4m3), else None.
    """

    codes: Array
    scale: Array
    zero_point: npt.NDArray[np.uint8] | None = None
    tensor_scale: np.float32 | None = None
    codebook: Array | None = None

    def rows(self, start: int, stop: int) -> Encoded:
        """Some of the rows; views."""
        return replace(
            self,
            codes=self.codes[start:stop],
            scale=self.scale[start:stop],
            zero_point=None if self.zero_point is None else self.zero_point[start:stop],
        )


def join_rows(parts: Sequence[Encoded]) -> Encoded:
    """Rows of several results of one weight, one after the other."""
    if len(parts) == 1:
        return parts[0]
    zeros = [part.zero_point for part in parts if part.zero_point is not None]
    return replace(
        parts[0],
        codes=np.concatenate([part.codes for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        zero_point=np.concatenate(zeros) if zeros else None,
    )
