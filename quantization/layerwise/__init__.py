"""Weights fitted to calibration data: numbers in (a canonical weight, Gram matrices), stored codes out.

hessian   H of a layer's input, prepared once for all layers that read it; targets over compressed layers
gptq      drafts, and the steps that better them: GPTQ, coordinate descent; a tuple of them for one weight
"""

from ov_weight_compression.quantization.layerwise.gptq import (
    BALANCED,
    BEST,
    BestOf,
    CoordinateDescent,
    Draft,
    Grid,
    Start,
    Step,
    fit_rows,
    gptq,
)
from ov_weight_compression.quantization.layerwise.hessian import Hessian, hessian_of, input_correction

__all__ = [
    "BALANCED",
    "BEST",
    "BestOf",
    "CoordinateDescent",
    "Draft",
    "Grid",
    "Hessian",
    "Start",
    "Step",
    "fit_rows",
    "gptq",
    "hessian_of",
    "input_correction",
]
