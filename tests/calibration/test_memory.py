"""Calibration stays within its memory, whatever the model's size."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

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
    thread = threading.Thread(target=watch)
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
