"""The sweep sees what a kernel misreads, and its rule holds on a few random layers."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest

from benchmarks.device_sweep import ARITHMETIC, Case, misread_table, right_by_rule, run, weight_of


@pytest.mark.parametrize("layer", ["MatMul", "Gather", "GroupedMatMul"])
@pytest.mark.parametrize(("storage", "zero"), [("i4", ""), ("u4", "u4"), ("u8", "u8")])
def test_what_is_right_is_seen_to_be(layer: str, storage: str, zero: str) -> None:
    differences, kind = run(ov.Core(), Case(storage, zero, 128, 32, layer=layer), "f32")
    assert list(differences) == [1, 4, 5, 33]
    assert max(differences.values()) < 1e-4
    assert kind == storage


def test_its_values_are_those_of_the_chain() -> None:
    node, values = weight_of(Case("u4", "u4", 96, 32, 8, transposed=False))
    model = ov.Model([node.output(0)], [])
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = np.array(compiled([])[0])
    assert np.allclose(found.T, values, atol=1e-2)


def test_a_table_names_what_is_misread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARITHMETIC, "f32", (ARITHMETIC["f32"][0], -1.0))
    text = misread_table(ov.Core(), ["f32"], [("48", [Case("", "", 96, 48, 4)])])
    assert text.count(" 48 |") == 9


def test_the_rule_holds_on_some_layers() -> None:
    for _, (case, arithmetic, threads, static) in zip(range(8), right_by_rule(60, ["f32"], 1), strict=False):
        differences, _ = run(ov.Core(), case, arithmetic, threads=threads, static=static)
        assert max(differences.values()) < ARITHMETIC[arithmetic][1], case
