"""Look into a model, whoever compressed it: what every weight is stored as, and what a device does with it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from os import PathLike

import openvino as ov

from ov_weight_compression.evaluation.device import WHOLE_ELEMENTS, DeviceCheck, check_device
from ov_weight_compression.evaluation.format_names import mode_of, zero_point_of
from ov_weight_compression.evaluation.inspection import Inspection, StoredFloat, StoredWeight
from ov_weight_compression.ir_utils import kinds
from ov_weight_compression.ir_utils.ir_file import read_model
from ov_weight_compression.ir_utils.model_folder import the_model_of
from ov_weight_compression.ir_utils.publish import expanded
from ov_weight_compression.ir_utils.recipe import read_recipe
from ov_weight_compression.patterns import CompressedWeight, Skip, Weight, find_compressed, find_weights
from ov_weight_compression.patterns.find import REPORTED_ELEMENTS
from ov_weight_compression.patterns.graphs import bytes_of, graphs_of
from ov_weight_compression.patterns.weight import FLOAT_TYPES

__all__ = ["inspect"]


def inspect(
    model: ov.Model | str | PathLike[str], device: str | None = None, whole_elements: int = WHOLE_ELEMENTS
) -> Inspection:
    """What a model's weights are stored as.

        print(inspect("int4/openvino_model.xml", device="CPU"))

    Args:
        model: an `ov.Model`, which is not changed; an .xml or .onnx file; or a folder with one openvino_*.xml.
        device: look what this device makes of each weight, too; see `check_device`.
        whole_elements: the device compiles the model as a whole if its weights have at most so many elements.

    Raises:
        ModelError: the file cannot be read, or the folder holds no model, or several.
        OptionError: there is no such device.
        WorkError: the device cannot compile a layer of the model.
    """
    device = kinds.optional(kinds.word(), "device", device)
    whole_elements = kinds.count(0).parse("whole_elements", whole_elements)
    if isinstance(model, ov.Model):
        name, read = str(model.get_friendly_name()), model
    else:
        path = expanded("model", kinds.path().parse("model", model))
        path = the_model_of(path) if path.is_dir() else path
        name, read = str(path), read_model(path)
    check = check_device(read, device, whole_elements) if device is not None else None
    return Inspection(
        model=name,
        weights=_weights(find_compressed(read), check),
        floats=_floats(*find_weights(read)),
        constants_bytes=sum(bytes_of(node) for graph in graphs_of(read) for node, _ in graph.constants),
        recipe=read_recipe(read),
        device=_told(check) if check is not None else None,
    )


def _weights(found: Sequence[CompressedWeight], check: DeviceCheck | None) -> tuple[StoredWeight, ...]:
    counted: set[ov.Node] = set()
    rows = []
    for number, one in enumerate(found):
        own = [part for part in one.constants if part not in counted]
        counted.update(own)
        rows.append(
            StoredWeight(
                name=one.name,
                layer=one.consumers[0].name,
                kind=one.kind.value,
                mode=mode_of(one),
                storage=one.storage,
                group_size=one.group_size,
                scale_type=_scales(one),
                zero_point=zero_point_of(one),
                shape=tuple(int(size) for size in one.end.shape),
                elements=one.elements,
                bytes=sum(bytes_of(part) for part in own),
                body=one.body,
                executions=check.executions[number] if check is not None else (),
            )
        )
    return tuple(rows)


def _scales(one: CompressedWeight) -> str:
    """Their type, and what is peculiar to them."""
    text = one.scale_type or ""
    if one.tensor_scale is not None:
        return f"{text} × f32"
    return f"{text} per {one.code_shape[1]} × {one.code_shape[3]}" if one.end != one.last else text


def _floats(weights: Sequence[Weight], skips: Sequence[Skip]) -> tuple[StoredFloat, ...]:
    """Float constants of some size that are no part of a compressed weight."""
    rows = [
        StoredFloat(
            one.name,
            one.consumers[0].name,
            one.element_type,
            one.shape,
            one.elements,
            one.bytes,
            "a weight that can be compressed",
        )
        for one in weights
        if one.element_type in FLOAT_TYPES
    ]
    for skip in skips:
        if skip.element_type in FLOAT_TYPES and not skip.reason.startswith("belongs to "):
            size = prod(skip.shape)
            rows.append(
                StoredFloat(skip.name, skip.consumer, skip.element_type, skip.shape, size, skip.bytes, skip.reason)
            )
    return tuple(row for row in rows if row.elements >= REPORTED_ELEMENTS)


def _told(check: DeviceCheck) -> dict[str, str]:
    return {"device": check.device, "name": check.name, "openvino": check.openvino, "method": check.method}
