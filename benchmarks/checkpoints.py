"""Checkpoints: whether compressing one gives the bytes that exporting first gives, and what it costs.

    python -m benchmarks.checkpoints zoo [--dtype bfloat16] [ARCHITECTURE …]     exit code 1 where something differs
    python -m benchmarks.checkpoints speed [--sizes 1.2,3.2,8.0] [--limit 1G]    beside optimum-cli, in one run

Both need an interpreter that has torch, transformers, optimum-intel (and NNCF for its int4); the package is imported
from where it is run.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import floor, limits
from benchmarks.architectures import ARCHITECTURES, build, export_checkpoint
from benchmarks.layer_order import GENERATED, same_but_for_order
from benchmarks.llama_checkpoint import CHECKPOINT_SHAPES, build_checkpoint
from benchmarks.places import CACHE
from benchmarks.processes import run
from benchmarks.tables import markdown, megabytes
from ov_weight_compression.cli.compress_files import compress_path
from ov_weight_compression.passes.recipe import Recipe
from ov_weight_compression.passes.report import COMPUTED

OPTIONS = {"mode": "int4_sym", "group_size": 32}
_CARD = "README.md"  # says what the model was made from


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in two folders: files by name; of an .xml all but the numbers in names that OpenVINO made
    up, which count from the start of the process."""
    files = [
        {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != _CARD}
        for folder in (one, other)
    ]
    found = [f"{name} is in one of them alone" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        read = [(folder / name).read_bytes() for folder in (one, other)]
        if name.endswith(".xml"):
            read = [GENERATED.sub("", text.decode()).encode() for text in read]
        if read[0] == read[1]:
            continue
        xml = Path(name).with_suffix(".xml")
        alike = all((folder / xml).exists() for folder in (one, other)) and same_but_for_order(one / xml, other / xml)
        # Of two layers that could come in either order, the export does not always take the same first.
        found.append(f"({name}: layers in another order)" if alike else f"{name} differs")
    return found


def check(name: str, dtype: str, work: Path) -> list[str]:
    """What differs between both ways for an architecture."""
    checkpoint, usual = build(name, dtype, work / "hf"), work / "usual"
    try:
        export_checkpoint(checkpoint, usual, ARCHITECTURES[name].task)
    except Exception as error:  # whatever a library raises
        return [f"(optimum-intel itself cannot: {str(error).strip().splitlines()[0][:120]})"]
    compress_path(usual, work / "exported first", Recipe(OPTIONS))
    results = compress_path(checkpoint, work / "straight", Recipe(OPTIONS))
    found = differences(work / "exported first", work / "straight")
    computed = sum(row.origin == COMPUTED for result in results for row in result.report.rows)
    found += [f"({computed} weights: {COMPUTED})"] if computed else []
    unused = sorted({name for result in results for name in result.report.unused})
    return [*found, *([f"(unused: {', '.join(unused)[:200]})"] if unused else [])]


def run_workers_here() -> None:
    """Exports in this process, which imports torch and all the rest once."""
    from ov_weight_compression.checkpoints import export_worker, opening

    opening.run_worker = lambda words, _: export_worker.work(words)


def zoo(arguments: argparse.Namespace) -> int:
    """Print a line for each architecture; the exit code."""
    bad = 0
    if arguments.quick:
        run_workers_here()
    for name in arguments.architectures or ARCHITECTURES:
        begun, work = time.perf_counter(), Path(tempfile.mkdtemp(prefix="checkpoints-", dir=arguments.work))
        try:
            found = check(name, arguments.dtype, work)
        except Exception as error:  # whatever a library raises for one of them, the others are looked at
            found = [f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"]
        finally:
            if arguments.keep is False:
                shutil.rmtree(work, ignore_errors=True)
        wrong = [line for line in found if not line.startswith("(")]
        bad += bool(wrong)
        print(f"{name:14} {time.perf_counter() - begun:5.1f} s  {'; '.join(found) or 'the same bytes'}", flush=True)
    print(f"{bad} differ")
    return int(bad > 0)


COMMANDS = {
    "ov-compress, no search": [
        "-m",
        "ov_weight_compression.cli",
        "{source}",
        "-o",
        "{target}",
        "--scale-search",
        "off",
    ],
    "ov-compress": ["-m", "ov_weight_compression.cli", "{source}", "-o", "{target}"],
    "optimum-cli": [
        *("-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", "{source}", "{target}"),
        *("--task", "text-generation-with-past", "--weight-format", "int4"),
    ],
}
OWN = ["--mode", "int4_asym", "--group-size", "128", "--quiet"]


def speed(arguments: argparse.Namespace) -> int:
    """Print a table: int4 with groups of 128 from a checkpoint to the saved files."""
    rows, code = [], 0
    for size in arguments.sizes.split(","):
        source = build_checkpoint(CHECKPOINT_SHAPES[size], arguments.cache / f"llama-{size}-bf16")
        for name, words in COMMANDS.items():
            if arguments.only and not re.search(arguments.only, name):
                continue
            row, failed = _one(source, name, words, arguments)
            code |= failed
            rows.append([f"{size} B: {row[0]}", *row[1:]])
            print(rows[-1], file=sys.stderr, flush=True)
    inside = "" if arguments.limit is None else f", inside {arguments.limit}"
    head = [f"int4_asym, groups of 128{inside}", "seconds", "processor", "anonymous MB", "resident MB", "written MB"]
    print(markdown(head, rows))
    return int(code)


def _one(source: Path, name: str, words: Sequence[str], arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """A line of the table, and whether the command failed."""
    size = None if arguments.limit is None else limits.parse_size(arguments.limit)
    for file in source.glob("*.safetensors"):
        if size is None:
            floor.warm(file)
        else:  # pages that another group has read would not count in this one
            floor.chill(file)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder, _inside(size) as limit:
        target = Path(folder) / "out"
        command = [word.format(source=source, target=target) for word in words]
        command = [*limit.prefix, sys.executable, *command, *(OWN if name.startswith("ov") else [])]
        done = run(command, Path(folder) / "log", before=limit.join)
        written = sum(path.stat().st_size for path in target.glob("openvino_model.*"))
    last = "" if done.code == 0 else f" ({done.printed.strip().splitlines()[-1:]})"
    figures = (done.anonymous, done.resident, written)
    return [name + last, f"{done.seconds:.1f}", f"{done.processor:.1f}", *map(megabytes, figures)], done.code != 0


@contextmanager
def _inside(size: int | None) -> Iterator[limits.Limit]:
    """A limit of so many bytes, or none."""
    if size is None:
        yield limits.Limit("no limit")
        return
    with limits.limited(size) as limit:
        if limit is None:
            raise SystemExit(limits.UNAVAILABLE)
        yield limit


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    same = commands.add_parser("zoo", help="the same bytes as exporting first?")
    same.add_argument("architectures", nargs="*", choices=[*ARCHITECTURES, []], help="all by default")
    same.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    same.add_argument("--work", type=Path, help="where to make folders")
    same.add_argument("--keep", action="store_true", help="do not remove them")
    same.add_argument("--quick", action="store_true", help="export in this process, not in one for each")
    same.set_defaults(run=zoo)
    cost = commands.add_parser("speed", help="time and memory beside optimum-cli")
    cost.add_argument("--sizes", default="1.2", help=f"of {', '.join(CHECKPOINT_SHAPES)}, in billions (default 1.2)")
    cost.add_argument("--only", help="the commands whose name this regular expression finds")
    cost.add_argument("--limit", metavar="SIZE", help="of memory, each command inside it: 1G")
    cost.add_argument("--cache", type=Path, default=CACHE, help="where the checkpoints are kept")
    cost.add_argument("--work", type=Path, help="where to write")
    cost.set_defaults(run=speed)
    parsed = parser.parse_args()
    code: int = parsed.run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
