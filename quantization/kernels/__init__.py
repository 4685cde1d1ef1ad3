"""The formats' arithmetic as small compiled OpenVINO models, equal to the numpy reference bit for bit."""

from ov_weight_compression.quantization.kernels.build import Key, build
from ov_weight_compression.quantization.kernels.codes import flip_mask
from ov_weight_compression.quantization.kernels.run import Kernel, kept_kernels, kernel_for

__all__ = ["Kernel", "Key", "build", "flip_mask", "kept_kernels", "kernel_for"]
