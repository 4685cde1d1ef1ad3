"""Small weights that are encoded in one run have the bytes that each has alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.ir_utils.errors import WorkError
from ov_weight_compression.ir_utils.lazy_weight import LazyWeight
from ov_weight_compression.ir_utils.weight_source import ConstantSource, Layout
from ov_weight_compression.ir_utils.worker_pool import Pipeline
from ov_weight_compression.passes.channel_importance import GraphEnergy, Importance, graph_energies
from ov_weight_compression.passes.encoding import WeightEncoding
from ov_weight_compression.patterns import find_weights, sources_of
from ov_weight_compression.quantization.encode import kept_kernels
from ov_weight_compression.quantization.formats import FORMATS, Spec

SHAPE, COUNT = (48, 64), 50


def encodings(mode: str, group: int, search: int, dtype: type[np.floating] = np.float32) -> list[WeightEncoding]:
    """Weights of all sorts: some with silent columns, one of zeros; most with an importance, some where it says
    nothing."""
    random = np.random.default_rng(3)
    format = FORMATS[mode]
    spec = Spec(format, group, format.scale, search)
    found = []
    for number in range(COUNT):
        values = random.standard_normal(SHAPE) * 2.0 ** (number % 7)
        values[:, : number % 5] *= 1e-3
        if number == 20:
            values[:] = 0
        values[0, 0] = abs(values[0, 0])
        layout = Layout.of(SHAPE, (1,))
        source = ConstantSource(ov.op.Constant(values.astype(dtype)), layout)
        importance = Importance(graph=GraphEnergy(source, lifts=number % 11 != 0)) if search and number % 6 else None
        absmax = float(np.abs(values).max())
        found.append(WeightEncoding(f"weight {number}", layout, spec, absmax, source, importance=importance))
    return found


def parts(weights: list[LazyWeight], zero_points: bool = False) -> list[dict[str, bytes]]:
    with kept_kernels():
        return [
            {part: one.computed(part).data.tobytes() for part in ("codes", "scale", "zero_point")[: 2 + zero_points]}
            for one in weights
        ]


@pytest.mark.parametrize(
    ("mode", "group", "search"),
    [
        ("int4_sym", 32, 5),
        ("int4_asym", 64, 3),
        ("int8_asym", -1, 0),
        ("nf4", 32, 4),
        ("int2_asym", 16, 4),
        ("int3_sym", -1, 3),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_together_and_alone(mode: str, group: int, search: int, dtype: type[np.floating]) -> None:
    every = encodings(mode, group, search, dtype)
    pipeline = Pipeline(threads=1)
    together = [LazyWeight(pipeline, one) for one in every]
    assert len(pipeline.batches.each) < COUNT / 2
    alone = [LazyWeight(Pipeline(threads=1), one) for one in every]
    zero_points = FORMATS[mode].zero_point == "group"
    assert parts(together, zero_points) == parts(alone, zero_points)


def test_they_are_alike_in_format_and_shape() -> None:
    one = encodings("int4_sym", 32, 5)[1]
    assert one.together is not None
    for other in (
        replace(one, spec=replace(one.spec, search=3)),
        replace(one, layout=Layout.of((64, 48), (1,))),
        replace(one, source=encodings("int4_sym", 32, 5, np.float16)[1].source),
        replace(one, scale_type="f32"),
        replace(one, importance=Importance(seen=np.ones(64))),
        replace(one, spec=Spec(FORMATS["nvfp4"], 16, "f8e4m3")),
    ):
        assert other.together != one.together
    assert replace(one, layout=Layout.of((4096, 64), (1,))).together is None


def test_an_error_names_the_weight() -> None:
    every = encodings("int4_sym", 32, 0)

    class Broken(ConstantSource):
        def read(self, slab: object) -> np.ndarray:
            raise OSError("the disk is gone")

    broken = Broken(ov.op.Constant(np.ones(SHAPE, np.float32)), every[0].layout)
    every[30] = replace(every[30], source=broken)
    pipeline = Pipeline(threads=1)
    weights = [LazyWeight(pipeline, one) for one in every]
    with pytest.raises(WorkError, match=r"^weight 30: OSError: the disk is gone$"):
        parts(weights)


def test_a_weight_behind_a_thousand_layers() -> None:
    """Its importance follows from theirs, which nobody has asked for before."""
    x = hidden = op.parameter([-1, 16], np.float32)
    for number in range(1000):
        values = np.random.default_rng(number).standard_normal((16, 16)).astype(np.float32)
        hidden = op.matmul(hidden, op.constant(values), False, True)
    weights, _ = find_weights(ov.Model([hidden], [x]))
    energy = graph_energies(weights, sources_of(weights))[weights[-1].name].value()
    assert energy is not None
    assert energy.mean() == pytest.approx(1, abs=1e-3)
