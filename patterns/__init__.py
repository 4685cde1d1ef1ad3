"""Where weights live in a graph: what is a weight, what is none and why, what the caller wants left alone."""

from ov_weight_compression.patterns.compressed import CompressedWeight, find_compressed
from ov_weight_compression.patterns.find import find_weights
from ov_weight_compression.patterns.ignored import IgnoredScope, Subgraph
from ov_weight_compression.patterns.importance import NormGain, RowNormProduct, RowNorms, importance_sources
from ov_weight_compression.patterns.matching import matching
from ov_weight_compression.patterns.weight import Consumer, Kind, Skip, Weight

__all__ = [
    "CompressedWeight",
    "Consumer",
    "IgnoredScope",
    "Kind",
    "NormGain",
    "RowNormProduct",
    "RowNorms",
    "Skip",
    "Subgraph",
    "Weight",
    "find_compressed",
    "find_weights",
    "importance_sources",
    "matching",
]
