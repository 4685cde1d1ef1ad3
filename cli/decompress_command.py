"""`ov-compress decompress IN -o OUT`: files and folders back to floats."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ov_weight_compression.cli.terminal import CommandParser, add_json, json_place, of_models
from ov_weight_compression.ir_utils.errors import OptionError

_DESCRIPTION = """Write a model with its compressed weights as floats, whoever compressed it. What compression has
rounded away does not come back."""


def decompress_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_decompress`."""
    parser = CommandParser(prog="ov-compress decompress", description=_DESCRIPTION)
    parser.add_argument("model", metavar="IN", type=Path, help=".xml, .onnx, or a folder with openvino_*.xml files")
    parser.add_argument("-o", "--output", metavar="OUT", type=Path, help=".xml file or folder to write")
    parser.add_argument("--dtype", help="f16 or f32 (default: the type that each weight's own chain computes in)")
    parser.add_argument("--force", action="store_true", help="replace what is at the output")
    parser.add_argument("--quiet", action="store_true", help="no progress, no report: only warnings and errors")
    add_json(parser, "what was decompressed")
    parser.set_defaults(run=run_decompress)
    return parser


def run_decompress(args: argparse.Namespace) -> int:
    """Run the command and return 0; what goes wrong is raised as a `CompressionError`."""
    from ov_weight_compression.ir_utils.printing import human_bytes

    if args.output is None:
        raise OptionError("output: say where to write with -o OUT")
    place = json_place(args.json)
    found = decompress_path(args.model, args.output, args.dtype, args.force)
    told: list[dict[str, Any]] = []
    for source, target, weights in found:
        sizes = {name: sum(getattr(weight, name) for weight in weights) for name in ("bytes_before", "bytes_after")}
        told.append({"source": str(source), "target": str(target), "weights": len(weights), **sizes})
    place.write(lambda: of_models(told))
    if not args.quiet and not place.printed:
        for one in told:
            noun = "weight" if one["weights"] == 1 else "weights"
            change = " → ".join(human_bytes(one[name]) for name in ("bytes_before", "bytes_after"))
            print(f"{one['target']}: {one['weights']} compressed {noun}, {change}")
    return 0


def decompress_path(
    source: Path, target: Path, dtype: str | None = None, force: bool = False
) -> list[tuple[Path, Path, Sequence[Any]]]:
    """Decompress a model file, or each model of a folder, into `target`.

    Returns:
        Of each model the source, the target and the weights (`Decompressed`) that were compressed.

    Raises:
        ModelError: the source is no model, or not readable.
        OptionError: a dtype, or a destination that exists or is the source and `force` is not given.
        WorkError: computing or writing failed; what was at the destination is still there.
    """
    from ov_weight_compression.cli.model_card import forget_card
    from ov_weight_compression.ir_utils.ir_file import changed_since, read_model
    from ov_weight_compression.ir_utils.model_folder import convert_path, edit_config
    from ov_weight_compression.ir_utils.saving import save_model
    from ov_weight_compression.passes.decompress import DecompressWeights

    own = DecompressWeights(dtype)

    def convert(path: Path, written: Path | None) -> Sequence[Any]:
        check_unchanged = changed_since(path)
        model = read_model(path)
        own.run_on_model(model)
        if written is not None:
            save_model(model, written, after_write=check_unchanged)
        return own.weights

    def finish(folder: Path, results: list[Sequence[Any]]) -> None:
        forget_card(folder)
        dtypes = {one.dtype for weights in results for one in weights}
        if dtypes:
            edit_config(folder, partial(_forget_compression, "fp16" if "f16" in dtypes else "fp32"))

    return convert_path(source, target, convert, finish, force)


def _forget_compression(dtype: str, config: dict[str, Any]) -> None:
    """Take back what an exporter's own file says about compression."""
    for key in ("weight_compression", "quantization_config"):
        config.pop(key, None)
    if config:
        config["dtype"] = dtype
