"""What a plan's algorithms have to know before a weight can be encoded: data are run, values read, nothing is edited.

In this order:

    AWQ                first, for everything after it sees the weights with its factors
    fitted codebooks   before the layers' codes, which are indices into them
    layer by layer     GPTQ, coordinate descent, LoRA
    scale search       the importance of channels, for what no other algorithm has encoded
    budget             measured prepared, and chosen again where it has to be
"""

from __future__ import annotations

from dataclasses import replace

from ov_weight_compression.ir_utils.option_kinds import shown
from ov_weight_compression.passes.channel_importance import weigh_channels
from ov_weight_compression.passes.measurements import Measurements
from ov_weight_compression.passes.modes import Mode
from ov_weight_compression.passes.options import Options
from ov_weight_compression.passes.plan import Plan

__all__ = ["prepare_and_check", "prepare_plan"]


def prepare_and_check(plan: Plan, data: Measurements, options: Options) -> Plan:
    """The plan, prepared; what a budget has chosen is measured first, and chosen again where it has to be."""
    if options.budget is None:
        return prepare_plan(plan, data, options)
    from ov_weight_compression.passes.budget_check import with_check

    return with_check(plan, lambda one: prepare_plan(one, data, options), data)


def prepare_plan(plan: Plan, data: Measurements, options: Options) -> Plan:
    """The plan with everything that its algorithms have to know, and with what the caller is to be told of the data."""
    left_out: tuple[str, ...] = ()
    if plan.method.folds:
        from ov_weight_compression.passes.awq_factors import fold_scales

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
    from ov_weight_compression.calibration.sums import LARGEST

    more = f" and of {len(names) - 1} more" if len(names) > 1 else ""
    remark = (
        f"dataset: the model gave values that are not finite, or beyond {LARGEST:.2g}, for the input of "
        f"{shown(names[0])}{more}: the samples that do were left out for it"
    )
    return replace(plan, of_data=(remark,))
