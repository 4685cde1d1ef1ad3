"""What `compare` is asked for: what everybody says, and the protocol that few change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import OptionKind, count, flag, path, shapes, shown
from ov_weight_compression.patterns import Roles, parse_roles

__all__ = ["CompareRequest", "ComparisonProtocol"]

_PROTOCOL = {
    **{"stride": count(1), "context": count(0), "score_last": flag(), "batch": count(1), "shapes": shapes()},
    **{"layer_samples": count(0), "save_base": path(), "base_logits": path()},
}
_REQUEST = {
    **{"window": count(2), "windows": count(1), "tokenizer": path(), "layers": flag()},
    "roles": OptionKind("", parse_roles, "Roles"),
}


def _parse(request: object, kinds: Mapping[str, OptionKind]) -> None:
    """Read the fields of a frozen dataclass; None may stand where it is the default."""
    for name, kind in kinds.items():
        value, default = getattr(request, name), getattr(type(request), name)
        object.__setattr__(request, name, None if value is default is None else kind.parse(name, value))


@dataclass(frozen=True)
class ComparisonProtocol:
    """How two models are compared, where that is to be as somebody else did it, or as it was done before.

        compare(base, int4, "text.txt", window=512, protocol=ComparisonProtocol(context=256, score_last=False))

    scores what llama.cpp's tool scores: the second half of each window, without its last position.

    Raises:
        OptionError: a value that cannot be; names it.
    """

    stride: int | None = None
    """Tokens from the start of one window to the next; the window."""
    context: int | None = None
    """Leading positions of each window that are not scored; 0, or `window - stride` where windows overlap."""
    score_last: bool = True
    """Whether the last position of a window, which has no next token, counts for KL and agreement."""
    batch: int | None = None
    """How many rows of given inputs to run at once; all."""
    shapes: Mapping[str, Sequence[int]] | None = None
    """Shapes of made-up inputs, by name."""
    layer_samples: int = 2
    """On how many windows or sets of inputs the layers' outputs are compared; 0 for weights alone."""
    save_base: str | PathLike[str] | None = None
    """Keep the base model's logits in this file."""
    base_logits: str | PathLike[str] | None = None
    """Read them from this file, and do not run the base model on the text again."""

    def __post_init__(self) -> None:
        _parse(self, _PROTOCOL)
        if self.save_base and self.base_logits:
            raise OptionError("save_base, base_logits: give one of them, the logits are either written or read")
        if self.save_base and not Path(self.save_base).parent.is_dir():
            raise OptionError(f"save_base={str(self.save_base)!r}: there is no folder {Path(self.save_base).parent}")


@dataclass(frozen=True)
class CompareRequest:
    """The arguments of `compare`, whose docstring says what each of them means, but for the models and the data."""

    window: int | None = None
    windows: int | None = None
    tokenizer: str | PathLike[str] | None = None
    layers: bool = True
    protocol: ComparisonProtocol = field(default_factory=ComparisonProtocol)
    roles: Roles | None = None

    def __post_init__(self) -> None:
        _parse(self, _REQUEST)
        if not isinstance(self.protocol, ComparisonProtocol):
            raise OptionError(f"protocol: must be a ComparisonProtocol, got {shown(self.protocol)}")
        if self.tokenizer and not Path(self.tokenizer).exists():
            raise OptionError(f"tokenizer={str(self.tokenizer)!r}: there is no such file or folder")
