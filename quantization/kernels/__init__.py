"""The formats' arithmetic as small compiled OpenVINO models, equal to the numpy reference bit for bit."""

from ov_weight_compression.quantization.kernels.graph import Key, build, flip_mask
from ov_weight_compression.quantization.kernels.run import Kernel, kept_kernels, kernel_for, repeated, row_sums

__all__ = ["Kernel", "Key", "build", "flip_mask", "kept_kernels", "kernel_for", "repeated", "row_sums"]
