"""What `compare` is asked for: what everybody says, and the protocol that few change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from ov_weight_compression.evaluation.windows import Cut
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import count, flag, optional, path, shapes, shown
from ov_weight_compression.patterns import Roles

__all__ = ["CompareRequest", "ComparisonProtocol"]


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
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Shapes of made-up inputs, by name."""
    layer_samples: int = 2
    """On how many windows or sets of inputs the layers' outputs are compared; 0 for weights alone."""
    save_base: str | PathLike[str] | None = None
    """Keep the base model's logits in this file."""
    base_logits: str | PathLike[str] | None = None
    """Read them from this file, and do not run the base model on the text again."""

    def __post_init__(self) -> None:
        optional(count(1), "stride", self.stride)
        optional(count(0), "context", self.context)
        flag().parse("score_last", self.score_last)
        optional(count(1), "batch", self.batch)
        count(0).parse("layer_samples", self.layer_samples)
        parsed = {
            "shapes": optional(shapes(), "shapes", self.shapes) or {},
            "save_base": optional(path(), "save_base", self.save_base),
            "base_logits": optional(path(), "base_logits", self.base_logits),
        }
        for name, value in parsed.items():
            object.__setattr__(self, name, value)
        if self.save_base and self.base_logits:
            raise OptionError("save_base, base_logits: give one of them, the logits are either written or read")
        if self.save_base and not Path(self.save_base).parent.is_dir():
            raise OptionError(f"save_base={str(self.save_base)!r}: there is no folder {Path(self.save_base).parent}")


@dataclass(frozen=True)
class CompareRequest:
    """The arguments of `compare`, whose docstring says what each of them means, but for the models and the data."""

    window: int | None = None
    windows: int | None = None
    tokenizer: Path | None = None
    layers: bool = True
    protocol: ComparisonProtocol = field(default_factory=ComparisonProtocol)
    roles: Roles | None = None

    def __post_init__(self) -> None:
        optional(count(2), "window", self.window)
        optional(count(1), "windows", self.windows)
        flag().parse("layers", self.layers)
        if not isinstance(self.protocol, ComparisonProtocol):
            raise OptionError(f"protocol: must be a ComparisonProtocol, got {shown(self.protocol)}")
        if self.tokenizer and not self.tokenizer.exists():
            raise OptionError(f"tokenizer={str(self.tokenizer)!r}: there is no such file or folder")

    @property
    def cut(self) -> Cut:
        """How token ids are cut into windows, and which positions count."""
        protocol = self.protocol
        return Cut(self.window, protocol.stride, protocol.context, self.windows, protocol.score_last)
