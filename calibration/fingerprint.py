"""A model's fingerprint: tells whether statistics on disk belong to the model at hand."""

from __future__ import annotations

import hashlib

import openvino as ov

from ov_weight_compression.ir_utils.constants import FLOAT_TYPES

__all__ = ["fingerprint"]

_SAMPLE = 4096
_SMALLEST = 1024


def fingerprint(model: ov.Model) -> str:
    """A hex digest of the model's larger float constants: type, shape, and 4 KiB from either end, in graph order.

    Names do not count, so that a model and its saved and reloaded copy agree; neither does anything that a reshape of
    the inputs changes. Reading two pages of each constant takes milliseconds on a mapped file of any size.
    """
    digest = hashlib.sha256()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_output_element_type(0).to_string() not in FLOAT_TYPES:
            continue
        shape = tuple(node.get_output_shape(0))
        data = node.get_data() if node.get_byte_size() >= _SMALLEST else None
        if data is None:
            continue
        flat = data.reshape(-1).view("u1")
        digest.update(f"{node.get_output_element_type(0).to_string()}{shape}".encode())
        digest.update(flat[:_SAMPLE].tobytes())
        digest.update(flat[-_SAMPLE:].tobytes())
    return digest.hexdigest()[:32]
