"""The pass, and the function: what a user calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any
from warnings import warn

import openvino as ov
from numpy.typing import NDArray
from openvino.passes import ModelPass

import ov_weight_compression
from ov_weight_compression.ir_utils.errors import CompressionWarning, OptionError, WorkError
from ov_weight_compression.ir_utils.metadata import OWN_SECTION, read_metadata, write_metadata
from ov_weight_compression.ir_utils.option_kinds import check_model, shown
from ov_weight_compression.ir_utils.pipeline import Pipeline
from ov_weight_compression.ir_utils.weight_source import ValueRange
from ov_weight_compression.ir_utils.worker_pool import Job
from ov_weight_compression.passes.calibrate import Calibration
from ov_weight_compression.passes.channel_importance import ChannelImportance
from ov_weight_compression.passes.choice import Choice, Plan
from ov_weight_compression.passes.encode_job import Importance, WeightJob
from ov_weight_compression.passes.held import hold_small_constants
from ov_weight_compression.passes.modes import (
    Accuracy,
    BackupMode,
    CodebookSharing,
    Device,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
)
from ov_weight_compression.passes.noise import noise_of
from ov_weight_compression.passes.options import OPTIONS, Options, by_name, read_options
from ov_weight_compression.passes.plan import make_plan
from ov_weight_compression.passes.report import Report, make_report
from ov_weight_compression.passes.rewrite import equal_weights, rewrite
from ov_weight_compression.passes.rules import RulesLike
from ov_weight_compression.passes.smoothing import Smoothing
from ov_weight_compression.passes.telltale import with_telltale
from ov_weight_compression.patterns import GivenSources, Roles, Weight, find_weights, sources_of
from ov_weight_compression.quantization.kernels import kept_kernels
from ov_weight_compression.quantization.sensitivity import sensitivity

if TYPE_CHECKING:
    from ov_weight_compression.passes.layer_encoder import LayerEncoder
    from ov_weight_compression.passes.lora import Correction

__all__ = ["WeightCompression", "apply_weight_compression"]


class WeightCompression(ModelPass):
    """Compress the weights of a model: a pass for `openvino.passes.Manager`, or to call by itself.

    The pass rewrites the graph at once and computes nothing: the values are computed while the model is saved or
    compiled, one weight at a time. A model that is compressed already is left as it is.

    Args:
        mode: how weights are stored; a `Mode` or its value, `"int8_asym"` by default.
        ratio: share of the parameters that get `mode`, the rest gets `backup_mode`; 0 to 1.
        group_size: weights that share a scale; -1 for one scale a channel. The mode's own by default.
        ignored_scope: what to leave alone: an `IgnoredScope` (NNCF's too), a dict of its fields, or a list of names.
        all_layers: give embeddings and the last layer `mode` as well, not `backup_mode`.
        backup_mode: `"int8_asym"` (default), `"int8_sym"`, `"fp8_e4m3"`, `"mxfp8_e4m3"`, or `"none"`, which leaves
            them alone.
        sensitivity_metric: which weights keep the backup mode where `ratio` is below 1.
        group_size_fallback: for weights that the group size does not divide: `"adjust"` (default) takes the largest
            power of two that does, else 8 bits per channel; `"ignore"` leaves them alone; `"error"` raises.
        min_adjusted_group_size: the smallest group that `"adjust"` takes, 16.
        rules: what particular weights get, by name; see `ov_weight_compression.passes.rules`.
        roles: what operations of your own make of their weights, by type name and port, such as
            `{("MyLinear", 1): Role(channel=(0,), reduction=(1,), activation=Activation(port=0))}`; see
            `ov_weight_compression.patterns.roles`.
        scale_search: `"auto"` (default) looks for better scales than absmax and min–max in formats of 4 bits and fewer;
            `"off"` does not; a number says how many candidates.
        codebook, codebook_type: the table of `mode="codebook"`, 2 to 65536 values, and the type that it is stored in:
            `"f8e4m3"`, `"f16"`, `"f32"`, `"i8"` or `"u8"`; by default that of the array or tensor that it is, for a
            list f8e4m3. `adaptive_codebook` fits a table of that type (f8e4m3 by default, not u8) to each weight, and
            begins with the codebook where one is given.
        codebook_size: entries of the tables of `mode="adaptive_codebook"`: the codebook's, or 16; 2 to 65536.
        codebook_sharing: which weights share one of them: `"none"` (default), those of a `"block"`, or the same layer
            `"across_blocks"`; see `passes.adaptive`.
        lazy: False computes everything now and inserts plain constants.
        verify: with `lazy=False`, run one compressed layer of each kind on the device (the CPU where none is named) and
            compare it with its stored weights; a difference that its arithmetic does not explain is an error.
        threads: threads to compute with; by default OMP_NUM_THREADS or the processors there are.
        device: prefer formats that this device executes compressed.
        dataset: model inputs (dicts, tuples, arrays), token ids, NNCF's Dataset, or for a language model `"random"` or
            `"self"`; see `ov_weight_compression.calibration`.
        subset_size, context_length: how many windows of the dataset are used (128) and, for tokens, how long (256).
        accuracy: `"fast"`, `"balanced"` or `"best"`; see `ov_weight_compression.passes.method`.
        scale_estimation: the scale search weighted with what the data shows.
        gptq: codes by GPTQ, with descent on codes and scales after it.
        statistics_path: folder to keep statistics in, and to read them from if they are there.
        calibration_memory: bytes that calibration may hold; 2 GiB.
        quiet: False shows a progress bar while calibrating.
        awq: scale input channels so that important ones lose less; folded into norms and producing weights. By default
            only where `accuracy="fast"` has data.
        lora_correction: add two thin layers beside every MatMul with a weight of 4 bits or fewer, which carry what
            rounding lost; needs a dataset, costs bytes and time at inference.
        lora_rank: how thin: the channels between the two, 8.
        compression_format: NNCF's; only `"dequantize"` is written.
        advanced_parameters: NNCF's object; what has a counterpart here is taken, anything else is refused. See
            `ov_weight_compression.passes.advanced`.
        sources: where weights' values come from if not from the model, whose constants only keep their places then: a
            mapping from the names of weights to `ir_utils.weight_source.WeightSource`s, or a function from a
            `patterns.Weight` to one or None. What is left alone keeps the model's constant.

    Attributes:
        report: what was done to every constant and why (`Report`), after the pass has run.

    Raises:
        OptionError: an unknown option, an impossible value, or options that contradict each other.
    """

    @by_name
    def __init__(
        self,
        *,
        mode: Mode | str = Mode.INT8_ASYM,
        ratio: float = 1.0,
        group_size: int | None = None,
        ignored_scope: Any = None,
        all_layers: bool = False,
        backup_mode: BackupMode | str = BackupMode.INT8_ASYM,
        sensitivity_metric: SensitivityMetric | str | None = None,
        group_size_fallback: GroupSizeFallback | str | None = None,
        min_adjusted_group_size: int = 16,
        rules: RulesLike = (),
        roles: Roles | None = None,
        scale_search: str | int = "auto",
        dataset: Any = None,
        accuracy: Accuracy | str | None = None,
        scale_estimation: bool = False,
        gptq: bool = False,
        awq: bool | None = None,
        lora_correction: bool = False,
        lora_rank: int = 8,
        subset_size: int | None = None,
        context_length: int | None = None,
        statistics_path: str | PathLike[str] | None = None,
        calibration_memory: int | None = None,
        codebook: Sequence[float] | NDArray[Any] | None = None,
        codebook_type: str | None = None,
        codebook_size: int | None = None,
        codebook_sharing: CodebookSharing | str = CodebookSharing.NONE,
        device: Device | str | None = None,
        lazy: bool = True,
        verify: bool = False,
        threads: int | None = None,
        quiet: bool = True,
        compression_format: str = "dequantize",
        advanced_parameters: Any = None,
        sources: GivenSources | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        super().__init__()
        self.options: Options = read_options(**given)
        self._report: Report | None = None
        self._pipeline: Pipeline | None = None

    @property
    def report(self) -> Report:
        """What was done, after the pass has run.

        Raises:
            OptionError: it has not run yet.
        """
        if self._report is None:
            raise OptionError("report: the pass has not been run on a model yet")
        return self._report

    def on_weight_finished(self, callback: Callable[[Job], None]) -> None:
        """Call `callback` whenever a weight of the rewritten model has been computed, in whichever thread did it."""
        if self._pipeline is not None:
            self._pipeline.on_finished = callback

    def preview(self, model: Any) -> Report:
        """The report that running the pass on `model` would leave, exact in its sizes; the model is not changed."""
        with kept_kernels():
            run, plan = self._decide(model)
            plan = with_telltale(plan)
            equal = equal_weights(plan.choices, [run.job(choice) for choice in plan.choices])
        return make_report(plan, self.options.recipe(), equal, corrections=run.corrections(plan.choices))

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        with kept_kernels():
            run, plan = self._decide(model)
            self._pipeline = run.pipeline
            plan = with_telltale(run.fit_tables(run.smooth(plan)))
            warnings = run.calibrate(plan.choices)
            for text in warnings:
                warn(text, CompressionWarning, stacklevel=2)
            jobs = rewrite(plan.choices, run.job, run.pipeline, self.options.lazy)
            run.smoothing.apply()
            run.attach_adapters(plan.choices)
            recipe = {**self.options.recipe(), **run.recipe()}
            equal = equal_weights(plan.choices, jobs)
            scalings, corrections = run.smoothing.report(), run.corrections(plan.choices)
            self._report = make_report(plan, recipe, equal, scalings, corrections, warnings)
            if jobs and self.options.lazy:
                hold_small_constants(model)
            if jobs:
                _leave_recipe(model, self._report, self.options)
            if self.options.verify:
                _verify(model, self.options.device, self.options.roles)
            return bool(jobs)

    def _decide(self, model: Any) -> tuple[_Run, Plan]:
        weights, skips = find_weights(model, self.options.ignored_scope, self.options.roles)
        run = _Run(model, self.options, weights)
        again = self.options.ratio < 1 and _says_the_same(model, self.options.recipe())
        plan = make_plan(weights, skips, self.options, run.scan, run.sensitivity, shared_out=again)
        for text in plan.remarks:
            warn(text, CompressionWarning, stacklevel=3)
        return run, plan


@by_name
def apply_weight_compression(
    model: ov.Model,
    *,
    mode: Mode | str = Mode.INT8_ASYM,
    ratio: float = 1.0,
    group_size: int | None = None,
    ignored_scope: Any = None,
    all_layers: bool = False,
    backup_mode: BackupMode | str = BackupMode.INT8_ASYM,
    sensitivity_metric: SensitivityMetric | str | None = None,
    group_size_fallback: GroupSizeFallback | str | None = None,
    min_adjusted_group_size: int = 16,
    rules: RulesLike = (),
    roles: Roles | None = None,
    scale_search: str | int = "auto",
    dataset: Any = None,
    accuracy: Accuracy | str | None = None,
    scale_estimation: bool = False,
    gptq: bool = False,
    awq: bool | None = None,
    lora_correction: bool = False,
    lora_rank: int = 8,
    subset_size: int | None = None,
    context_length: int | None = None,
    statistics_path: str | PathLike[str] | None = None,
    calibration_memory: int | None = None,
    codebook: Sequence[float] | NDArray[Any] | None = None,
    codebook_type: str | None = None,
    codebook_size: int | None = None,
    codebook_sharing: CodebookSharing | str = CodebookSharing.NONE,
    device: Device | str | None = None,
    lazy: bool = True,
    verify: bool = False,
    threads: int | None = None,
    quiet: bool = True,
    compression_format: str = "dequantize",
    advanced_parameters: Any = None,
    sources: GivenSources | None = None,
) -> ov.Model:
    """Compress the weights of a model in place, and return it; `model.clone()` first keeps the original.

    Takes the options of `WeightCompression`, which are explained there.

        ov.save_model(apply_weight_compression(model, mode="int4_sym"), "model.xml")

    Raises:
        OptionError: as `WeightCompression` does, and where an ignored scope or a rule matches nothing.
        WorkError: a weight could not be computed (with `lazy=False`; otherwise when saving or compiling does it).
    """
    given = {name: value for name, value in locals().items() if name in OPTIONS}
    check_model(model)
    WeightCompression(**given).run_on_model(model)
    return model


class _Run:
    """One run's readers and pipeline: what turns decisions about weights into work on their values."""

    def __init__(self, model: Any, options: Options, weights: Sequence[Weight]) -> None:
        self._model, self.options = model, options
        self.pipeline = Pipeline(threads=options.threads, held=kept_kernels)
        self._weights = weights
        self._original = sources_of(weights, options.sources)
        self.sources = self._original
        """The weights as they are to be quantised."""
        self._calibration = Calibration(model, weights, options, self._original)
        self._encoded: LayerEncoder | None = None
        self.smoothing = Smoothing()

    def scan(self, weights: Sequence[Weight]) -> Sequence[ValueRange]:
        return self._for_each(lambda weight: self.sources[weight].scan(), weights)

    def sensitivity(self, weights: Sequence[Weight]) -> Sequence[float]:
        metric = self.options.sensitivity_metric
        means = self._calibration.means(weights) if metric.needs_data else [None] * len(weights)
        noises = self._for_each(lambda weight: noise_of(self.sources[weight]), weights)
        return [sensitivity(metric.value, noise, seen) for noise, seen in zip(noises, means, strict=True)]

    def smooth(self, plan: Plan) -> Plan:
        """Choose AWQ's factors where they are asked for: from here on weights are read with them."""
        if not self._calibration.folds:
            return plan
        from ov_weight_compression.passes.awq import choose_folds

        # Made now: later the gains that it goes by have factors folded into them.
        self._graph_importance = ChannelImportance(self._weights, self._original)
        self.smoothing, choices = choose_folds(
            self._model,
            plan.choices,
            self._original,
            self._calibration.scaling_energy,
            self._for_each,
            insert=bool(self.options.awq),
            tuning=self.options.tuning,
        )
        self.sources = self._original.folded(self.smoothing.columns, self.smoothing.rows)
        return replace(plan, choices=tuple(choices))

    def fit_tables(self, plan: Plan) -> Plan:
        """Fit the tables of `adaptive_codebook`, weighted with what the data or the graph say, as the scale search."""
        if not self.options.uses(Mode.ADAPTIVE_CODEBOOK):
            return plan
        from ov_weight_compression.passes.adaptive import with_tables

        plain = self.options.scale_search == "off"
        return with_tables(plan, self.sources, self.options, (lambda weight: None) if plain else self._energy)

    def calibrate(self, choices: Sequence[Choice]) -> tuple[str, ...]:
        """Run what the options want to know from data, before anything is edited; what is to be said about it."""
        self._encoded = self._calibration.encode(choices, self.sources)
        names = (*self._calibration.learn(choices), *(self._encoded.left_out if self._encoded else ()))
        if not names:
            return ()
        from ov_weight_compression.calibration.sums import LARGEST

        more = f" and of {len(names) - 1} more" if len(names) > 1 else ""
        return (
            f"dataset: the model gave values that are not finite, or beyond {LARGEST:.2g}, for the input of "
            f"{shown(names[0])}{more}: the samples that do were left out for it",
        )

    def attach_adapters(self, choices: Sequence[Choice]) -> None:
        """Put the adapters that were fitted beside their layers, as the graph is now."""
        adapters = self._encoded.adapters if self._encoded is not None else {}
        if not adapters:
            return
        from ov_weight_compression.passes.adapters import attach

        pipeline = Pipeline(threads=self.options.threads)
        told = any(choice.tells for choice in choices)
        for choice in choices:
            fitted = adapters.get(choice.weight.name)
            if fitted is not None:
                tells = not told and not choice.weight.body
                attach(choice.weight, fitted, pipeline, self.options.lazy, tells)
                told = told or tells
        if not self.options.lazy:
            pipeline.stop()
        self._model.validate_nodes_and_infer_types()  # an output's names are those of the Add from now on

    def corrections(self, choices: Sequence[Choice]) -> tuple[Correction, ...]:
        """What the report says of adapters: what is planned, or once the data have been seen what was found."""
        if not self.options.lora_correction:
            return ()
        from ov_weight_compression.passes.lora import corrections

        return corrections(choices, self.options.lora_rank, self._encoded.adapters if self._encoded else None)

    def recipe(self) -> dict[str, str]:
        return self._calibration.recipe()

    def job(self, choice: Choice) -> WeightJob:
        """How a weight's constants are computed. All that it takes is read from the graph now."""
        weight, source = choice.weight, self.sources[choice.weight]
        stored = self._encoded.weights.get(weight.name) if self._encoded is not None else None
        searched = stored is None and choice.spec.search
        return WeightJob(
            weight.name,
            source.layout,
            choice.spec,
            choice.absmax,
            source if stored is None else None,
            stored,
            self._importance(weight) if searched else None,
            choice.stored_scale_type,
        )

    def _importance(self, weight: Weight) -> Importance:
        """What an error in each column of the values that are quantised costs."""
        seen, factors = self._seen(weight), self.smoothing.columns.get(weight.name)
        return Importance(seen, self._graph_importance if seen is None else None, weight.name, factors)

    def _energy(self, weight: Weight) -> Any:
        return self._importance(weight).energy()

    def _seen(self, weight: Weight) -> Any:
        """E[x²] of a weight's input; None without data, and for what the layer-by-layer run did not reach."""
        return None if self._encoded is not None else self._calibration.importance(weight)

    @cached_property
    def _graph_importance(self) -> ChannelImportance:
        return ChannelImportance(self._weights, self._original)

    def _for_each(self, function: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
        """The function's results for weights, or groups of them, in threads."""
        if self.options.threads == 1 or len(parts) < 2:
            return [function(part) for part in parts]
        with ThreadPoolExecutor(self.options.threads) as pool:
            return list(pool.map(function, parts))


def _verify(model: ov.Model, device: Device | None, roles: Roles | None) -> None:
    from ov_weight_compression.passes.verify import verify

    found = verify(model, device.value if device is not None else "CPU", roles=roles)
    if not found.ok:
        more = f" (and {len(found.wrong) - 1} more)" if len(found.wrong) > 1 else ""
        raise WorkError(f"verify: {found.device} does not compute what the weights say: {found.wrong[0]}{more}")


def _says_the_same(model: Any, recipe: dict[str, str]) -> bool:
    """Whether a model says that it has been compressed with these options."""
    said = read_metadata(model).get(OWN_SECTION)
    return isinstance(said, dict) and all(str(said.get(name)) == value for name, value in recipe.items())


def _leave_recipe(model: Any, report: Report, options: Options) -> None:
    """Write into the model how it was made, so that a saved IR can say so."""
    version = ov_weight_compression.__version__
    own = {**report.recipe, "version": version, "openvino_version": ov.get_version()}
    write_metadata(model, own, options.nncf_recipe(), version)
