"""The way figures are written and tables are drawn."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ov_weight_compression.ir_utils import printing as w


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1.000"), (12.3456, "12.35"), (0.00012345, "0.0001234"), (1.5e-9, "1.500e−09"), (None, "–"),
     (math.nan, "–"), (math.inf, "∞"), (-math.inf, "−∞"), (-0.5, "−0.5000"), (-1.5e-9, "−1.500e−09"),
     (12345678.0, "1.235e+07")],
)  # fmt: skip
def test_plain_numbers(value: float | None, text: str) -> None:
    assert w.plain(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [(0.0092777, 0.000148, "0.00928 ± 0.00015"), (11.985, 0.4065, "11.98 ± 0.41"),
     (2.14e-6, 2.4e-8, "(2.140 ± 0.024)e−6"), (1.0, 0.0, "1.000"),
     (-0.121, 0.0346, "−0.121 ± 0.035"), (math.inf, 1.0, "∞")],
)  # fmt: skip
def test_figures_with_their_errors(value: float, error: float, text: str) -> None:
    assert w.with_error(value, error) == text


def test_other_ways_of_writing() -> None:
    assert w.thousands(1234567) == "1 234 567"
    assert w.short_name("a" * 100, 20) == "a" * 5 + "…" + "a" * 14
    assert len(w.short_name("a" * 100, 20)) == 20
    assert w.probability(0.00001) == "< 0.01 %"
    assert w.layer_name("MatMul_3", "self.model.layers.0.q_proj.weight_compressed") == "model.layers.0.q_proj.weight"
    assert w.layer_name("MatMul_3", "Constant_17") == "MatMul_3"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"),
     (123_456, "123 kB"), (999_499, "999 kB"), (999_600, "1.00 MB"),
     (2_830_000, "2.83 MB"), (99_940_000, "99.9 MB"), (6.43e9, "6.43 GB"), (1.2345e12, "1234 GB")],
)  # fmt: skip
def test_sizes_for_people(size: float, text: str) -> None:
    assert w.human_bytes(size) == text


def test_a_table_as_text() -> None:
    def show(console: Any) -> None:
        rows = [("a" * 30, "some kind", "1 kB"), ("b", "other", "12 kB")]
        console.print(w.terminal_table("Things", {"thing": "text", "kind": "word", "bytes": "number"}, rows))

    text = w.as_text(show, 30)
    assert text.splitlines()[0].rstrip() == "Things"
    assert "some kind" in text, "a word stays in one line"
    assert text.replace(" ", "").replace("\n", "").count("a") == 30, "a long name is broken, never cut"
    assert text.endswith("12 kB")
    assert max(map(len, text.splitlines())) <= 30
    assert "\x1b" not in text
