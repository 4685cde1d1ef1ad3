"""What people see: tables and pages."""

from __future__ import annotations

import dataclasses
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from ov_weight_compression.evaluation import Comparison, compare
from ov_weight_compression.evaluation.comparison import language_rows
from ov_weight_compression.passes import apply_weight_compression
from tests.evaluation.small import VOCABULARY, language_model, perceptron

LONG = "__module.model.layers.17.a<b>&c." + "very_long_name." * 12 + "weight"


@pytest.fixture(scope="module")
def language() -> Comparison:
    other = apply_weight_compression(language_model(), mode="int4_sym", group_size=16)
    return compare(language_model(), other, np.random.default_rng(0).integers(0, VOCABULARY, 600), window=100)


@pytest.fixture(scope="module")
def outputs() -> Comparison:
    return compare(perceptron(), apply_weight_compression(perceptron(), mode="int8_sym"))


class Balance(HTMLParser):
    """Notes every tag that is opened and never closed, or the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br", "line", "rect", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("line", "rect", "circle", "polyline") and tag != (self.open[-1:] or [""])[0]:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


@pytest.mark.parametrize("kind", ["language", "outputs"])
def test_pages_are_well_formed(kind: str, request: pytest.FixtureRequest) -> None:
    found: Comparison = request.getfixturevalue(kind)
    for page in (found.to_html(), found._repr_html_()):
        balance = Balance()
        balance.feed(page)
        assert balance.wrong == []
        assert balance.open == []


def test_names_are_escaped_and_never_cut_off_the_page(language: Comparison) -> None:
    layer = dataclasses.replace(language.layers[0], name=LONG, layer=LONG)
    page = dataclasses.replace(language, layers=(layer,) * 300).to_html()
    assert "a<b>" not in page
    assert LONG.replace("&", "&amp;").replace("<b>", "&lt;b&gt;") in page
    assert "overflow-wrap:anywhere" in page
    assert '<polyline class="line"' in page, "300 rings would be a blot"


def test_tables_hold_the_figures(language: Comparison, outputs: Comparison) -> None:
    text = str(language)
    assert language.language is not None
    for wanted in ("int4_sym g16", "same likeliest token", dict(language_rows(language))["mean KL divergence"]):
        assert wanted in text
    assert "embedding" in str(outputs)
    assert float(dict(language_rows(language))["correlation of the log-probabilities"]) == pytest.approx(
        language.language.correlation, rel=1e-3
    )
    assert "made up" in str(outputs)
    assert max(map(len, text.splitlines())) <= 110


def test_printing(language: Comparison, capsys: pytest.CaptureFixture[str]) -> None:
    language.print()
    assert "mean KL divergence" in capsys.readouterr().out


def test_json_has_no_numbers_that_json_has_not(outputs: Comparison) -> None:
    worst = dataclasses.replace(outputs.layers[0], weight_snr_db=math.inf, own_snr_db=-math.inf, output_snr_db=math.nan)
    plain = dataclasses.replace(outputs, layers=(worst,)).to_dict()
    json.dumps(plain, allow_nan=False)
    layer = plain["layers"][0]
    assert (layer["weight_snr_db"], layer["own_snr_db"], layer["output_snr_db"]) == ("inf", "-inf", None)


def test_a_comparison_is_frozen(language: Comparison) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        language.notes = ()  # type: ignore[misc]
