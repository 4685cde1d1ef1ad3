"""What is done with data: the algorithms behind NNCF's names and behind the three presets.

    accuracy     with a dataset                                     a language model without one
    fast         AWQ, folded; scale search weighted with E[x²]      the same, on 1,024 random tokens
    balanced     + GPTQ with descent, on the float model's inputs   the same, on text that the model writes itself
    best         + targets of the float model over the compressed   the same, on text that the model writes itself
                 layers before (two streams)

`scale_estimation=True` is the weighted search, `gptq=True` is GPTQ with descent, `algorithm=` whatever steps the caller
hands in instead. A dataset alone means the weighted search too, for there is no reason to measure and not to use it.
`lora_correction=True` adds adapters to whichever of these is chosen. `awq=True` goes with all of them and may insert a
Multiply behind an activation function where nothing takes the factors, which `fast` never does; `awq=False` is `fast`
without. GPTQ makes up for most of what AWQ brings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes.option_values import Accuracy

if TYPE_CHECKING:
    from ov_weight_compression.passes.options import Options
    from ov_weight_compression.quantization.layerwise.layer import Step

BY_LAYERS = (Accuracy.BALANCED, Accuracy.BEST)
"""Presets whose codes are GPTQ's."""


@dataclass(frozen=True)
class Tuning:
    """What the algorithms themselves take, beside which of them to run: NNCF's advanced parameters, as far as they mean
    something here. None stands for what the algorithm does by itself."""

    awq_subset: int | None = None
    """Samples that AWQ's factors are chosen on; of those that `subset_size` leaves, as for the others."""
    awq_alphas: tuple[float, ...] | None = None
    """The exponents that are tried."""
    awq_share: float | None = None
    """The share of the channels, those of the largest activations, whose groups are scaled; all where None."""
    awq_from_data: bool = True
    """False chooses the factors as without data, data or not."""
    scale_estimation_subset: int | None = None
    gptq_subset: int | None = None
    gptq_damping: float | None = None
    """What is added to the diagonal of the Gram matrices, as a share of its median."""
    lora_subset: int | None = None
    lora_rounds: int | None = None
    """How often rounding one adapter and fitting the other alternate."""


@dataclass(frozen=True)
class Method:
    """Which algorithms a run has, and what they take."""

    dataset: Any = None
    """What the caller gave, or "random" or "self"; None where no data are looked at."""
    folds: bool = False
    """Scale input channels as far as norms and producing weights take the factors (AWQ)."""
    inserts: bool = False
    """Where nothing takes them, a Multiply behind an activation function may."""
    steps: tuple[Step, ...] | None = None
    """What makes each layer's codes while the data are there (GPTQ, descent); None for the scale search alone."""
    two_streams: bool = False
    """The steps see the inputs behind the compressed layers and aim at the float model's outputs."""
    lora_rank: int = 0
    """Of adapters beside the layers, for what their codes have lost; 0 for none."""
    tuning: Tuning = field(default_factory=Tuning)

    weighted: bool = field(init=False)
    """Whether the scale search is weighted with E[x²] from data."""
    layer_by_layer: bool = field(init=False)
    """Whether codes are made while the data are there, from full Gram matrices."""
    random_data: bool = field(init=False)
    """Whether the data are tokens drawn at random."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weighted", self.dataset is not None and self.steps is None)
        object.__setattr__(self, "layer_by_layer", self.steps is not None or self.lora_rank > 0)
        object.__setattr__(self, "random_data", isinstance(self.dataset, str) and self.dataset == "random")


def method_of(options: Options, model: Any) -> Method:
    """What the options ask for, on this model.

    Raises:
        OptionError: data is needed, none was given, and none can be made up for this model.
    """
    dataset, accuracy = options.dataset, options.accuracy
    if dataset is None and accuracy is not None:
        dataset = _made_up(accuracy, model)
    elif isinstance(dataset, (str, PathLike)):
        from ov_weight_compression.calibration import opened

        dataset = opened(dataset, model)
    inserts = bool(options.awq)
    if dataset is None:
        return Method(folds=inserts, inserts=inserts, tuning=options.tuning)
    steps = options.algorithm
    if steps is None and (options.gptq or accuracy in BY_LAYERS):
        from ov_weight_compression.quantization.layerwise.layer import BALANCED, BEST

        steps = BEST if accuracy is Accuracy.BEST else BALANCED
    return Method(
        dataset=dataset,
        folds=accuracy is Accuracy.FAST and steps is None if options.awq is None else inserts,
        inserts=inserts,
        steps=steps,
        two_streams=accuracy is Accuracy.BEST,
        lora_rank=options.lora_rank if options.lora_correction else 0,
        tuning=options.tuning,
    )


def _made_up(accuracy: Accuracy, model: Any) -> str | None:
    """The data that are made for a language model."""
    from ov_weight_compression.calibration.model_inputs import read_language_model, with_embeddings

    embedded = with_embeddings(model)
    language = read_language_model(model if embedded is None else embedded.model)
    if language is not None and language.needs_only_ids:
        return "random" if accuracy is Accuracy.FAST else "self"
    if accuracy is Accuracy.FAST:
        return None  # nothing to measure with: the search weighs by what the graph says
    raise OptionError(
        f"dataset: accuracy={accuracy.value} needs one for a model that is no language model; "
        "give a list of its inputs, or use accuracy='fast'"
    )
