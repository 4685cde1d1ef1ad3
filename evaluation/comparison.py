"""What a comparison found, as data: frozen, printed as a table, saved as JSON or as a page."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ov_weight_compression.evaluation.figures import LanguageFigures, Passage, Surprise
from ov_weight_compression.evaluation.layers import FormatFigures, LayerFigures
from ov_weight_compression.evaluation.models import Arithmetic
from ov_weight_compression.evaluation.outputs import OutputFigures
from ov_weight_compression.ir_utils.publish import write_text

__all__ = ["Comparison", "DataFigures", "ModelFigures"]


@dataclass(frozen=True)
class ModelFigures:
    """One of the two models."""

    name: str
    path: str | None
    bytes: int
    """Of all constants."""


@dataclass(frozen=True)
class DataFigures:
    """What both models were run on."""

    source: str
    synthesised: bool
    """Made up from the input shapes: such figures say little about accuracy on real data."""
    samples: int
    """Windows of text, or sets of inputs."""
    window: int | None = None
    """Tokens to a window; None for other models."""
    stride: int | None = None
    context: int | None = None
    """Leading positions of each window that are not scored."""
    score_last: bool | None = None
    """Whether the last position of each window, which has no next token, counts for KL and agreement."""


@dataclass(frozen=True)
class Comparison:
    """A compressed model beside the model it was made from.

    Figures that are infinite (the SNR of a weight that did not change) are the strings "inf" and "-inf" in JSON, those
    that are not defined are null.
    """

    base: ModelFigures
    compressed: ModelFigures
    data: DataFigures
    arithmetic: Arithmetic
    language: LanguageFigures | None
    """Of language models; None for others."""
    outputs: tuple[OutputFigures, ...]
    """Of models that are no language models, one for each output."""
    formats: tuple[FormatFigures, ...]
    layers: tuple[LayerFigures, ...]
    """Every compressed weight, in graph order."""
    worst_positions: tuple[Surprise, ...] = ()
    worst_passages: tuple[Passage, ...] = ()
    notes: tuple[str, ...] = ()

    def worst_layers(self, count: int = 10) -> list[LayerFigures]:
        """The layers that lose most: by their own output's SNR where it was measured, else by the weight's."""
        known = [layer for layer in self.layers if _loss(layer) is not None]
        return sorted(known, key=lambda layer: _loss(layer) or 0.0)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        plain: dict[str, Any] = _plain(asdict(self))
        plain["worst_layers"] = [layer.name for layer in self.worst_layers()]
        for name in ("properties", "defaults"):
            plain["arithmetic"][name] = dict(getattr(self.arithmetic, name))
        plain["arithmetic"]["description"] = self.arithmetic.describe()
        return plain

    def save_json(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def to_html(self) -> str:
        """A page that needs nothing beside it."""
        from ov_weight_compression.evaluation.comparison_page import render_page

        return render_page(self)

    def save_html(self, path: str | os.PathLike[str]) -> None:
        """Write `to_html`."""
        write_text(Path(path), self.to_html())

    def print(self) -> None:
        """Print tables to the terminal."""
        from ov_weight_compression.evaluation.tables import print_comparison
        from ov_weight_compression.ir_utils.wording import result_console

        print_comparison(self, result_console())

    def __str__(self) -> str:
        from ov_weight_compression.evaluation.tables import print_comparison
        from ov_weight_compression.ir_utils.wording import as_text

        return as_text(lambda console: print_comparison(self, console), 110)

    def _repr_html_(self) -> str:
        from ov_weight_compression.evaluation.comparison_page import render_fragment

        return render_fragment(self)


def _loss(layer: LayerFigures) -> float | None:
    return layer.own_snr_db if layer.own_snr_db is not None else layer.weight_snr_db


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
