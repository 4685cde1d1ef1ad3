"""optimum-intel's export in a process of its own, which `opening.export` starts.

The graph, the names, the configs and the tokenizers are what optimum-intel writes. Only where it would write a model's
weights it writes a skeleton (see `skeleton`): no weight is copied or read, unless the exporter computes with it. When
the process ends, torch's memory is gone, before the first weight is compressed.

    standard input     the caller's end of a pipe: when it closes, the caller is gone, and so is this process
    first argument     a JSON file: what is asked for (`Request`)
    second argument    a JSON file to write: what was found (`Answer`), or why it cannot be (`{"kind": …, "error": …}`)

A config.json of transformers 5 is brought into transformers 4's words, where that would pass over what it says of
rotary embeddings:

    "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0, …}        transformers 5
    "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, …}           transformers 4

Of a name that it does not know transformers says nothing: the model would have the default's angles, and be wrong.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ov_weight_compression.checkpoints.folder import Checkpoint, read_checkpoint
from ov_weight_compression.checkpoints.tensor_accounts import ComputedWith, TensorAccounts
from ov_weight_compression.ir_utils.errors import CompressionError, ModelError

_TOKENIZERS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")


@dataclass(frozen=True)
class Request:
    """What is to be exported, and where to."""

    folder: str
    output: str
    task: str | None
    """optimum-intel's word; None for what the architecture is for."""
    tensors: list[str] | None = None
    """Those of the folder's that count, where it is a `virtual_folder`; None for all."""


@dataclass(frozen=True)
class Answer:
    """What was found."""

    models: dict[str, Any]
    """The skeletons' .xml relative to the output, each with its `holes` (`skeleton.Placed`), and by the names of its
    `copies` the tensors that they are copies of, in another type."""
    unused: dict[str, str]
    """Tensors that are in no model, and why."""


def work(arguments: list[str]) -> int:
    """Do what the request says; the exit code is 0 if an answer was written."""
    asked, answer = (Path(word) for word in arguments)
    try:
        found = _export(Request(**json.loads(asked.read_text())))
        answer.write_text(json.dumps(asdict(found)))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        kind = "model" if isinstance(error, ModelError) else "other"
        answer.write_text(
            json.dumps({"kind": kind, "error": _reason(error), "holes_read": getattr(error, "holes", [])})
        )
        return 1
    return 0


def watch_caller() -> None:
    """End this process when the one that it works for does: its standard input is a pipe from there."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _reason(error: BaseException) -> str:
    """An error in one line, for libraries that raise essays."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, CompressionError):
        return " ".join(lines)
    telling = [line for line in lines if "size mismatch" in line]
    return f"{type(error).__name__}: {(telling or lines or ['it does not say why'])[0]}"


def _export(request: Request) -> Answer:
    import optimum.exporters.openvino  # noqa: F401  (registers what it can export)
    import transformers
    from optimum.exporters.openvino import main_export

    checkpoint = read_checkpoint(Path(request.folder))
    every = set(checkpoint.tensors)
    if request.tensors is not None:
        checkpoint = replace(checkpoint, tensors={name: checkpoint.tensors[name] for name in request.tensors})
    task = request.task or _task_of(checkpoint)
    transformers.logging.set_verbosity_error()
    computed: frozenset[str] = frozenset()
    while True:
        accounts = TensorAccounts(checkpoint, every - set(checkpoint.tensors), computed)
        try:
            with _instead_of_saving(accounts.save), accounts.watching(), reading_older_configs():
                main_export(request.folder, Path(request.output), task=task, convert_tokenizer=True)
            break
        except ComputedWith as error:
            computed |= error.names
        gc.collect()
    if not accounts.models:
        raise ModelError(f"{checkpoint.folder}: optimum-intel wrote no model for the task {task}")
    models = {str(path.relative_to(request.output)): found for path, found in accounts.models.items()}
    return Answer(models, accounts.unused())


def _task_of(checkpoint: Checkpoint) -> str:
    """What an architecture is for: optimum only asks the hub for that.

    Raises:
        ModelError: transformers has no such architecture (code that comes with a checkpoint is not run), or
            optimum-intel does not export it.
    """
    import transformers
    from optimum.exporters.tasks import TasksManager

    config, where = checkpoint.config, f"{checkpoint.folder}/config.json"
    kind, names = config.get("model_type"), config.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    known = isinstance(kind, str) and kind in transformers.CONFIG_MAPPING
    found = getattr(transformers, name, None) if name is not None and name.isidentifier() else None
    if not known or found is None or not hasattr(found, "from_pretrained"):
        own = "; code that comes with a checkpoint (auto_map) is not run" if "auto_map" in config else ""
        what = f"model_type {kind!r}" if not known else f"architecture {name!r}"
        raise ModelError(f"{where}: transformers {transformers.__version__} has no {what}{own}")
    try:
        task: str = TasksManager._infer_task_from_model_or_model_class(model_class=found)
        tasks = TasksManager.get_supported_tasks_for_model_type(kind, exporter="openvino", library_name="transformers")
    except (KeyError, ValueError) as error:
        raise ModelError(f"{where}: optimum-intel does not export {kind} ({name}): {_reason(error)}") from error
    if task not in tasks:
        task = next((one for one in tasks if not one.endswith("-with-past") and _is_for(one, str(kind), found)), task)
    if f"{task}-with-past" in tasks:
        return f"{task}-with-past"
    if task not in tasks:
        raise ModelError(f"{where}: optimum-intel exports {kind} for {', '.join(tasks)}, and {name} is for {task}")
    return task


def _is_for(task: str, kind: str, model_class: Any) -> bool:
    """Whether transformers loads a class for a task; it may be for several: Bart's translates and fills masks."""
    from optimum.exporters.tasks import TasksManager

    try:
        auto = TasksManager.get_model_class_for_task(task, "pt", model_type=kind, library="transformers")
        found = auto._model_mapping[model_class.config_class]
    except (AttributeError, KeyError, ValueError):
        return False
    return model_class in (found if isinstance(found, tuple) else (found,))


@contextmanager
def _instead_of_saving(save: Any) -> Iterator[None]:
    """While it lasts, what optimum-intel would save goes to `save(model, path)`; tokenizers' models excepted."""
    from optimum.exporters.openvino import __main__ as command
    from optimum.exporters.openvino import convert

    own = convert.save_model
    replaced = {
        (convert, "save_model"): lambda model, path, *more, **named: (
            own(model, path, *more, **named) if Path(path).name in _TOKENIZERS else save(model, Path(path))
        ),
        # Compresses what has more than a billion parameters to 8 bits.
        (command, "_apply_model_size_based_quantization"): lambda *_, **__: None,
        # Whether a model is traced once more to compare: twice the time.
        (convert, "allow_skip_tracing_check"): lambda *_: True,
    }
    kept = {place: getattr(*place) for place in replaced}
    for place, function in replaced.items():
        setattr(*place, function)
    try:
        yield
    finally:
        for place, function in kept.items():
            setattr(*place, function)


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
