"""The command `ov-compress`: `main` runs it with a list of words; a module for each of its commands."""

from ov_weight_compression.cli.command import main

__all__ = ["main"]
