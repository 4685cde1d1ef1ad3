"""Probes and the coding of layers on an executor that the caller brings: the same result, wherever they run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes import WeightCompression, apply_weight_compression
from ov_weight_compression.patterns import find_compressed
from tests.calibration import small
from tests.passes.test_layer_losses import TOKENS, measurements


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, get_context("spawn")) as executor:
        yield executor


@pytest.fixture
def dask() -> Iterator[Executor]:
    distributed = pytest.importorskip("dask.distributed", reason="dask is not installed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor()


def probed(**given: Any) -> dict[str, list[float]]:
    found, _ = measurements(small.language_model(), dataset=TOKENS, **given).influences()
    return {name: [use.loss for use in uses] for name, uses in found.items()}


@pytest.mark.parametrize("where", ["processes", "dask"])
def test_probes(where: str, request: pytest.FixtureRequest) -> None:
    found, expected = probed(executor=request.getfixturevalue(where)), probed()
    assert list(found) == list(expected)
    for name, losses in expected.items():
        assert found[name] == pytest.approx(losses, rel=1e-4), name


def test_layers_are_coded_to_the_same_bytes(processes: Executor) -> None:
    def codes(**given: Any) -> dict[str, np.ndarray]:
        model = apply_weight_compression(
            small.language_model(), mode="int4_sym", group_size=16, dataset=TOKENS, accuracy="best", lazy=False, **given
        )
        return {weight.name: np.array(weight.codes.data) for weight in find_compressed(model)}

    found = codes(executor=processes)
    for name, values in codes().items():
        np.testing.assert_array_equal(found[name], values, name)


def test_what_cannot_be_given_work_is_refused() -> None:
    with pytest.raises(OptionError, match=r"executor: must be an executor as concurrent\.futures has them, got 4"):
        WeightCompression(mode="int4_sym", dataset=TOKENS, executor=4)
