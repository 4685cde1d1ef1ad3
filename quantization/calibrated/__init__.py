"""Weights fitted to calibration data: numbers in (a canonical weight, Gram matrices), stored codes out.

curvature   H of a layer's input, prepared once for all layers that read it
gptq        one channel at a time, later channels make up for the error
descent     sweeps over codes and scales afterwards
targets     what to approximate when the layers before are compressed already
layer       all of it for one weight, best of several starts
"""

from ov_weight_compression.quantization.calibrated.curvature import Curvature, curvature_of
from ov_weight_compression.quantization.calibrated.layer import BALANCED, BEST, GPTQ_ONLY, Effort, fit_rows
from ov_weight_compression.quantization.calibrated.starts import Start
from ov_weight_compression.quantization.calibrated.targets import input_correction

__all__ = [
    "BALANCED",
    "BEST",
    "GPTQ_ONLY",
    "Curvature",
    "Effort",
    "Start",
    "curvature_of",
    "fit_rows",
    "input_correction",
]
