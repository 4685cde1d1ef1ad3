"""Calibration stays within its memory, whatever the model's size."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import closing
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.calibration import make_samples, open_streams
from ov_weight_compression.calibration.runner import Pool, Store
from ov_weight_compression.patterns import find_weights
from tests.running import linux, resident_of

WIDTH, LAYERS = 1024, 16
SCRIPT = """
    import sys, threading, time
    import numpy as np, openvino as ov
    from ov_weight_compression.calibration import collect, make_samples, open_streams
    from ov_weight_compression.patterns import find_weights

    def anonymous():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) // 1024 for line in status if line.startswith("RssAnon"))

    peak, running = [0], True
    def watch():
        while running:
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    model = ov.Core().read_model(sys.argv[1])
    weights = find_weights(model)[0]
    samples = make_samples(model, [np.random.default_rng(k).standard_normal((64, %d)).astype("f4") for k in range(2)])
    start = anonymous()
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    if sys.argv[3] == "collect":
        found = collect(model, weights, samples, calibration_memory=int(sys.argv[2]) << 20)
        assert len(found) == %d
    else:
        with open_streams(model, weights, samples, calibration_memory=int(sys.argv[2]) << 20) as streams:
            for stage in streams:
                for one in stage.inputs:
                    one.measure()
                    stage.replace(one.weights[0], np.zeros((%d, %d), np.float32))
    running = False
    thread.join()
    print(peak[0] - start)
"""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk whose weights are 34 MB as f16 and 67 MB as f32."""
    x = op.parameter([-1, WIDTH], np.float32, name="x")
    hidden: ov.Node = x
    rng = np.random.default_rng(0)
    for _ in range(LAYERS):
        values = (rng.standard_normal((WIDTH, WIDTH), np.float32) * WIDTH**-0.5).astype(np.float16)
        hidden = op.tanh(op.matmul(hidden, op.convert(op.constant(values), "f32"), False, True))
    path = tmp_path_factory.mktemp("deep") / "model.xml"
    ov.save_model(ov.Model([op.result(hidden)], [x], "deep"), path)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("way", ["collect", "streams"])
def test_memory_is_bounded(deep: Path, way: str) -> None:
    def peak(limit: int) -> int:
        script = textwrap.dedent(SCRIPT % (WIDTH, LAYERS, WIDTH, WIDTH))
        command = [sys.executable, "-c", script, str(deep), str(limit), way]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout)

    assert peak(24) < 24 + 40
    if way == "collect":
        assert peak(8192) > 100


@linux
def test_pages_of_the_models_file_are_given_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table, weight = (rng.standard_normal(shape, np.float32).astype(np.float16) for shape in ((8192, 256), (256, 256)))
    ids = op.parameter([1, -1], np.int64, name="ids")
    rows = op.gather(op.convert(op.constant(table), "f32"), ids, op.constant(0))
    layer = op.matmul(rows, op.convert(op.constant(weight), "f32"), False, True)
    ov.save_model(ov.Model([op.result(layer)], [ids]), tmp_path / "m.xml")
    model = ov.Core().read_model(tmp_path / "m.xml")
    samples = make_samples(model, [{"ids": rng.integers(0, len(table), (1, 512))}])
    with open_streams(model, find_weights(model)[0], samples) as streams:
        assert len(list(streams)) == 2
        assert resident_of(tmp_path / "m.bin") < 1 << 20


def test_tensors_take_the_memory_of_those_that_are_not_read_any_more() -> None:
    def addresses(key: tuple[int, int], windows: int) -> list[int]:
        return [store.get(key, window).__array_interface__["data"][0] for window in range(windows)]

    ones = np.ones((4, 64), np.float32)
    with closing(Pool(4 * ones.nbytes)) as pool:
        store = Store(pool)
        for window in range(2):
            store.put((0, 0), window, ones)
        given = addresses((0, 0), 2)
        store.drop((0, 0))
        assert pool.used == 0
        for window in range(5):  # the last one goes to disk
            store.put((1, 0), window, (window * ones).astype(np.float16 if window == 1 else np.float32))
        assert pool.used == 3 * ones.nbytes + ones.nbytes // 2
        assert len(set(given) & set(addresses((1, 0), 4))) == 2
        for window in range(5):
            np.testing.assert_array_equal(store.get((1, 0), window), window * ones)
        store.drop((1, 0))
        assert pool.used == 0
