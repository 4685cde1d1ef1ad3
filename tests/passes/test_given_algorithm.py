"""An algorithm from outside the package: a function in one file, and the tuple of steps that it stands in."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.types import Float32
from ov_weight_compression.passes import WeightCompression
from ov_weight_compression.passes.options import read_options
from ov_weight_compression.quantization.gptq import CoordinateDescent, Draft, Grid, Hessian, cost, gptq
from tests.models import layers
from tests.running import constants

DATA = [np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32) for _ in range(4)]
COSTS: list[tuple[float, float]] = []


def sign_round(target: Float32, draft: Draft, hessian: Hessian, grid: Grid, steps: int = 40) -> Draft:
    """SignRound (2309.05516), layer by layer: an offset of up to half a level for each weight follows the sign of the
    gradient of the layer's error through the rounding; the best codes on the way are kept, row by row."""
    scale = np.repeat(draft.scale, draft.group, axis=0)
    zero = None if draft.zero is None else np.repeat(draft.zero, draft.group, axis=0)
    offset, best = np.zeros_like(target), draft.copy()
    least = cost(target, best, hessian)
    for step in range(steps):
        tried = Draft(grid.nearest(target / scale + offset, zero), draft.scale, draft.zero)
        costs = cost(target, tried, hessian)
        best.take(costs < least, tried)
        least = np.minimum(least, costs)
        slope = hessian.matrix @ (target - tried.values()) * np.sign(scale)
        offset = np.clip(offset + 0.5 / steps * (1 - step / steps) * np.sign(slope), -0.5, 0.5).astype(np.float32)
    COSTS.append((float(cost(target, draft, hessian).sum()), float(least.sum())))
    return best


def stored(**options: object) -> dict[str, bytes]:
    model: ov.Model = layers()
    common = {"mode": "int4_sym", "group_size": 32, "all_layers": True, "dataset": DATA, "lazy": False}
    WeightCompression(**common, **options).run_on_model(model)
    return {name: node.data.tobytes() for name, node in constants(model).items()}


def test_steps_of_ones_own_make_the_codes() -> None:
    COSTS.clear()
    own = stored(algorithm=(sign_round,))
    assert len(COSTS) == 3
    assert all(after < 0.97 * before for before, after in COSTS)
    assert own != stored(gptq=True)


def test_the_packages_own_steps_are_what_gptq_does() -> None:
    assert stored(algorithm=[gptq, CoordinateDescent(2)]) == stored(gptq=True)


def test_what_the_recipe_says() -> None:
    options = read_options(mode="int4_sym", dataset=DATA, algorithm=[gptq, sign_round, CoordinateDescent(3)])
    assert options.as_recipe()["algorithm"] == "gptq; sign_round; CoordinateDescent(sweeps=3)"


@pytest.mark.parametrize("given", [(), "gptq", [gptq, 3], gptq])
def test_what_are_no_steps(given: object) -> None:
    with pytest.raises(OptionError, match="algorithm: must be a sequence of functions"):
        read_options(mode="int4_sym", dataset=DATA, algorithm=given)
