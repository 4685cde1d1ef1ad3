"""`ov-compress inspect MODEL`: the options, and what is printed and written."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ov_weight_compression.ir_utils.publish import check_place, expanded, write_text

__all__ = ["add_inspect_parser", "run_inspect"]

_DESCRIPTION = """Say what the weights of a model are stored as, whoever compressed it: format, group, scales, bytes,
and how the model says it was made. With --device, what that device does with each of them."""


def add_inspect_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the `add_subparsers()` of a parser; `args.run` is set to `run_inspect`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect", help="what a model's weights are stored as, and what a device executes", description=_DESCRIPTION
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=".xml, .onnx, or a folder with openvino_*.xml files")
    parser.add_argument("--device", metavar="NAME", help="look what CPU, GPU, NPU, … does with each weight")
    parser.add_argument(
        "--json", nargs="?", const="-", metavar="FILE", help="write everything as JSON, to the terminal without FILE"
    )
    parser.add_argument("--all", action="store_true", help="list each weight, not only the formats")
    parser.set_defaults(run=run_inspect)
    return parser


def run_inspect(args: argparse.Namespace) -> int:
    """Run the command and return 0; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.evaluation.inspection import inspect
    from ov_weight_compression.ir_utils.model_folder import models_in

    source = expanded("MODEL", args.model)
    target = None if args.json in (None, "-") else check_place("--json", Path(args.json))
    models = models_in(source) if source.is_dir() else [source]
    found = [inspect(model, args.device) for model in models]
    if args.json is not None:
        everything = [one.to_dict() for one in found]
        text = json.dumps(everything[0] if len(found) == 1 else {"models": everything}, indent=1) + "\n"
        if target is None:
            sys.stdout.write(text)
        else:
            write_text(target, text)
    if args.json != "-":
        for one in found:
            one.print(args.all)
    return 0
