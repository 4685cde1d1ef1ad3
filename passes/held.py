"""Small constants of a lazily compressed model, held in memory instead of in the mapped file.

`ov.save_model` over the file that a model was read from empties that file before it writes. A weight's maker sees that
and raises, but OpenVINO reads other constants through the mapping itself, and that ends the process. Held in memory
they do no harm; large ones that are not compressed stay where they are, so a model that has such a one before its first
compressed weight can still end so.
"""

from __future__ import annotations

from typing import Any

import openvino as ov

from ov_weight_compression.ir_utils.file_mappings import FileMappings
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed

__all__ = ["hold_small_constants"]

_SMALL_BYTES = 64 << 10
_ABOUT_THE_FILE = {"WeightlessCacheAttribute_0"}
"""What OpenVINO's reader notes of a constant: where in the file it lies."""


def hold_small_constants(model: Any) -> None:
    """Put copies in place of small constants whose memory is a file's, bodies included."""
    mappings = FileMappings()
    for graph in graphs_of(model):
        for constant, kind in graph.constants:
            if kind == "string" or is_postponed(constant) or not 0 < constant.get_byte_size() <= _SMALL_BYTES:
                continue
            tensor = constant.get_tensor_view()
            if not mappings.holds(tensor.data) or set(constant.get_rt_info()) - _ABOUT_THE_FILE:
                continue
            copy = ov.Tensor(tensor.element_type, tensor.shape)
            tensor.copy_to(copy)
            held = ov.op.Constant(copy)
            held.set_friendly_name(constant.get_friendly_name())
            constant.output(0).replace(held.output(0))
