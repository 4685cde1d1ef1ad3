"""What the site's pages take from the package itself, put in where they say `{{ name }}` or `{{ name argument }}`."""

from __future__ import annotations

import re
from collections.abc import Callable

from ov_weight_compression.cli.command import command_parser
from ov_weight_compression.passes.device_rules import EXECUTED, GATHER, MATMUL
from ov_weight_compression.passes.options import OPTIONS
from ov_weight_compression.quantization.formats import FORMATS, PER_CHANNEL, Format


def options() -> str:
    """The table of options: what `WeightCompression` and the command take."""
    lines = ["| option | on the command line | default | what it does | what it takes |", "|---|---|---|---|---|"]
    for name, option in OPTIONS.items():
        flag = "" if option.flag is None else f"`{option.flag or '--' + name.replace('_', '-')}`"
        default = getattr(option.default, "value", option.default)
        told = option.usual if default in (None, ()) else f"`{default}`"
        takes = ", ".join(f"`{one}`" for one in option.kind.choices) or option.kind.takes
        lines.append(f"| `{name}` | {flag} | {told} | {option.help} | {takes} |".replace("int | ", "int or "))
    return "\n".join(lines)


def formats() -> str:
    """The table of storage formats."""
    lines = [
        "| mode | codes | group size | scale | zero point | MatMul on a CPU | embedding on a CPU |",
        "|---|" + "---|" * 6,
    ]
    for name, row in FORMATS.items():
        group = "a channel" if row.default_group == PER_CHANNEL else str(row.default_group)
        group += "" if row.fixed_group or name.startswith("int8") else ", or others"
        runs = ["from the codes" if _executed(row, layer) else "expanded" for layer in (MATMUL, GATHER)]
        zero = {None: "", "group": row.zero_type or row.storage, "scalar": f"{row.zero_value}, for all"}[row.zero_point]
        scale = row.scale + (", and one f32 for the weight" if row.tensor_scale else "")
        lines.append(f"| `{name}` | {row.storage} | {group} | {scale} | {zero} | {runs[0]} | {runs[1]} |")
    return "\n".join(lines)


def _executed(row: Format, layer: str) -> bool:
    return row.codebook_type is None and row.storage in EXECUTED["CPU"][layer]


def usage(command: str) -> str:
    """What `ov-compress COMMAND --help-all` prints."""
    return f"```text\n{command_parser(command).help_text(everything=True).rstrip()}\n```"


_FILLED: dict[str, Callable[..., str]] = {"options": options, "formats": formats, "usage": usage}


def on_page_markdown(markdown: str, **_: object) -> str:
    """mkdocs' hook: fill a page."""
    return re.sub(r"\{\{ (\w+) ?([\w ]*) \}\}", lambda found: _FILLED[found[1]](*filter(None, [found[2]])), markdown)
