"""`python -m tests.fuzz PART …`: the campaigns, each a module of this folder with `configure` and `run`."""

from __future__ import annotations

import argparse
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "models": "random graphs times random options: what is stored, computed and reported",
    "options": "random types and values for every option: success, or one line and exit code 2",
    "files": "damaged and strange files: one line that says what is wrong",
    "kills": "saves that are ended at random moments: the old model or the new one is whole",
    "places": "a full disk, a folder that goes away at random moments of a save: as before, or whole",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one campaign; 0 where it found nothing."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="PART")
    wanted = (sys.argv[1:] if arguments is None else arguments)[:1]
    for name, purpose in PARTS.items():
        if find_spec(f"tests.fuzz.{name}") is None:
            continue
        command = commands.add_parser(name, help=purpose, description=purpose)
        if wanted == [name]:
            part = importlib.import_module(f"tests.fuzz.{name}")
            part.configure(command)
            command.set_defaults(run=part.run)
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))


if __name__ == "__main__":
    sys.exit(main())
