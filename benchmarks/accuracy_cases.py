"""What accuracy is measured on: models with their texts, and the variants of the two tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A model and its token texts. Calibration takes the first ``calibration`` windows of ``length`` tokens of one
    text, judging every ``every``-th window of another."""

    name: str
    model: Path
    calibration_text: Path
    eval_text: Path
    group_size: int
    length: int
    calibration: int
    every: int

    def missing(self) -> str | None:
        """The first file that is not there."""
        return next(
            (str(path) for path in (self.model, self.calibration_text, self.eval_text) if not path.exists()), None
        )


@dataclass(frozen=True)
class Variant:
    """One way of compressing: a tool's options beside mode and group, and what data it gets.

    ``data``: None, ``"text"`` (the case's calibration windows), ``"random"`` or ``"self"`` (made by the package).
    """

    tool: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    data: str | None = None


NAMES = ("pylm", "stories260K", "chargpt", "smollm")
METRICS = (
    "weight_quantization_error",
    "hessian_input_activation",
    "mean_activation_variance",
    "max_activation_variance",
    "mean_activation_magnitude",
)


def cases(shared: Path, smollm: Path | None) -> list[Case]:
    """The small trained models of the shared folder, and SmolLM2-135M where its path is given.

    Sixteen thousand tokens calibrate each, so that all are served alike; the character model's windows are short.
    """
    models, texts = shared / "models", shared / "texts"

    def case(name: str, folder: Path, text: str, group: int, length: int, every: int) -> Case:
        return Case(
            name=name,
            model=folder / "openvino_model.xml",
            calibration_text=texts / f"{text}_calibration.npy",
            eval_text=texts / f"{text}_eval.npy",
            group_size=group,
            length=length,
            calibration=64 * 256 // length,
            every=every,
        )

    found = [
        case("pylm", models / "pylm", "python", 64, 256, 1),
        case("stories260K", models / "stories260K", "stories", 32, 256, 1),
        case("chargpt", models / "chargpt", "shakespeare", 32, 64, 1),
    ]
    if smollm is not None:
        found.append(case("smollm", smollm, "english", 64, 256, 2))
    return found


def _data_variants(tool: str) -> list[Variant]:
    """The algorithms that both tools have, by NNCF's names."""
    combinations = (
        ("awq",),
        ("scale_estimation",),
        ("awq", "scale_estimation"),
        ("gptq",),
        ("gptq", "scale_estimation"),
        ("awq", "gptq"),
        ("lora_correction",),
    )
    return [Variant(tool, "+".join(names), dict.fromkeys(names, True), "text") for names in combinations]


def _ratio_variants(tool: str) -> list[Variant]:
    """Mixed precision: four fifths of the parameters in the mode, chosen by each metric, the rest in int8."""
    return [
        Variant(
            tool,
            f"ratio0.8 {metric}",
            {"ratio": 0.8, "sensitivity_metric": metric},
            None if metric == METRICS[0] else "text",
        )
        for metric in METRICS
    ]


NNCF_VARIANTS = [
    Variant("nncf", "plain"),
    Variant("nncf", "awq, no data", {"awq": True}),
    *_data_variants("nncf"),
    *_ratio_variants("nncf"),
]

OWN_VARIANTS = [
    Variant("own", "plain", {"scale_search": "off"}),
    Variant("own", "auto"),
    Variant("own", "awq, no data", {"awq": True}),
    Variant("own", "fast, no data", {"accuracy": "fast"}),
    Variant("own", "fast, random tokens", {"accuracy": "fast"}, "random"),
    Variant("own", "best, self-made text", {"accuracy": "best"}, "self"),
    Variant("own", "fast", {"accuracy": "fast"}, "text"),
    Variant("own", "balanced", {"accuracy": "balanced"}, "text"),
    Variant("own", "best", {"accuracy": "best"}, "text"),
    *_data_variants("own"),
    *_ratio_variants("own"),
]
