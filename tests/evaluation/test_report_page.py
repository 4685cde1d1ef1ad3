"""The page of a report: it is well formed, says what was asked for, and draws a bar for each layer."""

from __future__ import annotations

import re

import pytest

from ov_weight_compression import WeightCompression
from ov_weight_compression.evaluation.report_page import render_report
from ov_weight_compression.passes.report import Report
from tests.evaluation.test_report import Balance
from tests.models import llama


@pytest.fixture(scope="module")
def report() -> Report:
    return WeightCompression(mode="int4_sym", group_size=32, ratio=0.6, rules=[("*gate*", None)]).preview(llama())


def checked(page: str) -> str:
    balance = Balance()
    balance.feed(page)
    assert (balance.wrong, balance.open) == ([], [])
    assert not re.search(r"(src|href)=|@import|url\(|<script", page), "it needs nothing from elsewhere"
    return page


def test_a_page_shows_where_the_bytes_are_and_why(report: Report) -> None:
    page = checked(render_report({"model.xml": report}, "a<b>", "Written.", [("mode", "int4_sym")]))
    assert "a<b>" not in page
    for row in report.rows:
        assert row.name.removesuffix("_compressed") in page or row.consumer in page, row.name
    layers = re.findall(r'<div><span title="(model\.layers\.\d+)">', page)
    assert layers == sorted(set(layers), key=layers.index), "one bar a layer"
    assert len(layers) == len({row.name.split(".")[2] for row in report.rows if "layers." in row.name}) > 1
    assert "rule &#x27;*gate*&#x27; leaves it alone" in page
    assert "among the most sensitive 40%" in page
    assert "int4_sym, group 32" in page


def test_several_models_share_a_page_and_an_empty_report_has_one(report: Report) -> None:
    none = Report((), (), {})
    page = checked(render_report({"one.xml": report, "two.xml": none}, "two", "Written.", []))
    assert page.count("<h1 class=part>") == 2
    assert "Where the bytes are" not in checked(render_report({"two.xml": none}, "two", "Written.", []))


def test_a_budget_is_drawn() -> None:
    report = WeightCompression(target_bits=5).preview(llama())
    assert report.budget is not None
    page = checked(render_report({"model.xml": report}, "model", "A plan.", []))
    assert '<polyline class="curve"' in page
    assert '<circle class="chosen"' in page
    assert f"{report.budget.token_time:.2f} ×" in page
