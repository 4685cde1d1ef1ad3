"""`ov-compress inspect MODEL`: the options, and what is printed and written."""

from __future__ import annotations

import argparse
from pathlib import Path

from ov_weight_compression.cli.parsers import CommandParser, add_json
from ov_weight_compression.ir_utils.publish import expanded

__all__ = ["inspect_parser", "run_inspect"]

_DESCRIPTION = """Say what the weights of a model are stored as, whoever compressed it: format, group, scales, bytes,
and how the model says it was made. With --device, what that device does with each of them."""


def inspect_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_inspect`."""
    parser = CommandParser(prog="ov-compress inspect", description=_DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", type=Path, help=".xml, .onnx, or a folder with openvino_*.xml files")
    parser.add_argument(
        "--device", metavar="NAME", help="look what CPU, GPU, NPU, … does with each weight (default: none is asked)"
    )
    parser.add_argument("--all", action="store_true", help="list each weight, not only the formats")
    add_json(parser, "everything")
    parser.set_defaults(run=run_inspect)
    return parser


def run_inspect(args: argparse.Namespace) -> int:
    """Run the command and return 0; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.cli.output import json_place, of_models
    from ov_weight_compression.evaluation.inspection import inspect
    from ov_weight_compression.ir_utils.model_folder import models_in

    source = expanded("MODEL", args.model)
    place = json_place(args.json)
    models = models_in(source) if source.is_dir() else [source]
    found = [inspect(model, args.device) for model in models]
    if place is not None:
        place.write(of_models([one.to_dict() for one in found]))
    if place is None or place.path is not None:
        for one in found:
            one.print(args.all)
    return 0
