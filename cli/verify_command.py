"""`ov-compress verify MODEL`: the options, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ov_weight_compression.cli.parsers import CommandParser, add_json

if TYPE_CHECKING:
    from ov_weight_compression.cli.output import JsonPlace

__all__ = ["run_verify", "verify_files", "verify_parser"]

_DESCRIPTION = """Run the layers with compressed weights on a device, one of each kind, on random input, and name each
that differs from what its stored weights say by more than the arithmetic explains. Exit code 1 where one does."""


def verify_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_verify`."""
    parser = CommandParser(prog="ov-compress verify", description=_DESCRIPTION)
    parser.add_argument("model", metavar="MODEL", type=Path, help=".xml, .onnx, or a folder with openvino_*.xml files")
    parser.add_argument("--device", metavar="NAME", default="CPU", help="CPU, GPU, NPU, … (default: CPU)")
    parser.add_argument("--all", action="store_true", help="run every layer (default: one of each kind)")
    add_json(parser, "everything")
    parser.set_defaults(run=run_verify)
    return parser


def run_verify(args: argparse.Namespace) -> int:
    """Run the command and return its exit code; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.cli.output import json_place
    from ov_weight_compression.ir_utils.model_folder import models_in
    from ov_weight_compression.ir_utils.publish import expanded

    source, place = expanded("MODEL", args.model), json_place(args.json)
    return verify_files(models_in(source) if source.is_dir() else [source], args.device, args.all, place)


def verify_files(models: list[Path], device: str, every: bool = False, place: JsonPlace | None = None) -> int:
    """Verify model files and print what was found: 1 where a layer is wrong, else 0."""
    from ov_weight_compression.cli.output import of_models
    from ov_weight_compression.ir_utils.ir_file import read_model
    from ov_weight_compression.passes.verify import verify

    found = [(model, verify(read_model(model), device, every=every)) for model in models]
    if place is not None:
        place.write(of_models([{"model": str(model), **one.to_dict()} for model, one in found]))
    if place is None or place.path is not None:
        for model, one in found:
            print(f"{model}: {one}")
    return 0 if all(one.ok for _, one in found) else 1
