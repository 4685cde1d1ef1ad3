"""A config.json of transformers 5 for a transformers 4 that would pass over what it says of rotary embeddings.

    "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, …}        transformers 5
    "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, …}           transformers 4

Of a name that it does not know transformers says nothing: the model would have the default's angles, and be wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ov_weight_compression.ir_utils.errors import ModelError

_SINCE = 5
_NEW = "rope_parameters"
_MOVED = ("rope_theta", "partial_rotary_factor")


@contextmanager
def reading_older_configs() -> Iterator[None]:
    """While it lasts, transformers reads configs as its own version's."""
    from transformers import CONFIG_MAPPING, PretrainedConfig, __version__

    kept = PretrainedConfig.__dict__["get_config_dict"]

    def read(cls: Any, folder: Any, *arguments: Any, **named: Any) -> Any:
        config, rest = kept.__func__(cls, folder, *arguments, **named)
        try:
            return older_config(config, CONFIG_MAPPING), rest
        except ModelError as error:
            raise ModelError(f"{folder}/{error}") from error

    if int(__version__.partition(".")[0]) < _SINCE:
        PretrainedConfig.get_config_dict = classmethod(read)
    try:
        yield
    finally:
        PretrainedConfig.get_config_dict = kept


def older_config(config: Mapping[str, Any], classes: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and those in it, with what `rope_parameters` say under the names of transformers 4.

    Args:
        config: what config.json holds.
        classes: the configurations' classes of the transformers that is to read it, by `model_type`.

    Raises:
        ModelError: that has no name for it.
    """
    said = {key: older_config(one, classes) if _is_config(key, one) else one for key, one in config.items()}
    rotary = said.pop(_NEW, None)
    if not isinstance(rotary, Mapping):
        return said
    kind = str(said.get("model_type"))
    known = inspect.signature(classes[kind].__init__).parameters if kind in classes else {}
    moved = {key: rotary[key] for key in _MOVED if rotary.get(key) is not None}
    scaling = {key: one for key, one in rotary.items() if key not in _MOVED}
    nested = any(isinstance(one, Mapping) for one in rotary.values())
    if scaling.get("rope_type", "default") != "default":
        moved["rope_scaling"] = scaling
    unknown = [key for key in moved if key not in known]
    if nested or unknown:
        raise ModelError(
            f"config.json: its {_NEW} are transformers 5's, and the transformers that is installed has no other name "
            f"for {'those of each kind of layer' if nested else unknown[0]} of {kind!r}: save the checkpoint with it"
        )
    return {**moved, **said}


def _is_config(key: str, value: object) -> bool:
    return isinstance(value, Mapping) and key.endswith("_config") and key != "quantization_config"
