"""Where weights live in a graph: what is a weight, what is none and why, what the caller wants left alone."""

from ov_weight_compression.patterns.find import find_weights
from ov_weight_compression.patterns.ignored import IgnoredScope, Subgraph
from ov_weight_compression.patterns.weight import Consumer, Kind, Skip, Weight

__all__ = ["Consumer", "IgnoredScope", "Kind", "Skip", "Subgraph", "Weight", "find_weights"]
