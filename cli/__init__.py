"""The command `ov-compress`: `main` runs it with a list of words; a module for each of its commands."""

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default) and return its exit code."""
    from ov_weight_compression.cli.command import main as run  # after the entry has seen to signals

    return run(arguments)
