"""The options of a comparison, checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ov_weight_compression.evaluation.windows import Cut
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.kinds import count, flag, optional

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """What `compare` was asked for; its docstring says what each of them means."""

    cut: Cut = field(default_factory=Cut)
    tokenizer: Path | None = None
    batch: int | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    layers: bool = True
    layer_samples: int = 2
    save_base: Path | None = None
    base_logits: Path | None = None

    def __post_init__(self) -> None:
        count(0).parse("layer_samples", self.layer_samples)
        optional(count(1), "batch", self.batch)
        flag().parse("layers", self.layers)
        if self.save_base and self.base_logits:
            raise OptionError("save_base, base_logits: give one of them, the logits are either written or read")
        if self.tokenizer and not self.tokenizer.exists():
            raise OptionError(f"tokenizer={str(self.tokenizer)!r}: there is no such file or folder")
        if self.save_base and not self.save_base.parent.is_dir():
            raise OptionError(f"save_base={str(self.save_base)!r}: there is no folder {self.save_base.parent}")
