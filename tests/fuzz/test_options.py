"""A few hundred cases of the campaign on options; `python -m tests.fuzz options` runs thousands."""

from __future__ import annotations

import pytest

from tests.fuzz.options import check_case


@pytest.mark.parametrize("block", range(8))
def test_whatever_is_given_ends_in_success_or_in_one_line(block: int) -> None:
    found = {number: check_case(1, number) for number in range(30 * block, 30 * (block + 1))}
    assert not {number: [str(one) for one in failures] for number, failures in found.items() if failures}
