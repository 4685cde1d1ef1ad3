"""Groups that arithmetic stumbles over."""

import numpy as np


def nasty_groups(count: int, group: int, seed: int = 0, dtype: type = np.float16) -> np.ndarray:
    """[count, group]: heavy tails at many magnitudes, exact ties, signed zeros, one outlier, all equal, subnormal
    halves, the largest halves, one-sided groups; every kind in a tenth of the rows or more."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(4, (count, group)) * 10.0 ** rng.uniform(-7, 3, (count, 1))
    tenth = max(1, count // 10)
    kinds = [rows[k * tenth : (k + 1) * tenth] for k in range(7)]
    steps = rng.integers(1, 60, (len(kinds[0]), 1)) * 2.0 ** rng.integers(-12, -2, (len(kinds[0]), 1))
    kinds[0][:] = rng.integers(-16, 17, kinds[0].shape) * steps
    kinds[1][:] = rng.choice([0.0, -0.0], kinds[1].shape)
    kinds[1][::2, group // 2] = rng.standard_normal(len(kinds[1][::2]))
    kinds[2][:] = rng.standard_normal((len(kinds[2]), 1))
    kinds[3][:] = rng.integers(-40, 41, kinds[3].shape) * 2.0**-24
    kinds[4][:] = rng.choice([65504, -65504, 1, 0, 65472], kinds[4].shape)
    kinds[5][:] = np.abs(kinds[5])
    kinds[6][:] = -np.abs(kinds[6])
    if dtype == np.float32:
        # Beyond what f16 holds, either way.
        rows[-tenth:] *= 10.0 ** rng.uniform(-32, 26, (len(rows[-tenth:]), 1))
        return rows.astype(np.float32)
    return np.clip(rows, -65504, 65504).astype(dtype)
