"""Rules by name."""

from __future__ import annotations

import pytest

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes.rules import matching
from ov_weight_compression.patterns import Weight, find_weights
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
    assert bool(matching(pattern, [weight])) is expected


def test_a_bad_expression_is_named() -> None:
    with pytest.raises(OptionError, match=r"'re:\[' is no regular expression"):
        matching("re:[", [])


def test_a_shared_weight_matches_by_any_of_its_layers() -> None:
    (tied, _), _ = find_weights(models.tied_head())
    assert all(matching(name, [tied]) for name in ("embedding", "layer", "weight"))
    assert not matching("hidden", [tied])


def named(*names: str) -> list[Weight]:
    """Weights of these names, one after another."""
    model = models.layers(len(names))
    for node in model.get_ordered_ops():
        if node.get_friendly_name().startswith("weight_"):
            node.set_friendly_name(names[int(node.get_friendly_name()[-1])])
    return find_weights(model)[0]


@pytest.mark.parametrize(
    "names",
    [
        ("blocks[0].w", "blocks0.w", "blocks[1].w"),
        ("a*", "ab", "a**"),
        ("a?", "ab", "ac"),
        ("w[!a]", "wb", "wc"),
        ("a", "a", "a"),
        ("a#2", "a", "a"),
        ("re:a", "a", "ba"),
        ("a=b:c", "a", "b"),
        ("x" * 300, "x", "y"),
    ],
)
def test_a_name_as_it_stands_comes_before_a_wildcard(names: tuple[str, ...]) -> None:
    weights = named(*names)
    assert len({weight.name for weight in weights}) == 3
    for weight in weights:
        assert matching(weight.name, weights) == [weight]


def test_a_wildcard_is_one_where_nothing_is_called_so() -> None:
    weights = named("blocks[0].w", "blocks0.w", "blocks1.w")
    assert [weight.name for weight in matching("blocks[01].w", weights)] == ["blocks0.w", "blocks1.w"]
    assert matching("*", weights) == weights
