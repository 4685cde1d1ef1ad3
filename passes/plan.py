"""What will be done with each weight of a model, as data: nothing of it changes what the model holds.

A `Plan` is made by `planning.make_plan`; the functions of AWQ (`awq`), of `fitted_codebooks`, of GPTQ and LoRA
(`layer_by_layer`) and of the scale search (`channel_importance`) take a plan and return one that knows more. Once they
have run, everything that computing and storing the weights takes is in it, and the graph is no longer asked.

A `Method` says what is done with data: the algorithms behind NNCF's names and behind the three presets.

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

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from enum import Enum
from os import PathLike
from typing import TYPE_CHECKING, Any

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.ir_utils.types import F16_MAX
from ov_weight_compression.ir_utils.weight_source import Layout
from ov_weight_compression.ir_utils.worker_pool import Part
from ov_weight_compression.passes.budget_outcome import BudgetOutcome
from ov_weight_compression.passes.device_rules import EXECUTED, GATHER
from ov_weight_compression.passes.option_values import Accuracy
from ov_weight_compression.passes.scale_folding import Folding
from ov_weight_compression.patterns import Kind, Skip, Sources, Weight
from ov_weight_compression.quantization.formats import PER_CHANNEL, Format, Spec

if TYPE_CHECKING:
    from ov_weight_compression.passes.budget import Survey
    from ov_weight_compression.passes.channel_importance import Importance
    from ov_weight_compression.passes.encoding import StoredRows
    from ov_weight_compression.passes.lora import StoredAdapters
    from ov_weight_compression.passes.options import Options
    from ov_weight_compression.quantization.gptq import Step


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

    weighted: bool = False
    """Whether the scale search is weighted with E[x²] from data."""
    layer_by_layer: bool = False
    """Whether codes are made while the data are there, from full Gram matrices."""


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
        from ov_weight_compression.quantization.gptq import BALANCED, BEST

        steps = BEST if accuracy is Accuracy.BEST else BALANCED
    return Method(
        dataset=dataset,
        folds=accuracy is Accuracy.FAST and steps is None if options.awq is None else inserts,
        inserts=inserts,
        steps=steps,
        two_streams=accuracy is Accuracy.BEST,
        lora_rank=options.lora_rank if options.lora_correction else 0,
        tuning=options.tuning,
        weighted=steps is None,
        layer_by_layer=steps is not None or options.lora_correction,
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


_F16_NORMAL = 2.0**-14
_F16_COARSE = 2.0**-21
"""Below it an f16 scale is a subnormal with a relative error of up to 2⁻⁴, half a step of 4 bits; with every further
bit of the codes it has to be twice as exact."""


class DecidedBy(Enum):
    """What has decided over a weight's format."""

    MODE = "mode"
    RULE = "rule"
    RATIO = "ratio"
    BACKUP = "backup mode"
    """It is an embedding, the last layer, or a convolution."""
    FALLBACK = "fallback"
    """The group size, or the format, does not fit it."""
    DEVICE = "device"
    BUDGET = "budget"


class Algorithm(Enum):
    """What is done with a weight's values, beside rounding them."""

    SCALE_SEARCH = "scale search"
    AWQ = "AWQ"
    CODEBOOK_FIT = "codebook fit"
    LAYERWISE = "layerwise steps"
    """GPTQ and coordinate descent, or whatever steps the method has."""
    LORA = "LoRA correction"


class Statistic(Enum):
    """What an algorithm wants to know of a layer's input."""

    ENERGY = "E[x²] of every channel"
    GRAM = "Gram matrix"


@dataclass(frozen=True)
class FormatRequest:
    """A format and a group for a weight: as they are asked for, and then as they fit it."""

    format: Format
    group: int
    reason: str = ""
    """Why it is not simply the mode that was asked for."""
    decided_by: tuple[DecidedBy, ...] = ()
    """What decided, in turn."""
    regrouped: bool = False
    """In place of a group size that the caller named and CPUs would misread."""

    def instead(self, format: Format, group: int, reason: str, decider: DecidedBy) -> FormatRequest:
        """Others in their place, with one more reason."""
        return FormatRequest(format, group, joined_reasons(self.reason, reason), (*self.decided_by, decider))


@dataclass(frozen=True)
class PlannedWeight:
    """A weight and how it will be stored."""

    weight: Weight
    spec: Spec
    absmax: float
    reason: str
    """Why it is not simply the mode that was asked for; empty where it is."""
    decided_by: tuple[DecidedBy, ...] = ()
    algorithms: tuple[Algorithm, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    """What the algorithms want of the data."""
    kept_from_codes: bool = False
    """CPUs would misread its codes: it is stored in a chain that they expand."""
    regrouped: bool = False
    """CPUs would misread it in groups of the size that the caller named: it has another."""
    tells: bool = False
    """By this weight OpenVINO recognises that the model is compressed (see `rewrite`)."""
    scales_in_f32: bool = False
    """Its f16 scales are stored as f32: the same numbers, and the same codes."""
    exact: bool = False
    """Its codes were not made here, for scales as the chain rounds them to f16, so the chain must not round them."""
    stored: StoredRows | None = None
    """Its codes, where they have been computed already."""

    stored_scale_type: str = field(init=False)
    """OpenVINO's name of the type that its scales are stored in."""
    expanded: bool = field(init=False)
    """Whether the CPU plugin folds its chain because of a layer that reads it."""
    has_unit_factor: bool = field(init=False)
    """Whether what keeps CPUs from the codes is a constant one; with a tensor's scale it is that."""
    is_low_bit: bool = field(init=False)
    """Whether it is stored in 4 bits or fewer (or as a codebook's indices): what is worth calibrating for."""
    beyond_f16: bool = field(init=False)
    """See `is_beyond_f16`."""
    nbytes: int = field(init=False)
    """What it will cost: bytes of its constants in the .bin file."""

    def __post_init__(self) -> None:
        format, kinds = self.spec.format, [consumer.role.kind for consumer in self.weight.consumers]
        # In groups the chain ends in a Reshape, which the CPU plugin of OpenVINO 2026.4 looks through in front of a
        # Gather only where the table has two dimensions: left unfolded, others are expanded at every inference.
        behind_reshape = self.spec.group_size != PER_CHANNEL and len(self.weight.shape) > 2
        gathered_in_floats = format.storage not in EXECUTED["CPU"][GATHER] or behind_reshape
        scale_type = "f32" if self.scales_in_f32 else self.spec.scale_type
        has_unit_factor = self.kept_from_codes and not format.tensor_scale
        parts = stored_parts(self.weight.layout, self.spec, scale_type)
        follows = {
            "stored_scale_type": scale_type,
            "expanded": gathered_in_floats if Kind.GATHER in kinds else Kind.CONVOLUTION in kinds,
            "has_unit_factor": has_unit_factor,
            "is_low_bit": format.default_search > 0,
            "beyond_f16": (self.exact and format.tensor_scale) or is_beyond_f16(format, self.absmax),
            "nbytes": sum(part.nbytes for part in parts.values()) + (4 if has_unit_factor else 0),
        }
        for name, value in follows.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Plan:
    """All that will be done with a model's weights."""

    weights: tuple[PlannedWeight, ...]
    skips: tuple[Skip, ...] = ()
    nonfinite: tuple[Skip, ...] = ()
    """Those of the skips whose values are not all finite: most likely a broken file, so the caller is warned."""
    sources: Sources = field(default_factory=lambda: Sources({}))
    """The weights as they are to be quantised; of those that are `stored` nothing is read."""
    method: Method = field(default_factory=Method)
    importance: Mapping[str, Importance] = field(default_factory=dict)
    """What an error in each input channel costs, by the weight's name, where a search or a fit goes by it."""
    folding: Folding = field(default_factory=Folding)
    """AWQ's factors, and what has to take them."""
    equal: tuple[tuple[int, ...], ...] = ()
    """The places of weights that are stored as the same bytes, each by itself where it has no equal; every weight has
    one once `rewrite.as_stored` has seen the plan."""
    budget: BudgetOutcome | None = None
    """What a budget has decided, and why."""
    survey: Survey | None = None
    """What it was chosen from."""
    adapters: Mapping[str, StoredAdapters | None] | None = None
    """LoRA's, by the weight's name, None where there is nothing to correct; None before the data have been seen."""
    of_data: tuple[str, ...] = ()
    """What the caller is warned of once data have been run."""
    unmet: tuple[str, ...] = ()
    """What was asked of a budget and not reached."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the caller is warned of, a line each."""
        regrouped = [planned for planned in self.weights if planned.regrouped]
        texts = []
        if self.nonfinite:
            first = self.nonfinite[0]
            texts.append(f"{shown(first.name)} was left as it is: it holds {first.reason}{_others(self.nonfinite)}")
        if regrouped:
            name, reason = shown(regrouped[0].weight.name), regrouped[0].reason
            texts.append(f"{name} does not have the group_size that was asked for: {reason}{_others(regrouped)}")
        return (*texts, *self.of_data, *self.unmet)


def is_beyond_f16(format: Format, absmax: float) -> bool:
    """Whether f16 cannot hold values of this size, a level or a power of two above included, or their scales."""
    coarse = min(_F16_NORMAL, _F16_COARSE * 2.0 ** max(0, format.bits - 4))
    return absmax > 0 and (absmax < coarse * format.top or 2 * absmax > F16_MAX)


def stored_parts(layout: Layout, spec: Spec, scale_type: str | None = None) -> dict[str, Part]:
    """What a weight of this layout is stored as, by the part's name; scales in another type where one is given."""
    stored, group = spec.format, spec.group_size
    codes, scales = layout.in_groups(group)
    parts = {"codes": Part(stored.storage, codes)}
    if stored.zero_point == "group":
        parts["zero_point"] = Part(stored.zero_type or stored.storage, scales)
    elif stored.zero_point == "scalar":
        parts["zero_point"] = Part("i8", ())
    parts["scale"] = Part(scale_type or spec.scale_type, scales)
    if stored.tensor_scale:
        parts["tensor_scale"] = Part("f32", ())
    table = stored.table
    if table is not None and stored.codebook_type is not None:
        parts["table"] = Part(stored.codebook_type, (table.size,))
    return parts


def joined_reasons(first: str, second: str) -> str:
    """Two reasons in one."""
    return f"{first}; {second}" if first else second


def _others(found: Sized) -> str:
    more = len(found) - 1
    return f", and {more} more {'weight' if more == 1 else 'weights'} likewise" if more else ""
