"""What a call of NNCF's tests is counted as."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.nncf_suite import AGREE, REFUSED, kind_of, page


def call(ours: dict[str, Any], theirs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"test": "file::test_one[a]", "given": {}, "skips": {}, "errors": {}, "ours": ours, "theirs": theirs, **more}


def error(message: str) -> dict[str, Any]:
    return {"error": "OptionError", "message": message}


ALIKE: dict[str, Any] = {"formats": {"layer": "i4/32"}}
OTHER: dict[str, Any] = {"formats": {"layer": "u8/-1"}}
NONE: dict[str, Any] = {"formats": {}}

KINDS = [
    (call(ALIKE, ALIKE), AGREE),
    (call(error("ratio"), error("The ratio")), REFUSED),
    (call(error("group_size: at least 2, got 1"), ALIKE), "refused here: groups of one"),
    (call(error("advanced_parameters: a.b=1 has no counterpart here"), ALIKE), "refused here: a.b=1"),
    (call(error("anything else"), ALIKE), "refused here: OptionError: anything else"),
    (call(ALIKE, error("Simultaneous use of both")), "taken here: lora_correction with gptq"),
    (call(ALIKE, error("who knows")), "taken here, refused by NNCF: who knows"),
    (
        call(ALIKE, OTHER, given={"ratio": "0.5"}),
        "formats: ratio filled without gaps, more weights in the mode",
    ),
    (
        call(
            {"formats": {"a": "i4/-1", "b": "u8/-1"}}, {"formats": {"b": "i4/-1", "a": "u8/-1"}}, given={"ratio": "0.5"}
        ),
        "formats: ratio filled without gaps, as many weights in the mode",
    ),
    (call(OTHER, ALIKE, given={"ratio": "0.5"}), "formats: fewer weights in the mode"),
    (
        call(OTHER, ALIKE, given={"mode": "fp4"}),
        "formats: the backup of float modes, and which of two added branches is last",
    ),
    (call(OTHER, ALIKE, given={"mode": "int4_sym"}), "formats: others"),
    (call(NONE, ALIKE, skips={"layer": "tiny: 9 elements"}), "left alone here: tiny"),
    (call(NONE, ALIKE), "formats: others"),
    (call(ALIKE, ALIKE, errors={"random": [0.2, 0.1]}), "more error: on random inputs"),
    (call(ALIKE, ALIKE, errors={"random": [0.1, 0.2]}), AGREE),
    (call(ALIKE, ALIKE, errors={"random": [0.2, 0.1], "data": [0.1, 0.2]}, given={"gptq": "True"}), AGREE),
    (
        call(ALIKE, ALIKE, errors={"random": [0.1, 0.2], "data": [0.2, 0.1]}, given={"gptq": "True"}),
        "more error: on the very sample that was fitted, not on random inputs",
    ),
]


@pytest.mark.parametrize(("seen", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_a_call_is_of_a_kind(seen: dict[str, Any], kind: str) -> None:
    assert kind_of(seen) == kind


def test_the_page_counts_them() -> None:
    text = page([seen for seen, _ in KINDS], "3.2.0", {"nncf": "3.4.0", "openvino": "2026.4.1"})
    assert "Each of its 18 calls" in text
    rows = {line.split("|")[1].strip(): line.split("|")[2].strip() for line in text.split("\n") if line.count("|") == 4}
    assert (rows[AGREE], rows[REFUSED], rows["formats: others"]) == ("3", "1", "2")
