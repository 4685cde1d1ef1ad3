"""Judging a compressed model: what its weights are stored as, what a device does with them, and what it costs beside
the model that it was made from."""

from ov_weight_compression.evaluation.comparison import Comparison, compare
from ov_weight_compression.evaluation.inspection import Inspection, inspect
from ov_weight_compression.evaluation.samples import ComparisonProtocol
from ov_weight_compression.passes.verify import Verification, verify

__all__ = ["Comparison", "ComparisonProtocol", "Inspection", "Verification", "compare", "inspect", "verify"]
