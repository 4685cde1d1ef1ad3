"""A few of the damaged files; thousands with `python -m tests.fuzz files`."""

from __future__ import annotations

from tests.fuzz.campaign import Campaign, worker_command


def test_damaged_and_strange_files() -> None:
    campaign = Campaign(worker_command("files", 0), first=0, cases=120, workers=1, chunk=120)
    assert campaign.run() == 0, campaign.summary(0)
    assert campaign.done == 120
