"""Rules: the first match wins, and says what a weight gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from ov_weight_compression.passes import OptionError, Report, WeightCompression
from ov_weight_compression.passes.rules import Rule, parse_rule_text, parse_rules
from tests.models import layers

ROOT = Path(__file__).resolve().parents[2]


def report_of(rules: object, **options: object) -> Report:
    compression = WeightCompression(**{"mode": "int4_sym", "rules": rules, "all_layers": True, **options})
    compression.run_on_model(layers(3))
    return compression.report


def modes(report: Report) -> dict[str, tuple[str, int]]:
    return {row.name: (row.mode, row.group_size) for row in report.rows}


def test_by_the_layers_name_and_by_the_constants() -> None:
    for pattern in ("layer_1", "weight_1", "*1", "re:^layer_[1]$", "re:t_1"):
        found = modes(report_of([(pattern, "int8_asym")], group_size=32))
        assert found == {"weight_0": ("int4_sym", 32), "weight_1": ("int8_asym", -1), "weight_2": ("int4_sym", 32)}


def test_the_first_match_wins() -> None:
    rules = [("*_1", {"mode": "nf4", "group_size": 16}), ("layer_*", "int8_sym"), ("*_2", "mxfp4")]
    found = modes(report_of(rules))
    assert found == {"weight_0": ("int8_sym", -1), "weight_1": ("nf4", 16), "weight_2": ("int8_sym", -1)}


def test_none_leaves_a_weight_alone_with_that_reason() -> None:
    report = report_of([("*_0", None)])
    assert set(modes(report)) == {"weight_1", "weight_2"}
    assert [(skip.name, skip.reason) for skip in report.skips] == [("weight_0", "rule '*_0' leaves it alone")]


def test_a_rule_beats_the_backup_mode_and_the_ratio() -> None:
    found = modes(report_of([("layer_2", "int4_asym")], all_layers=False, ratio=0.0, group_size=16))
    assert found["weight_2"][0] == "int4_asym"
    assert found["weight_0"] == ("int8_asym", -1)


def test_the_rules_group_size_is_its_modes_own_not_the_pass() -> None:
    found = modes(report_of([("layer_1", "mxfp4"), ("layer_2", {"mode": "int4_sym", "group_size": -1})], group_size=16))
    assert found == {"weight_0": ("int4_sym", 16), "weight_1": ("mxfp4", 32), "weight_2": ("int4_sym", -1)}


def test_rules_are_told_in_the_report() -> None:
    assert [row.reason for row in report_of([("layer_1", "int8_sym")]).rows if row.mode == "int8_sym"] == [
        "rule 'layer_1'"
    ]


INTERRUPTED = """
import signal
from ov_weight_compression.passes import WeightCompression
from tests.models import layers

class RangError(BaseException):
    pass

def ring(*_):
    raise RangError

model = layers(1, 64)
for node in model.get_ops():
    node.set_friendly_name(node.get_friendly_name() + "_a" * 40)
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 1.5)
try:
    WeightCompression(**OPTIONS).run_on_model(model)
except RangError:
    print("rang")
"""


@pytest.mark.parametrize("options", [{"rules": [("re:(\\w+)+!", None)]}, {"ignored_scope": {"patterns": ["(\\w+)+!"]}}])
def test_a_regular_expression_that_never_ends_can_be_interrupted(options: dict[str, object]) -> None:
    """They are the caller's own and take what time they take; a signal is heard meanwhile. In a process of its own: an
    exception out of a handler that is called elsewhere, inside OpenVINO, can end the process."""
    script = INTERRUPTED.replace("OPTIONS", repr(options))
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "rang\n"), found.stderr


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(OptionError, match=r"rules\[1\]: 'lyaer\*' matches no weight"):
        report_of([("*", None), ("lyaer*", "int8_sym")])


def test_wildcards_match_whole_names_with_case() -> None:
    for pattern in ("layer", "LAYER_0", "eight_0"):
        with pytest.raises(OptionError, match="matches no weight"):
            report_of([(pattern, "int8_sym")])


def test_a_mapping_is_a_list_of_pairs() -> None:
    assert parse_rules({"a": "int8_sym", "b": None}) == parse_rules([("a", "int8_sym"), ("b", None)])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("*a*=int8_sym", ("*a*", "int8_sym")),
        ("*a*=int4_sym:32", ("*a*", {"mode": "int4_sym", "group_size": 32})),
        ("*a*=none", ("*a*", None)),
        ("re:x=y=INT8_SYM", ("re:x=y", "INT8_SYM")),
        ("a:b=int4_sym:-1", ("a:b", {"mode": "int4_sym", "group_size": -1})),
    ],
)
def test_the_command_lines_rules(text: str, rule: tuple[str, object]) -> None:
    assert parse_rule_text(text) == rule
    assert isinstance(parse_rules([parse_rule_text(text)])[0], Rule)


@pytest.mark.parametrize("text", ["", "a", "=int8_sym", "a=", "a=int4_sym:x", "a=int4_sym:3.5"])
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(OptionError, match="--rule"):
        parse_rule_text(text)


def test_a_name_stays_a_name_when_its_weight_is_compressed() -> None:
    """In a second run the weight called `w[a-z]*` is none any more; the rule must not become a wildcard for others."""
    x = op.parameter([4, 64], np.float32)
    first, second = op.constant(np.ones((48, 64), np.float32)), op.constant(np.ones((48, 64), np.float32))
    first.set_friendly_name("w[a-z]*")
    second.set_friendly_name("weight")
    model = ov.Model([op.matmul(x, first, False, True), op.matmul(x, second, False, True)], [x])
    options = {"rules": [("w[a-z]*", "int8_sym"), ("weight", None)]}
    assert WeightCompression(**options).run_on_model(model)
    again = WeightCompression(**options)
    assert not again.run_on_model(model)
    assert again.report.rows == ()
