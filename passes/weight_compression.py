"""The pass, and the function: what a user calls.

    find the weights ─ plan what each gets ─ prepare the plan ─ report ─ edit the graph

Preparing a plan finds out what its algorithms have to know before a weight can be encoded: data are run, values read,
nothing is edited. In this order:

    AWQ                first, for everything after it sees the weights with its factors
    fitted codebooks   before the layers' codes, which are indices into them
    layer by layer     GPTQ, coordinate descent, LoRA
    scale search       the importance of channels, for what no other algorithm has encoded
    budget             measured prepared, and chosen again where it has to be
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import openvino as ov
from numpy.typing import NDArray
from openvino.passes import ModelPass

import ov_weight_compression
from ov_weight_compression.ir_utils.errors import OptionError, WorkError, warn_caller
from ov_weight_compression.ir_utils.option_kinds import by_name, check_model, shown
from ov_weight_compression.ir_utils.worker_pool import Encoding, Pipeline
from ov_weight_compression.passes.channel_importance import weigh_channels
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.option_values import (
    Accuracy,
    BackupMode,
    Codebook,
    CodebookSharing,
    Device,
    Devices,
    FragileLayers,
    GroupSizeFallback,
    Mode,
    SensitivityMetric,
)
from ov_weight_compression.passes.options import OPTIONS, Options, read_options
from ov_weight_compression.passes.plan import Plan, method_of
from ov_weight_compression.passes.planning import make_plan
from ov_weight_compression.passes.report import REPORTS, Report, make_report
from ov_weight_compression.passes.rewrite import as_stored, hold_small_constants, rewrite
from ov_weight_compression.passes.rules import RulesLike
from ov_weight_compression.passes.runtime_hints import write_runtime_hints
from ov_weight_compression.patterns import GivenSources, Roles, find_weights, sources_of
from ov_weight_compression.patterns.compressed import OWN_SECTION, read_metadata, write_metadata
from ov_weight_compression.quantization.encode import kept_kernels

if TYPE_CHECKING:
    from ov_weight_compression.quantization.gptq import Step


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
        fragile_layers: what routers of experts and gates of recurrences get, whatever their names: `"backup"` (default)
            the backup mode, with `all_layers` too; `"float"` leaves them alone, `"mode"` takes them like any other.
        sensitivity_metric: which weights keep the backup mode where `ratio` is below 1.
        group_size_fallback: for weights that the group size does not divide: `"adjust"` (default) takes the largest
            power of two that does, else 8 bits per channel; `"ignore"` leaves them alone; `"error"` raises.
        min_adjusted_group_size: the smallest group that `"adjust"` takes, 16.
        rules: what particular weights get, by name; see `ov_weight_compression.passes.rules`.
        target_bits: choose each weight's format, so that the compressed weights take so many bits an element on
            average, scales and zero points counted, and predictions change as little as they can. At most one of the
            three targets is given, and `mode` and what belongs to it is left out then; rules and ignored scope still
            win, and their bytes are counted. See `ov_weight_compression.passes.budget`.
        target_size: the same for the size of the .bin that `save_model` writes, everything in it counted: a number of
            bytes, or a text such as `"3.5GB"`.
        target_divergence: the same for the smallest model whose predictions are no farther from the original's than
            this: mean KL in nats for a language model, else the relative L2 of the outputs.
        formats: what a target chooses from, such as `["int4_sym:64", ("nf4", 32), "int8_asym"]`; by default what the
            device executes from codes, in 8 and 4 bits, and in 2 bits where the bytes cannot be met without.
        max_slowdown: keeps formats out that take longer than so many times the fastest of as many bits, for one row;
            1.25, None for no limit.
        format_times: a table of such times for your own machine, made by `python -m benchmarks.format_times`.
        tie_inputs: give layers that read the same input one format, so that a device can fuse them.
        roles: what operations of your own make of their weights, by type name and port, such as
            `{("MyLinear", 1): Role(channel=(0,), reduction=(1,), activation=Activation(port=0))}`; see
            `ov_weight_compression.patterns.roles`.
        scale_search: `"auto"` (default) looks for better scales than absmax and min–max in formats of 4 bits and fewer;
            `"off"` does not; a number says how many candidates.
        dataset: model inputs (dicts by input's name, tuples in the inputs' order, or arrays of a single input), token
            ids `[n]` or `[windows, n]`, a file of text or arrays, a folder of recorded inputs, NNCF's Dataset, or for
            a language model `"random"` or `"self"`; see `ov_weight_compression.calibration`.
        accuracy: `"fast"`, `"balanced"` or `"best"`; see `ov_weight_compression.passes.plan`.
        scale_estimation: the scale search weighted with E[x²] of each input channel, as the data shows it.
        gptq: codes by GPTQ (Frantar et al., 2210.17323), with coordinate descent on codes and scales after it.
        algorithm: the steps that make each layer's codes, in place of GPTQ's own: functions `(target, draft, hessian,
            grid) → draft`, as `quantization.gptq.gptq` is one; needs a dataset.
        awq: scale input channels so that important ones lose less (AWQ, Lin et al., 2306.00978); folded into norms and
            producing weights. By default only where `accuracy="fast"` has data.
        lora_correction: add two thin layers beside every MatMul with a weight of 4 bits or fewer, A `[rank, in]` and
            B `[out, rank]` of 8 bits, which carry what rounding lost; needs a dataset, costs bytes and time when run.
        lora_rank: how thin: the channels between the two, 8.
        subset_size: how many windows of the dataset are used, 128.
        context_length: tokens in a window, 256.
        statistics_path: folder to keep statistics in, and to read them from if they are there.
        calibration_memory: bytes that calibration may hold; 2 GiB.
        codebook: the table of `mode="codebook"`, 2 to 65536 values; `adaptive_codebook` begins with it where one is
            given. `Codebook(…)` says the next three too.
        codebook_type: what a table is stored in: `"f8e4m3"`, `"f16"`, `"f32"`, `"i8"` or `"u8"`; by default that of the
            array or tensor that it is, for a list and for tables that are fitted (not in u8) f8e4m3.
        codebook_size: entries of the tables of `mode="adaptive_codebook"`: the codebook's, or 16; 2 to 65536.
        codebook_sharing: which weights share one of them: `"none"` (default), those of a `"block"`, or the same layer
            `"across_blocks"`; see `fitted_codebooks`.
        device: choose formats that this device executes compressed: `"CPU"`, `"GPU"` or `"NPU"`; with several
            (`"CPU,GPU"` or a list), or `"AUTO"` for all, those that each of them takes.
        runtime_hints: what a device is to do at inference, such as `{"KV_CACHE_PRECISION": "u8"}`: written into the
            model beside those that it has; see `ov_weight_compression.passes.runtime_hints`.
        lazy: False computes everything now and inserts plain constants.
        verify: with `lazy=False`, run one compressed layer of each kind on the device (the CPU where none is named) and
            compare it with its stored weights; a difference that its arithmetic does not explain is an error.
        executor: where a budget's probes run, and GPTQ codes layers: any `concurrent.futures.Executor`, of processes or
            of a cluster too if its workers see this machine's temporary folder (`TMPDIR`); this process by default.
        threads: threads to compute with; by default OMP_NUM_THREADS or the processors there are.
        quiet: False shows a progress bar while calibrating.
        compression_format: NNCF's; only `"dequantize"` is written.
        advanced_parameters: NNCF's object; what has a counterpart here is taken, anything else is refused. See
            `ov_weight_compression.passes.compat`.
        sources: where weights' values come from if not from the model, whose constants only keep their places then: a
            mapping from the names of weights to `ir_utils.weight_source.WeightSource`s, or a function from a
            `patterns.Weight` to one or None. What is left alone keeps the model's constant.
        recipe: a file that says the options, as `ov-compress plan --save-recipe` writes one; what is given here comes
            first.

    Attributes:
        report: what was done to every constant and why (`Report`), after the pass has run.

    Raises:
        OptionError: an unknown option, an impossible value, or options that contradict each other; running it, an
            ignored scope, a rule or a source that matches nothing in the model, or data that the model does not take.
        WorkError: running it, with `lazy=False`: a weight could not be computed, or `verify` has found one wrong.

    Warns:
        CompressionWarning: what was done, but perhaps not as expected; `Report.warnings` has it too.
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
        fragile_layers: FragileLayers | str = FragileLayers.BACKUP,
        sensitivity_metric: SensitivityMetric | str | None = None,
        group_size_fallback: GroupSizeFallback | str | None = None,
        min_adjusted_group_size: int = 16,
        rules: RulesLike = (),
        target_bits: float | None = None,
        target_size: int | str | None = None,
        target_divergence: float | None = None,
        formats: Sequence[str | tuple[str, int]] | None = None,
        max_slowdown: float | None = 1.25,
        format_times: str | PathLike[str] | None = None,
        tie_inputs: bool = False,
        roles: Roles | None = None,
        scale_search: str | int = "auto",
        dataset: Any = None,
        accuracy: Accuracy | str | None = None,
        scale_estimation: bool = False,
        gptq: bool = False,
        algorithm: Sequence[Step] | None = None,
        awq: bool | None = None,
        lora_correction: bool = False,
        lora_rank: int = 8,
        subset_size: int | None = None,
        context_length: int | None = None,
        statistics_path: str | PathLike[str] | None = None,
        calibration_memory: int | None = None,
        codebook: Sequence[float] | NDArray[Any] | Codebook | None = None,
        codebook_type: str | None = None,
        codebook_size: int | None = None,
        codebook_sharing: CodebookSharing | str = CodebookSharing.NONE,
        device: Device | str | Sequence[str] = (),
        runtime_hints: Mapping[str, Any] | None = None,
        lazy: bool = True,
        verify: bool = False,
        executor: Executor | None = None,
        threads: int | None = None,
        quiet: bool = True,
        compression_format: str = "dequantize",
        advanced_parameters: Any = None,
        sources: GivenSources | None = None,
        recipe: str | PathLike[str] | None = None,
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

    def on_weight_finished(self, callback: Callable[[Encoding], None]) -> None:
        """Call `callback` whenever a weight of the rewritten model has been computed, in whichever thread did it."""
        if self._pipeline is not None:
            self._pipeline.on_finished = callback

    def preview(self, model: Any) -> Report:
        """The report that running the pass on `model` would leave, exact in its sizes; the model is not changed.

        What a target of bytes chooses is only predicted here: running the pass measures it beside a uniform format.
        """
        options = self.options
        with kept_kernels():
            plan, data = self._planned(model)
            if options.target_divergence is not None:
                plan = prepare_plan(plan, data, options)
            warn_caller(plan.remarks)
            return make_report(as_stored(plan), options.as_recipe(), options.device)

    def run_on_model(self, model: Any) -> bool:
        """Rewrite `model` in place; whether anything changed."""
        options = self.options
        with kept_kernels():
            plan, data = self._planned(model)
            plan = as_stored(prepare_plan(plan, data, options))
            report = make_report(plan, options.as_recipe() | data.recipe, options.device)
            warn_caller(report.warnings)  # the last that may be an error, by a filter: the model is edited from here on
            # Chains are first, for with `lazy=False` they are computed before the first edit; adapters read what their
            # layer reads, behind a Multiply that a fold inserts.
            pipeline = Pipeline(threads=options.threads, held=kept_kernels)
            rewrite(plan, pipeline, options.lazy)
            for fold in plan.folding.folds:
                fold.apply()
            if plan.adapters:
                from ov_weight_compression.passes.lora import attach_adapters

                attach_adapters(model, plan, options.threads, options.lazy)
            if plan.weights and options.lazy:
                hold_small_constants(model)
            self._pipeline, self._report = pipeline, report
            _log(report)
            if plan.weights:
                version = ov_weight_compression.__version__
                own = {**report.recipe, "version": version, "openvino_version": ov.get_version()}
                write_metadata(model, own, options.nncf_recipe(), version)
            if options.runtime_hints:
                write_runtime_hints(model, options.runtime_hints)
            if options.verify:
                _verify(model, options.device, options.roles)
            return bool(plan.weights or options.runtime_hints)

    def _planned(self, model: Any) -> tuple[Plan, Measurements]:
        """What every weight gets, and the data that will say more; values are looked at, none is computed."""
        options = self.options
        weights, skips = find_weights(model, options.ignored_scope, options.roles)
        data = Measurements(model, weights, sources_of(weights, options.sources), method_of(options, model), options)
        said = read_metadata(model).get(OWN_SECTION) if options.ratio < 1 else None
        again = isinstance(said, dict) and all(str(said.get(one)) == own for one, own in options.as_recipe().items())
        return make_plan(weights, skips, options, data, shared_out=again), data


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
    fragile_layers: FragileLayers | str = FragileLayers.BACKUP,
    sensitivity_metric: SensitivityMetric | str | None = None,
    group_size_fallback: GroupSizeFallback | str | None = None,
    min_adjusted_group_size: int = 16,
    rules: RulesLike = (),
    target_bits: float | None = None,
    target_size: int | str | None = None,
    target_divergence: float | None = None,
    formats: Sequence[str | tuple[str, int]] | None = None,
    max_slowdown: float | None = 1.25,
    format_times: str | PathLike[str] | None = None,
    tie_inputs: bool = False,
    roles: Roles | None = None,
    scale_search: str | int = "auto",
    dataset: Any = None,
    accuracy: Accuracy | str | None = None,
    scale_estimation: bool = False,
    gptq: bool = False,
    algorithm: Sequence[Step] | None = None,
    awq: bool | None = None,
    lora_correction: bool = False,
    lora_rank: int = 8,
    subset_size: int | None = None,
    context_length: int | None = None,
    statistics_path: str | PathLike[str] | None = None,
    calibration_memory: int | None = None,
    codebook: Sequence[float] | NDArray[Any] | Codebook | None = None,
    codebook_type: str | None = None,
    codebook_size: int | None = None,
    codebook_sharing: CodebookSharing | str = CodebookSharing.NONE,
    device: Device | str | Sequence[str] = (),
    runtime_hints: Mapping[str, Any] | None = None,
    lazy: bool = True,
    verify: bool = False,
    executor: Executor | None = None,
    threads: int | None = None,
    quiet: bool = True,
    compression_format: str = "dequantize",
    advanced_parameters: Any = None,
    sources: GivenSources | None = None,
    recipe: str | PathLike[str] | None = None,
) -> ov.Model:
    """Compress the weights of a model in place, and return it; `model.clone()` first keeps the original.

    Takes the options of `WeightCompression`, which are explained there. `report_of(model)` says what was done.

        save_model(apply_weight_compression(model, mode="int4_sym"), "model.xml")

    Raises:
        OptionError: as `WeightCompression` does, and where an ignored scope or a rule matches nothing.
        WorkError: a weight could not be computed (with `lazy=False`; otherwise when saving or compiling does it).
    """
    given = {name: value for name, value in locals().items() if name in OPTIONS}
    check_model(model)
    compression = WeightCompression(**given)
    compression.run_on_model(model)
    REPORTS[model] = compression.report
    return model


def prepare_plan(plan: Plan, data: Measurements, options: Options, *, checked: bool = False) -> Plan:
    """The plan with everything that its algorithms have to know, and with what the caller is to be told of the data.

    What a budget has chosen is measured first, and chosen again where it has to be, unless it is `checked` already.
    """
    if options.budget is not None and not checked:
        from ov_weight_compression.passes.budget_check import with_check

        return with_check(plan, lambda one, shown: prepare_plan(one, shown, options, checked=True), data)
    left_out: tuple[str, ...] = ()
    if plan.method.folds:
        from ov_weight_compression.passes.awq import fold_scales

        plan = fold_scales(plan, data, options.threads)
    if Mode.ADAPTIVE_CODEBOOK in options.modes:
        from ov_weight_compression.passes.fitted_codebooks import fit_codebooks

        plan = fit_codebooks(plan, options, data)
    if plan.method.layer_by_layer:
        from ov_weight_compression.passes.layer_by_layer import encode_layer_by_layer

        plan, left_out = encode_layer_by_layer(plan, data)
    elif plan.method.weighted and plan.weights:
        # Even where no search asks: data that the model does not take are refused, and `statistics_path` is written.
        data.statistics(plan.method.tuning.scale_estimation_subset)
    plan = weigh_channels(plan, data)
    names = tuple(dict.fromkeys((*data.left_out, *left_out)))
    if not names:
        return replace(plan, of_data=())
    from ov_weight_compression.calibration.grams import LARGEST

    more = f" and of {len(names) - 1} more" if len(names) > 1 else ""
    remark = (
        f"dataset: the model gave values that are not finite, or beyond {LARGEST:.2g}, for the input of "
        f"{shown(names[0])}{more}: the samples that do were left out for it"
    )
    return replace(plan, of_data=(remark,))


def _log(report: Report) -> None:
    """Tell the logger `ov_weight_compression` what was done: in short, and weight by weight."""
    logger = logging.getLogger("ov_weight_compression")
    if not logger.isEnabledFor(logging.INFO):
        return
    sizes = f"{report.bytes_before} bytes to {report.bytes_after}"
    logger.info("%d weights compressed (%s), %d left alone", len(report.rows), sizes, len(report.skips))
    for row in report.rows:
        logger.debug("%s: %s, group %d%s", row.name, row.mode, row.group_size, f" ({row.reason})" if row.reason else "")
    for skip in report.skips:
        logger.debug("%s: left alone: %s", skip.name, skip.reason)


def _verify(model: ov.Model, devices: Devices, roles: Roles | None) -> None:
    from ov_weight_compression.passes.verify import verify

    found = verify(model, devices[0].value if len(devices) == 1 else "CPU", roles=roles)
    if not found.ok:
        more = f" (and {len(found.wrong) - 1} more)" if len(found.wrong) > 1 else ""
        raise WorkError(f"verify: {found.device} does not compute what the weights say: {found.wrong[0]}{more}")
