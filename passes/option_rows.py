"""A row of the table of options: what is declared of each, in one place (see `options`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ov_weight_compression.ir_utils.option_kinds import OptionKind

if TYPE_CHECKING:
    from ov_weight_compression.passes.options import Options

__all__ = ["Need", "Option", "declared"]


@dataclass(frozen=True)
class Need:
    """What an option means nothing without."""

    met: Callable[[Options], bool]
    words: str
    """After "means nothing": "{value} means nothing without lora_correction=True"; `{mode}` is the mode's name."""


@dataclass(frozen=True)
class Option:
    """One row of the table."""

    name: str
    default: Any
    """In a signature: None where it depends on other options or on the machine."""
    kind: OptionKind
    help: str
    flag: str | None
    """On the command line; None where it has none, or one that the command reads itself."""
    recorded: Literal["always", "asked", "never"]
    """In the recipe: "asked" means where it is not the default, or where its need is met."""
    below_8_bits: bool
    """It means nothing with the 8-bit integer modes, which give every weight 8 bits."""
    need: Need | None
    with_data: bool
    usual: str
    """In the help of the command: what None means where it is the default."""


def declared(
    default: Any,
    kind: OptionKind,
    help: str,
    *,
    flag: str | None = "",
    recorded: Literal["always", "asked", "never"] = "asked",
    below_8_bits: bool = False,
    need: Need | None = None,
    with_data: bool = False,
    make: Callable[[], Any] | None = None,
    usual: str = "",
) -> Any:
    """A field of `Options`; see `Option`. `make` computes its value where None stands in the signature."""
    row = (default, kind, help, flag, recorded, below_8_bits, need, with_data, usual)
    return field(default=MISSING if make else default, default_factory=make or MISSING, metadata={"option": row})
