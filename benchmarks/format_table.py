"""What each format costs: bytes, divergence without data, with fast and best, NNCF beside it.

    python -m benchmarks.format_table --smollm PATH --peer-python PATH --output benchmarks/results/formats.md

SmolLM2-135M as `accuracy.py` judges it, with its cache; `--variants` are patterns like "nf4:64 fast". Both sides have
the first embedding and the last MatMul in int8. "A token" is the time of a layer with one row of input, beside int4_sym
in groups of 128, from the package's table of times (`python -m benchmarks.format_times`).
"""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from typing import Any

from benchmarks import accuracy, accuracy_cases, machine, peers, tables
from benchmarks.accuracy_cases import Case, Variant
from ov_weight_compression.passes.device_rules import MEASURED_TIMES, time_of

ROWS = (
    ("int8_asym", -1),
    ("int4_asym", 64),
    ("int4_sym", 32),
    ("int4_sym", 64),
    ("nf4", 64),
    ("fp4", 64),
    ("mxfp4", 32),
    ("nvfp4", 16),
    ("int2_sym", 64),
)
OWN = (
    Variant("own", "auto"),
    Variant("own", "fast", {"accuracy": "fast"}, "text"),
    Variant("own", "best", {"accuracy": "best"}, "text"),
)
NNCF = (
    Variant("nncf", "plain"),
    Variant("nncf", "awq+scale_estimation", {"awq": True, "scale_estimation": True}, "text"),
    Variant("nncf", "gptq+scale_estimation", {"gptq": True, "scale_estimation": True}, "text"),
)
HEADER = ("mode", "group", "MB", "default", "`fast`", "`best`", "NNCF, no data", "NNCF, its best", "a token")


def variants_of(mode: str) -> tuple[Variant, ...]:
    """Those that the format has: 8 bits have no algorithm with data."""
    return (OWN[0], NNCF[0]) if mode.startswith("int8") else (*OWN, *NNCF)


def measure(case: Case, arguments: Any) -> None:
    """What is not remembered, a line each."""
    for mode, group in ROWS:
        own = replace(case, group_size=group)
        for variant in variants_of(mode):
            if not any(
                fnmatch.fnmatchcase(f"{mode}:{group} {variant.name}", one) for one in arguments.variants.split(";")
            ):
                continue
            key = accuracy.key_of(own, mode, variant)
            with accuracy.remembered(arguments.cache) as figures:
                if key in figures or variant.tool not in arguments.tools:
                    continue
            found = accuracy.measure(own, mode, variant, arguments)
            with accuracy.remembered(arguments.cache) as figures:
                figures[key] = found
            print(key, found.get("failed") or f"KL {found['kl']:.5f} in {found['seconds']:.1f} s", flush=True)


def render(case: Case, figures: Any) -> str:
    """The table, as Markdown."""
    rows = []
    for mode, group in ROWS:
        own = replace(case, group_size=group)
        found = {(one.tool, one.name): figures.get(accuracy.key_of(own, mode, one), {}) for one in variants_of(mode)}
        theirs = {name: value["kl"] for (tool, name), value in found.items() if tool == "nncf" and "kl" in value}
        best = min(theirs.values()) if theirs.keys() - {"plain"} else None  # nothing to choose from without data
        rows.append(
            (
                f"`{mode}`",
                "a channel" if group == -1 else str(group),
                tables.megabytes(found["own", "auto"].get("bytes")),
                *(_kl(found.get(("own", name), {}).get("kl")) for name in ("auto", "fast", "best")),
                _kl(found["nncf", "plain"].get("kl")),
                _kl(best),
                f"{time_of(mode, group).one_row:.2f}" if mode in MEASURED_TIMES else "–",
            )
        )
    return tables.markdown(HEADER, rows)


def _kl(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def main() -> int:
    """Measures what is missing, prints the table, writes it."""
    arguments = accuracy.parse(None)
    case = next(one for one in accuracy_cases.cases(arguments.shared, arguments.smollm) if one.name == "smollm")
    if missing := case.missing():
        raise SystemExit(f"{missing} is not there")
    if not arguments.table_only:
        measure(case, arguments)
    with accuracy.remembered(arguments.cache) as figures:
        text = render(case, figures)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(
            f"{machine.describe(peers.versions(arguments.peer_python))}\n{accuracy.READING}\n{text}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
