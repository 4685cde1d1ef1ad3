"""The formats' arithmetic as small compiled OpenVINO models, equal to the numpy reference bit for bit."""

from ov_weight_compression.quantization.kernels.graph import Key, build
from ov_weight_compression.quantization.kernels.run import Kernel, kept_kernels, kernel_for, row_sums

__all__ = ["Kernel", "Key", "build", "kept_kernels", "kernel_for", "row_sums"]
