"""`ov-compress plan MODEL`: what formats a budget would choose, and what others would cost; nothing is written."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ov_weight_compression.cli.compress_command import add_options, asked_of, keep_recipe
from ov_weight_compression.cli.parsers import CommandParser

__all__ = ["plan_parser", "run_plan"]

_DESCRIPTION = """Say what formats the weights of a model would get for a size or a divergence, what that is predicted
to cost, and what every other size would: the curve of bytes against divergence. Without a target it is planned for 4.5
bits a weight. Nothing of the model is written."""
_EXAMPLES = """examples:
  ov-compress plan model --data text.txt                     where is the knee?
  ov-compress plan model --target-size 3.5GB --html plan.html"""
_USUAL_BITS = 4.5


def plan_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_plan`."""
    command = CommandParser(
        prog="ov-compress plan", usage="ov-compress plan MODEL [options]", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    add_options(command)
    command.set_defaults(run=run_plan)
    return command


def run_plan(parsed: argparse.Namespace) -> int:
    """Run the command and return 0; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.cli.compress_files import compress_path
    from ov_weight_compression.cli.output import json_place, of_models, say
    from ov_weight_compression.cli.report_file import write_page
    from ov_weight_compression.ir_utils.publish import check_place
    from ov_weight_compression.passes.targets import BUDGETS

    page = None if parsed.html is None else check_place("--html", parsed.html)
    kept = None if parsed.save_recipe is None else check_place("--save-recipe", parsed.save_recipe)
    place, asked = json_place(parsed.json), asked_of(parsed)
    if not any(name in asked.options for name in BUDGETS):
        asked = replace(asked, options={**asked.options, "target_bits": _USUAL_BITS})
    results = compress_path(
        parsed.model,
        None,
        dict(asked.options),
        data=asked.data,
        task=asked.task,
        files=asked.files,
        pipeline_defaults=asked.pipeline_defaults,
    )
    if not parsed.quiet:
        for text in dict.fromkeys((*asked.remarks, *(text for one in results for text in one.report.warnings))):
            say(f"warning: {text}")
    if place is not None:
        place.write(of_models([{"source": str(one.source), **one.report.to_dict()} for one in results]))
    if page is not None:
        write_page(page, Path(parsed.model), asked, results, "A plan: nothing was written, sizes are exact.")
    if kept is not None:
        keep_recipe(kept, asked, Path(parsed.model), results)
    if not parsed.quiet and (place is None or place.path is not None):
        from ov_weight_compression.ir_utils.wording import result_console
        from ov_weight_compression.passes.report_table import print_report

        console = result_console()
        for one in results:
            if len(results) > 1:
                console.rule(str(one.source), align="left")
            print_report(one.report, console, notes=False)
    return 0
