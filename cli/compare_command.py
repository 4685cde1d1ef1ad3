"""`ov-compress compare BASE COMPRESSED --data …`: the options, and what is printed and written."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ov_weight_compression.cli.terminal import CommandParser, add_json, json_place
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.publish import check_place, expanded

_DESCRIPTION = """Say what compression cost: run a compressed model and the model it was made from on the same data.
Of language models the predictions are compared (KL divergence, agreement, perplexity), of others the outputs; of both
every compressed weight and the outputs of the layers."""

_EXAMPLES = """examples:
  ov-compress compare model model-int4 --data text.txt --html cost.html
  ov-compress compare model model-int4 --windows 8 --no-layers --json"""


def compare_parser() -> CommandParser:
    """The parser of the command; what it parses has `run`, which is `run_compare`."""
    parser = CommandParser(
        prog="ov-compress compare",
        usage="ov-compress compare BASE COMPRESSED [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.add_argument("base", type=Path, metavar="BASE", help="the original: a file, or the folder of an exporter")
    parser.add_argument("compressed", type=Path, metavar="COMPRESSED", help="the model made from it, likewise")
    data, running = parser.add_argument_group("data"), parser.add_argument_group("running")
    results = parser.add_argument_group("results")
    _add_data(data, parser.later_group("data, in full"))
    _add_running(running, parser.later_group("running, in full"))
    results.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    add_json(results, "everything")
    results.add_argument(
        "--card", action="store_true", help="write the figures into the README.md of the folder of COMPRESSED"
    )
    results.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.set_defaults(run=run_compare)
    return parser


def _add_data(group: Any, later: Any) -> None:
    group.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="text, token ids (.npy, .npz) or inputs by name (.npz) (default: text that a language model writes "
        "itself, for others inputs made up from their shapes)",
    )
    group.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="its folder or file (default: beside one of the models)"
    )
    group.add_argument(
        "--window", type=int, metavar="N", help="tokens to a window (default: 256, or what the model takes)"
    )
    group.add_argument(
        "--windows", type=int, metavar="N", help="at most so many windows, the first ones (default: all)"
    )
    later.add_argument(
        "--stride", type=int, metavar="N", help="tokens from one window to the next (default: the window)"
    )
    later.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="leading positions of a window that are not scored (default: 0; where windows overlap, window minus "
        "stride)",
    )
    later.add_argument(
        "--no-score-last",
        action="store_true",
        help="leave the last position of a window, which has no next token, out of KL and agreement too",
    )
    later.add_argument("--batch", type=int, metavar="N", help="rows of given inputs to run at once (default: all)")
    later.add_argument(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="INPUT=1,3,224,224",
        help="shape of a made-up input, may be repeated",
    )


def _add_running(group: Any, later: Any) -> None:
    group.add_argument("--device", default="CPU", metavar="NAME", help="where to run (default: CPU)")
    group.add_argument("--no-layers", action="store_true", help="do not compare weights and layers")
    later.add_argument(
        "--as-deployed",
        action="store_true",
        help="the device's default precision and quantised activations, instead of f32: not the weights alone",
    )
    later.add_argument("--save-base", type=Path, metavar="FILE", help="keep the base model's logits in a file")
    later.add_argument("--base-logits", type=Path, metavar="FILE", help="use logits that --save-base kept")
    later.add_argument(
        "--layer-samples",
        type=int,
        default=2,
        metavar="N",
        help="windows or inputs on which the layers' outputs are compared; 0 for weights alone (default: 2)",
    )


def run_compare(args: argparse.Namespace) -> int:
    """Run the command and return 0; what goes wrong is raised as a `CompressionError`."""
    _check_results(args)
    if args.card:
        _card_folder(args.compressed)
    from ov_weight_compression.evaluation.comparison import compare
    from ov_weight_compression.evaluation.samples import ComparisonProtocol
    from ov_weight_compression.ir_utils.printing import progress_bar

    place = json_place(args.json)
    protocol = ComparisonProtocol(
        stride=args.stride,
        context=args.context,
        score_last=not args.no_score_last,
        batch=args.batch,
        shapes=dict(args.shape),
        layer_samples=args.layer_samples,
        save_base=args.save_base,
        base_logits=args.base_logits,
    )
    with progress_bar(quiet=args.quiet) as bar:
        found = compare(
            args.base,
            args.compressed,
            args.data,
            window=args.window,
            windows=args.windows,
            tokenizer=args.tokenizer,
            device=args.device,
            as_deployed=args.as_deployed,
            layers=not args.no_layers,
            protocol=protocol,
            progress=bar.show,
        )
    place.write(found.to_dict)
    if args.card:
        from ov_weight_compression.cli.model_card import write_divergence

        write_divergence(_card_folder(args.compressed), found)
    if args.html:
        found.save_html(args.html)
    if not args.quiet and not place.printed:
        found.print()
    return 0


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, sizes = text.partition("=")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not name or not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form input=1,3,224,224")
    return name, shape


def _card_folder(compressed: Path) -> Path:
    folder = expanded("COMPRESSED", compressed)
    if not folder.is_dir():
        raise OptionError(f"--card: {folder} is no folder, and a README.md belongs to one; name the model's folder")
    return folder


def _check_results(args: argparse.Namespace) -> None:
    """Before anything is computed: whether the results can be written where they are wanted."""
    for name in ("html", "save_base"):
        path = getattr(args, name)
        if path is not None:
            setattr(args, name, check_place(f"--{name.replace('_', '-')}", path))
