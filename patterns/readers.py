"""Who reads a tensor: the question behind every change that must reach some layers and nothing else."""

from __future__ import annotations

import openvino as ov

__all__ = ["Reader", "is_float", "readers"]

Reader = tuple[ov.Node, int]
"""An operation and the port through which it reads."""


def readers(value: ov.Output) -> list[Reader]:
    """Every reader of a tensor's values, each port once; a ShapeOf reads none."""
    targets = value.get_target_inputs()
    found = [(target.get_node(), int(target.get_index())) for target in targets]
    return [(node, port) for node, port in found if node.get_type_name() != "ShapeOf"]


def is_float(value: ov.Output) -> bool:
    """Whether a tensor holds floating-point numbers (scaling integers would round them)."""
    return bool(value.get_element_type().is_real())
