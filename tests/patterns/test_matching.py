"""Rules by name."""

from __future__ import annotations

import pytest

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.patterns import Weight, find_weights, first_match, matches
from ov_weight_compression.patterns.matching import check_pattern
from tests import models


@pytest.fixture(scope="module")
def weight() -> Weight:
    """The constant "weight_1", used by "layer_1"."""
    return find_weights(models.layers(3))[0][1]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("weight_1", True),
        ("layer_1", True),
        ("layer_*", True),
        ("*_1", True),
        ("layer_[01]", True),
        ("layer_[!1]", False),
        ("layer", False),
        ("LAYER_1", False),
        ("re:layer_[12]", True),
        ("re:yer_1$", True),
        ("re:^yer_1$", False),
        ("re:(?i)LAYER_1", True),
        ("*", True),
        ("", False),
    ],
)
def test_patterns(weight: Weight, pattern: str, expected: bool) -> None:
    assert matches(pattern, weight) is expected


def test_the_first_match_wins(weight: Weight) -> None:
    assert first_match([("layer_0", "a"), ("*_1", "b"), ("layer_1", "c")], weight) == (1, "b")
    assert first_match([("layer_0", "a")], weight) is None
    assert first_match([], weight) is None


def test_none_is_a_value_like_any_other(weight: Weight) -> None:
    assert first_match([("*", None)], weight) == (0, None)


def test_a_bad_expression_is_named() -> None:
    with pytest.raises(OptionError, match=r"'re:\[' is no regular expression"):
        check_pattern("re:[")


def test_a_shared_weight_matches_by_any_of_its_layers() -> None:
    (tied, _), _ = find_weights(models.tied_head())
    assert all(matches(name, tied) for name in ("embedding", "layer", "weight"))
    assert not matches("hidden", tied)
