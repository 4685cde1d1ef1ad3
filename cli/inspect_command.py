"""`ov-compress inspect MODEL` and `ov-compress verify MODEL`: the options, and what is printed and written."""

from __future__ import annotations

import argparse
from pathlib import Path

from ov_weight_compression.cli.terminal import CommandParser, JsonPlace, add_json, json_place, of_models
from ov_weight_compression.ir_utils.publish import expanded

_INSPECT = """Say what the weights of a model are stored as, whoever compressed it: format, group, scales, bytes,
and how the model says it was made. With --device, what that device does with each of them."""
_VERIFY = """Run the layers with compressed weights on a device, one of each kind, on random input, and name each
that differs from what its stored weights say by more than the arithmetic explains. Exit code 1 where one does."""


def inspect_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_inspect`."""
    parser = CommandParser(prog="ov-compress inspect", description=_INSPECT)
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
    from ov_weight_compression.evaluation.inspection import inspect
    from ov_weight_compression.ir_utils.model_folder import models_in

    source = expanded("MODEL", args.model)
    place = json_place(args.json)
    found = [inspect(model, args.device) for model in models_in(source)]
    place.write(lambda: of_models([one.to_dict() for one in found]))
    if not place.printed:
        for one in found:
            one.print(args.all)
    return 0


def verify_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_verify`."""
    parser = CommandParser(prog="ov-compress verify", description=_VERIFY)
    parser.add_argument("model", metavar="MODEL", type=Path, help=".xml, .onnx, or a folder with openvino_*.xml files")
    parser.add_argument("--device", metavar="NAME", default="CPU", help="CPU, GPU, NPU, … (default: CPU)")
    parser.add_argument("--all", action="store_true", help="run every layer (default: one of each kind)")
    add_json(parser, "everything")
    parser.set_defaults(run=run_verify)
    return parser


def run_verify(args: argparse.Namespace) -> int:
    """Run the command and return its exit code; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.ir_utils.model_folder import models_in

    source, place = expanded("MODEL", args.model), json_place(args.json)
    return verify_files(models_in(source), args.device, args.all, place)


def verify_files(models: list[Path], device: str, every: bool, place: JsonPlace) -> int:
    """Verify model files and print what was found: 1 where a layer is wrong, else 0."""
    from ov_weight_compression.ir_utils.ir_file import read_model
    from ov_weight_compression.passes.verify import verify

    found = [(model, verify(read_model(model), device, every=every)) for model in models]
    place.write(lambda: of_models([{"model": str(model), **one.to_dict()} for model, one in found]))
    if not place.printed:
        for model, one in found:
            print(f"{model}: {one}")
    return 0 if all(one.ok for _, one in found) else 1
