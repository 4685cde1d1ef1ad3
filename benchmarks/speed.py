"""Time and memory of whole commands beside NNCF: ``python -m benchmarks.speed --sizes 1.2 --modes int4_asym``.

Each run is a process of its own, from its start to the saved file; the contenders take turns, and the tables hold
medians. Llama-shaped fp16 models of the wanted sizes are built once in ``--models`` (``llama_ir.py``). Both tools get
the same work (``modes.py``). The source is in the page cache as far as it fits, and earlier output is written out
before each run. What ``--search off`` times is what NNCF does; ``auto`` is the package's default and does more.

``--small-weights 100,1000,10000 --sizes ""`` times models of so many weights of 64 x 64 instead, or as well: saved by
both writers, and compiled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import jobs, llama_ir, machine, modes, peers, places, small_weights, speed_runs, speed_table
from benchmarks.limits import UNAVAILABLE, parse_size
from benchmarks.llama_graph import Shape
from benchmarks.speed_runs import Contender, Row


def contenders(mode: str, arguments: argparse.Namespace, with_peer: bool) -> list[Contender]:
    """This package with each wanted search and in each wanted form, and NNCF."""
    options = modes.options(mode, arguments.group_size, arguments.ratio)
    found = []
    for form in arguments.form.split(","):
        name = f"this package, {jobs.FORMS[form]}"
        if mode in modes.INT8:
            found.append(Contender(name, "own", options, form))
            continue
        for search in arguments.search.split(","):
            found.append(Contender(f"{name}, search {search}", "own", {**options, "scale_search": search}, form))
    if with_peer:
        found.append(Contender("NNCF", "nncf", options))
    return found


def small_contenders(with_peer: bool) -> list[Contender]:
    """Both writers and lazy compilation, with the default search and without, and NNCF."""
    options = {"mode": "int4_sym", "group_size": 32, "all_layers": True}
    found = [
        Contender(
            f"this package, {jobs.FORMS[form]}, search {search}", "own", {**options, "scale_search": search}, form
        )
        for form in ("library", "writer", "compiled")
        for search in ("off", "auto")
    ]
    return [*found, Contender("NNCF", "nncf", options)] if with_peer else found


def compare_small(arguments: argparse.Namespace, with_peer: bool) -> str:
    """A section for each number of small weights, and how the time grows."""
    sections, growth = [], []
    for count in map(int, arguments.small_weights.split(",")):
        source = small_weights.build(count, arguments.models / f"small-{count}")
        rows, disk = speed_runs.rounds(
            source, small_contenders(with_peer), arguments.pairs, arguments.work, arguments.peer_python
        )
        sections.append(f"### int4_sym, {count} weights of 64 × 64\n\n{speed_table.comparison(rows, disk)}")
        print(sections[-1], flush=True)
        growth += [(count, row) for row in rows]
    sections.append("### Pass and saving (or compiling) by the number of weights\n\n" + speed_table.small_table(growth))
    print(sections[-1], flush=True)
    return "\n".join(sections)


def model_of(shape: Shape, name: str, folder: Path) -> Path:
    """The IR of a size, built where it is not there yet."""
    print(f"model {name}: {shape.parameters / 1e9:.2f} B parameters in {folder / f'llama-{name}'}", flush=True)
    return llama_ir.build(shape, folder / f"llama-{name}")


def compare(arguments: argparse.Namespace, with_peer: bool) -> str:
    """A section for each size and mode, and the growth over sizes where it is asked for."""
    sections = []
    growth: dict[str, list[tuple[float, float, Row]]] = {}
    for name in filter(None, arguments.sizes.split(",")):
        shape = llama_ir.shape_of(name)
        source = model_of(shape, name, arguments.models)
        size = source.with_suffix(".bin").stat().st_size
        for mode in arguments.modes.split(","):
            rows, disk = speed_runs.rounds(
                source, contenders(mode, arguments, with_peer), arguments.pairs, arguments.work, arguments.peer_python
            )
            title = f"### {mode}, {shape.parameters / 1e9:.2f} B parameters, {size / 1e9:.2f} GB in fp16\n\n"
            sections.append(title + speed_table.comparison(rows, disk))
            print(sections[-1], flush=True)
            growth.setdefault(mode, []).extend((shape.parameters / 1e9, size, row) for row in rows)
    if arguments.growth:
        for mode, each in growth.items():
            sections.append(f"### How the cost grows, {mode}\n\n" + speed_table.growth_table(each))
            print(sections[-1], flush=True)
    return "\n".join(sections)


def under_limit(arguments: argparse.Namespace, with_peer: bool) -> str:
    """One run of each contender under ``--limit-memory``."""
    size = parse_size(arguments.limit_memory)
    rows = []
    for name in arguments.sizes.split(","):
        shape = llama_ir.shape_of(name)
        source = model_of(shape, name, arguments.models)
        for mode in arguments.modes.split(","):
            for contender in contenders(mode, arguments, with_peer):
                row = speed_runs.under_limit(source, contender, size, arguments.work, arguments.peer_python)
                if row is None:
                    return f"{UNAVAILABLE}\n"
                rows.append((f"{shape.parameters / 1e9:.1f} B, {mode}", row))
    text = f"### Inside a memory limit of {arguments.limit_memory}\n\n{speed_table.limit_table(rows)}"
    print(text, flush=True)
    return text


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    peers.add_option(parser)
    parser.add_argument("--sizes", default="0.1,0.5", help=f"of {','.join(llama_ir.SHAPES)}, or shapes")
    parser.add_argument("--modes", default="int8_asym,int4_asym", help=f"of {','.join(modes.ALL)}")
    parser.add_argument("--search", default="off,auto", help="the package's scale_search, where a mode has one")
    parser.add_argument("--form", default="library", help=f"of {','.join(jobs.FORMS)}: what the script does, or none")
    parser.add_argument(
        "--small-weights", default="", metavar="COUNTS", help="time models of so many small weights too"
    )
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--ratio", type=float, default=1.0, help="below 1 the data-free sensitivity is timed too")
    parser.add_argument("--pairs", type=int, default=3, help="rounds")
    parser.add_argument("--models", type=Path, default=places.CACHE, help="folder for the built models")
    parser.add_argument("--work", type=Path, help="folder for outputs, deleted after each run (default: --models)")
    parser.add_argument("--growth", action="store_true", help="a table of time and memory over the sizes")
    parser.add_argument("--limit-memory", metavar="SIZE", help="such as 512M: run once inside this limit instead")
    parser.add_argument("--output", type=Path, help="Markdown file for the results")
    arguments = parser.parse_args(argv)
    arguments.work = arguments.work or arguments.models
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs what is asked for, prints the tables, writes them."""
    arguments = parse(argv)
    peer = peers.versions(arguments.peer_python)
    if peer is None:
        print(peers.ADVICE)
    text = under_limit(arguments, bool(peer)) if arguments.limit_memory else compare(arguments, bool(peer))
    if arguments.small_weights:
        text += "\n" + compare_small(arguments, bool(peer))
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(f"{machine.describe(peer)}\nMedians of {arguments.pairs} rounds.\n\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
