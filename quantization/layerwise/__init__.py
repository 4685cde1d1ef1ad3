"""Weights fitted to calibration data: numbers in (a canonical weight, Gram matrices), stored codes out.

cholesky             factors and systems, block by block
hessian              H of a layer's input, prepared once for all layers that read it; targets over compressed layers
draft                levels and scales half-way between floats and codes
gptq                 one channel at a time, later channels make up for the error
coordinate_descent   sweeps over codes and scales afterwards
layer                a tuple of such steps for one weight
awq                  factors of input channels
lora                 adapters for what codes have lost
"""

from ov_weight_compression.quantization.layerwise.coordinate_descent import CoordinateDescent
from ov_weight_compression.quantization.layerwise.draft import Draft, Grid, Start
from ov_weight_compression.quantization.layerwise.gptq import gptq
from ov_weight_compression.quantization.layerwise.hessian import Hessian, hessian_of, input_correction
from ov_weight_compression.quantization.layerwise.layer import BALANCED, BEST, BestOf, Step, fit_rows

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
