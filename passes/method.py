"""What is done with data: the algorithms behind NNCF's names and behind the three presets.

    accuracy     with a dataset                                     a language model without one
    fast         AWQ, folded; scale search weighted with E[x²]      the same, on 1,024 random tokens
    balanced     + GPTQ with descent, on the float model's inputs   the same, on text that the model writes itself
    best         + targets of the float model over the compressed   the same, on text that the model writes itself
                 layers before (two streams)

`scale_estimation=True` is the weighted search, `gptq=True` is GPTQ with descent. A dataset alone means the weighted
search too, for there is no reason to measure and not to use it. `lora_correction=True` adds adapters to whichever of
these is chosen. `awq=True` goes with all of them and may insert a Multiply behind an activation function where nothing
takes the factors, which `fast` never does; `awq=False` is `fast` without. GPTQ makes up for most of what AWQ brings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.passes.modes import Accuracy

if TYPE_CHECKING:
    from ov_weight_compression.quantization.layerwise.layer import Step

__all__ = ["Method", "method_of"]


@dataclass(frozen=True)
class Method:
    """What a run does with activations."""

    folded: bool = False
    """Scale input channels as far as norms and producing weights take the factors (AWQ)."""
    weighted: bool = False
    """Weigh the scale search with E[x²]."""
    gptq: bool = False
    two_streams: bool = False
    """GPTQ sees the inputs behind the compressed layers and aims at the float model's outputs."""
    lora: bool = False
    """Adapters beside the layers, for what their codes have lost."""
    dataset: Any = None
    """What the caller gave, or "random" or "self"."""

    @property
    def layer_by_layer(self) -> bool:
        """Whether codes are made while the data are there, from full Gram matrices."""
        return self.gptq or self.lora

    @property
    def steps(self) -> tuple[Step, ...] | None:
        """What is done with each layer's weight; None for the weighted search alone."""
        from ov_weight_compression.quantization.layerwise.layer import BALANCED, BEST

        if not self.gptq:
            return None
        return BEST if self.two_streams else BALANCED


def method_of(
    accuracy: Accuracy | None,
    dataset: Any,
    scale_estimation: bool,
    gptq: bool,
    is_language_model: bool,
    lora: bool = False,
) -> Method:
    """Put the options together.

    Raises:
        OptionError: data is needed, none was given, and none can be made up for this model.
    """
    named = scale_estimation or gptq or lora
    wanted = accuracy is not None or named or dataset is not None
    if not wanted:
        return Method()
    if dataset is None:
        dataset = _made_up(accuracy, named, is_language_model)
        if dataset is None:
            return Method()
    deep = accuracy in (Accuracy.BALANCED, Accuracy.BEST)
    gptq = gptq or deep
    folded = accuracy is Accuracy.FAST and not gptq
    return Method(folded, True, gptq, accuracy is Accuracy.BEST, lora, dataset)


def _made_up(accuracy: Accuracy | None, named: bool, is_language_model: bool) -> str | None:
    if named:
        raise OptionError(
            "dataset: scale_estimation, gptq and lora_correction need one; "
            "give model inputs, or 'random' or 'self' for a language model"
        )
    if is_language_model:
        return "random" if accuracy is Accuracy.FAST else "self"
    if accuracy is Accuracy.FAST:
        return None  # nothing to measure with: the search weighs by what the graph says
    assert accuracy is not None
    raise OptionError(
        f"dataset: accuracy={accuracy.value} needs one for a model that is no language model; "
        "give a list of its inputs, or use accuracy='fast'"
    )
