"""Judging a compressed model: what it costs beside the model that it was made from."""

from ov_weight_compression.evaluation.compare import compare
from ov_weight_compression.evaluation.comparison import Comparison

__all__ = ["Comparison", "compare"]
