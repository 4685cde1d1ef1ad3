"""The values behind the codes of the float-like types, worked out from their definitions.

A mini-float (OCP: E2M1, E4M3) has a sign, ``exponent`` bits with a bias and ``mantissa`` bits:
``(-1)^sign * 2^(e - bias) * (1 + m / 2^mantissa)``, and for ``e = 0`` the subnormals
``(-1)^sign * 2^(1 - bias) * m / 2^mantissa``. E2M1 has no special values; E4M3 gives up one code a sign, all ones, to
NaN.

NF4 (QLoRA) is a list: sixteen quantiles of the normal distribution, scaled to [-1, 1], with an exact zero.
"""

import math

__all__ = ["CB4", "E2M1", "E4M3", "NF4", "minifloat"]


def minifloat(exponent: int, mantissa: int, bias: int) -> tuple[float, ...]:
    """Value of each code of a sign-exponent-mantissa type without special values, in code order."""
    positive = []
    for code in range(1 << (exponent + mantissa)):
        e, m = code >> mantissa, code & ((1 << mantissa) - 1)
        significand = m / (1 << mantissa) + (1 if e else 0)
        positive.append(math.ldexp(significand, max(e, 1) - bias))
    return (*positive, *(-value for value in positive))


E2M1 = minifloat(2, 1, bias=1)

E4M3 = tuple(math.nan if code & 0x7F == 0x7F else value for code, value in enumerate(minifloat(4, 3, bias=7)))

# As OpenVINO's nf4 converts to f32.
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
