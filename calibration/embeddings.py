"""Language models that take `inputs_embeds`: token ids for them, through the model that embeds those.

optimum-intel parts a vision-language model into one that embeds token ids, one that makes features of pictures, and the
language model, which reads the vectors of both. With the first in front of it, it is a language model like any other:
it can be given text, and can write some.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openvino as ov

from ov_weight_compression.calibration.language_model import input_label
from ov_weight_compression.ir_utils.file_mappings import file_of
from ov_weight_compression.ir_utils.types import Array

__all__ = ["Embedded", "with_embeddings"]

_VECTORS = "inputs_embeds"
_IDS = "input_ids"
_FILE = "openvino_text_embeddings_model.xml"


@dataclass(frozen=True, eq=False)
class Embedded:
    """A language model that takes token ids."""

    model: ov.Model
    embed: Any
    """The compiled model in front of it."""

    def inputs(self, window: Mapping[str, Array]) -> dict[str, Array]:
        """What the language model itself takes, of what this one does."""
        vectors = self.embed(window[_IDS])[0]
        return {_VECTORS if name == _IDS else name: vectors if name == _IDS else own for name, own in window.items()}


def with_embeddings(model: ov.Model) -> Embedded | None:
    """The language model with the model of its embeddings in front of it; None where it does not take vectors, or the
    other model does not lie beside its file. The model itself is not changed."""
    labels = [input_label(node) for node in model.get_parameters()]
    home = file_of(model) if _VECTORS in labels else None
    if home is None or not (home.parent / _FILE).is_file():
        return None
    core = ov.Core()
    embedding = core.read_model(home.parent / _FILE)
    if len(embedding.inputs) != 1 or len(embedding.outputs) != 1:
        return None
    embed = core.compile_model(embedding.clone(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    joined = model.clone()
    vectors, ids = joined.get_parameters()[labels.index(_VECTORS)], embedding.get_parameters()[0]
    for target in list(vectors.output(0).get_target_inputs()):
        target.replace_source_output(embedding.get_results()[0].input_value(0))
    ids.output(0).set_names({_IDS})
    joined.add_parameters([ids])
    joined.remove_parameter(vectors)
    joined.validate_nodes_and_infer_types()
    return Embedded(joined, embed)
