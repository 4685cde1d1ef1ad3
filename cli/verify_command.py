"""`ov-compress verify MODEL`: the options, and what is printed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["add_verify_parser", "run_verify", "verify_files"]

_DESCRIPTION = """Run the layers with compressed weights on a device, one of each kind, on random input, and name each
that differs from what its stored weights say by more than the arithmetic explains. Exit code 1 where one does."""


def add_verify_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the `add_subparsers()` of a parser; `args.run` is set to `run_verify`."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify", help="whether a device computes what a compressed model says", description=_DESCRIPTION
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=".xml, .onnx, or a folder with openvino_*.xml files")
    parser.add_argument("--device", metavar="NAME", default="CPU", help="CPU (default), GPU, NPU, …")
    parser.add_argument("--all", action="store_true", help="run every layer, not one of each kind")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.set_defaults(run=run_verify)
    return parser


def run_verify(args: argparse.Namespace) -> int:
    """Run the command and return its exit code; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.ir_utils.model_folder import models_in
    from ov_weight_compression.ir_utils.publish import expanded

    source = expanded("MODEL", args.model)
    return verify_files(models_in(source) if source.is_dir() else [source], args.device, args.all, args.json)


def verify_files(models: list[Path], device: str, every: bool = False, as_json: bool = False) -> int:
    """Verify model files and print what was found: 1 where a layer is wrong, else 0."""
    from ov_weight_compression.ir_utils.ir_file import read_model
    from ov_weight_compression.passes.verify import verify

    found = [(model, verify(read_model(model), device, every=every)) for model in models]
    if as_json:
        everything = [{"model": str(model), **one.to_dict()} for model, one in found]
        sys.stdout.write(json.dumps(everything[0] if len(found) == 1 else {"models": everything}, indent=1) + "\n")
    else:
        for model, one in found:
            print(f"{model}: {one}")
    return 0 if all(one.ok for _, one in found) else 1
