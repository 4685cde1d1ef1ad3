"""`ov-compress plan MODEL`: what formats a budget would choose, and what others would cost; nothing is written."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ov_weight_compression.cli.compress_command import add_options, asked_of, run_asked
from ov_weight_compression.cli.parsers import CommandParser

__all__ = ["plan_parser", "run_plan"]

_DESCRIPTION = """Say what formats the weights of a model would get for a target, what that is predicted to cost, and
what every other size would: the curve of bytes against divergence. Without a target: for 4.5 bits a weight. No model is
written."""
_EXAMPLES = """examples:
  ov-compress plan model --data text.txt                     where is the knee?
  ov-compress plan model --target-size 3.5GB --html plan.html"""
_USUAL_BITS = 4.5
_FIRST = ("target_size", "target_bits", "target_divergence", "formats", "max_slowdown", "device", "accuracy")


def plan_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_plan`."""
    command = CommandParser(
        prog="ov-compress plan", usage="ov-compress plan MODEL [options]", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    add_options(command, _FIRST)
    command.set_defaults(run=run_plan, output=None, force=False, dry_run=True, report=None, verify=False)
    return command


def run_plan(parsed: argparse.Namespace) -> int:
    """Run the command and return 0; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.passes.targets import BUDGETS

    asked = asked_of(parsed)
    if not any(name in asked.options for name in BUDGETS):
        asked = replace(asked, options={**asked.options, "target_bits": _USUAL_BITS})
    return run_asked(parsed, asked, "A plan")
