"""Where weights live in a graph: what is a weight, what is none and why, what the caller wants left alone."""

from ov_weight_compression.patterns.compressed import CompressedWeight, find_compressed
from ov_weight_compression.patterns.find import find_weights
from ov_weight_compression.patterns.ignored_scope import IgnoredScope, Subgraph
from ov_weight_compression.patterns.provenance import NormGain, RowNormProduct, RowNorms, importance_sources
from ov_weight_compression.patterns.roles import Activation, Consumer, Kind, Refusal, Role, Roles, parse_roles
from ov_weight_compression.patterns.weight import GivenSources, Skip, Sources, Weight, given_sources, sources_of

__all__ = [
    "Activation",
    "CompressedWeight",
    "Consumer",
    "GivenSources",
    "IgnoredScope",
    "Kind",
    "NormGain",
    "Refusal",
    "Role",
    "Roles",
    "RowNormProduct",
    "RowNorms",
    "Skip",
    "Sources",
    "Subgraph",
    "Weight",
    "find_compressed",
    "find_weights",
    "given_sources",
    "importance_sources",
    "parse_roles",
    "sources_of",
]
