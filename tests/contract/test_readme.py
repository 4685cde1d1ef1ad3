"""What the README shows is so: its commands are two, its tables are what the benchmarks printed.

Its blocks of code, links and options are looked at with the site's (see test_docs).
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"


def rows(text: str) -> set[tuple[str, ...]]:
    """The cells of every row of every table."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return {tuple(cell.strip() for cell in line.split("|")) for line in lines}


def test_its_formats_are_what_the_benchmark_printed() -> None:
    table = rows(TEXT[TEXT.index("## Formats") : TEXT.index("## Speed")])
    printed = rows((RESULTS / "formats.md").read_text(encoding="utf-8"))
    assert len(table) > 5
    assert {row for row in table if row[0].startswith("`")} <= printed


def test_two_commands_do_all_the_set_up() -> None:
    commands = re.findall(r"^python3 -m venv .*$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("samples/first_minute.py")
    assert commands[1].endswith("-m pytest")
