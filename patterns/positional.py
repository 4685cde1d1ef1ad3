"""Telling a MatMul that makes angles from one that is a layer.

Rotary embeddings multiply positions by a constant of inverse frequencies, `[1, n, 1] @ [batch, 1, length]`, and feed
the product to Sin and to Cos; random Fourier features (Segment Anything) do the same with a matrix. The constant looks
like a weight, but an angle of a thousand radians forgives no rounding of its frequency.

    MatMul ─ (Transpose, Concat, Multiply, …) ─┬─ Sin
                                               └─ Cos

A network that uses Sin alone as its activation does not match.
"""

from __future__ import annotations

import openvino as ov

__all__ = ["makes_positions"]

_PASSED = frozenset({"Transpose", "Concat", "Multiply", "Convert", "Reshape", "Unsqueeze", "Squeeze"})
_DEPTH = 5


def makes_positions(node: ov.Node) -> bool:
    """Whether the output of `node` reaches both a Sin and a Cos through nothing but rearranging and scaling."""
    found: set[str] = set()
    front = [node]
    for _ in range(_DEPTH):
        following: list[ov.Node] = []
        for source in front:
            for target in source.output(0).get_target_inputs():
                reader = target.get_node()
                kind = reader.get_type_name()
                if kind in ("Sin", "Cos"):
                    found.add(kind)
                elif kind in _PASSED:
                    following.append(reader)
        if len(found) == 2:
            return True
        if not following:
            return False
        front = following
    return False
