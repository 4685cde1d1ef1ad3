"""The ignored scope, rule by rule, and the errors that a misspelt rule gives."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.patterns import IgnoredScope, Subgraph, find_weights
from tests import models


def left(ignored: object) -> list[str]:
    """The weights that remain of four layers in a row."""
    weights, skips = find_weights(models.layers(4), ignored)
    assert {weight.name for weight in weights} | {skip.name for skip in skips} == {f"weight_{n}" for n in range(4)}
    assert all(skip.reason.startswith("ignored: ") for skip in skips)
    return [weight.name[-1] for weight in weights]


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        (None, "0123"),
        (IgnoredScope(), "0123"),
        (IgnoredScope(names=("layer_1",)), "023"),
        (["layer_1", "layer_2"], "03"),
        ("layer_1", "023"),
        (IgnoredScope(names=("weight_1",)), "023"),
        ({"names": ["layer_0"]}, "123"),
        ({"patterns": ["layer_[12]"]}, "03"),
        ({"patterns": ["lay"]}, ""),
        ({"types": ["MatMul"]}, ""),
        ({"types": ["Relu"]}, "0123"),
        ({"subgraphs": [Subgraph(("relu_0",), ("relu_2",))]}, "03"),
        ({"subgraphs": [{"inputs": ["layer_2"], "outputs": ["layer_2"]}]}, "013"),
        ({"subgraphs": [Subgraph(("layer_0", "layer_3"), ("layer_0", "layer_3"))]}, ""),
    ],
)
def test_rules(ignored: object, expected: str) -> None:
    assert left(ignored) == list(expected)


def test_patterns_match_from_the_start_of_a_name() -> None:
    with pytest.raises(OptionError, match=r"pattern 'ayer_1'"):
        left({"patterns": ["ayer_1"]})


def test_the_scope_of_another_package_is_read_by_its_fields() -> None:
    """NNCF's own object, which is never imported here."""
    subgraph = SimpleNamespace(inputs=["layer_3"], outputs=["layer_3"])
    scope = SimpleNamespace(names=["layer_0"], patterns=[], types=[], subgraphs=[subgraph], validate=True)
    assert left(scope) == ["1", "2"]


def test_the_reason_names_the_rule() -> None:
    _, skips = find_weights(models.layers(2), {"patterns": ["layer_1"]})
    assert [skip.reason for skip in skips] == ["ignored: pattern 'layer_1'"]


@pytest.mark.parametrize(
    ("ignored", "text"),
    [
        ({"names": ["layer_9"]}, "name 'layer_9'"),
        ({"patterns": ["z+"]}, "pattern 'z\\+'"),
        ({"types": ["Matmul"]}, "type 'Matmul'"),
        ({"subgraphs": [Subgraph(("layer_2",), ("layer_0",))]}, "subgraph from"),
        ({"subgraphs": [Subgraph(("layer_2",), ("nothing",))]}, "subgraph from"),
    ],
)
def test_a_rule_that_matches_nothing(ignored: dict[str, object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        left(ignored)
    assert left({**ignored, "validate": False}) == list("0123")


@pytest.mark.parametrize(
    ("ignored", "text"),
    [
        ({"name": ["layer_1"]}, "unknown field 'name'"),
        ({"names": "layer_1"}, "names must be a list"),
        ({"names": [1]}, "names must be a list of strings, it holds 1"),
        ({"patterns": ["("]}, "no regular expression"),
        ({"subgraphs": ["layer_1"]}, "a subgraph has inputs and outputs"),
        (3, "must be an IgnoredScope"),
        ([3], "it holds 3"),
        (b"layer_1", "must be an IgnoredScope"),
        (IgnoredScope(names="layer_1"), "names must be a list"),
        (itertools.repeat("layer_1"), "more than 1000000 entries"),
        ({"names": ["layer_1"], "validate": "no"}, "validate: must be True or False, got 'no'"),
    ],
)
def test_a_scope_that_cannot_be_read(ignored: object, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        left(ignored)


def test_inside_bodies() -> None:
    weights, skips = find_weights(models.in_loop(), ["layer"])
    assert weights == []
    assert [skip.name for skip in skips] == ["weight"]


def test_one_ignored_consumer_is_enough() -> None:
    """Compressing the table would change the ignored layer too."""
    weights, skips = find_weights(models.tied_head(), ["layer"])
    assert [weight.name for weight in weights] == ["weight_0"]
    assert [skip.reason for skip in skips] == ["ignored: name 'layer'"]


@pytest.mark.parametrize("names", [("blocks[0].w", "blocks[1].w"), ("a", "a"), ("a#2", "a", "a"), ("*", "re:a", "a")])
def test_every_name_that_the_report_prints(names: tuple[str, ...]) -> None:
    def model() -> object:
        made = models.layers(len(names))
        for node in made.get_ordered_ops():
            if node.get_friendly_name().startswith("weight_"):
                node.set_friendly_name(names[int(node.get_friendly_name()[-1])])
        return made

    told = [weight.name for weight in find_weights(model())[0]]
    assert len(set(told)) == len(names)
    for name in told:
        weights, skips = find_weights(model(), [name])
        assert [(skip.name, skip.reason) for skip in skips] == [(name, f"ignored: name '{name}'")]
        assert {weight.name for weight in weights} == set(told) - {name}
    with pytest.raises(OptionError, match="nothing in the model matches name 'a#9'"):
        find_weights(model(), ["a#9"])
    assert len(find_weights(model(), {"names": ["a#9"], "validate": False})[0]) == len(names)
