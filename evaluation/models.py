"""Models that can be run: found and read, their inputs completed, run piece by piece, each piece from a clean state; in
an arithmetic in which what is judged is the weights and nothing else.

Source (an `ov.Model`, a file, a folder of an exporter) → `Loaded` → `Runner`. Two of them that belong together are a
`Pair`. What has to be read from a graph to run it is read once, when the model is loaded.

By default a device cuts corners of its own: bf16 or f16 instead of f32, activations quantised to 8 bits in front of
compressed layers, an 8-bit cache of keys and values. Each of them costs accuracy which the weights are not to blame
for, and each may hit one of the two models harder. So both models are run with

    INFERENCE_PRECISION_HINT          f32
    DYNAMIC_QUANTIZATION_GROUP_SIZE   0      activations are not quantised
    KV_CACHE_PRECISION                f32

unless `as_deployed` asks for the device's own defaults. What a device does not know is left out and named.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import openvino as ov

from ov_weight_compression.calibration.model_inputs import ModelInputs
from ov_weight_compression.calibration.runner import EXACT
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.ir_file import openvino_reason, read_model
from ov_weight_compression.ir_utils.model_folder import known_config
from ov_weight_compression.ir_utils.option_kinds import PATH
from ov_weight_compression.ir_utils.publish import TemporaryFolder
from ov_weight_compression.ir_utils.types import Array
from ov_weight_compression.patterns.graphs import graphs_of, is_postponed

_OTHER_MODELS = (".pb", ".pbtxt", ".meta", ".tflite", ".pdmodel")
"""Files of other kinds that OpenVINO's readers know. Whatever else it is given, each of them has a look, and
TensorFlow's prints what it thinks of that."""


OnProgress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many of it are done, and how many there are (None: not known)."""


@functools.cache
def core() -> ov.Core:
    """The one runtime that this room compiles with."""
    return ov.Core()


@dataclass(frozen=True)
class Arithmetic:
    """Device and properties that both models are compiled with."""

    device: str
    as_deployed: bool
    """True: the device's defaults, as an application gets them; False: f32 and no quantised activations or cache."""
    properties: tuple[tuple[str, str], ...]
    """What was asked for, `(name, value)`."""
    unsupported: tuple[str, ...] = ()
    """Properties of `EXACT` that the device does not have."""
    defaults: tuple[tuple[str, str], ...] = ()
    """As deployed: what the device chose for the properties of `EXACT`."""
    openvino: str = ""

    def compile(self, model: ov.Model, what: str) -> Any:
        """Compile a model; `what` names it in errors."""
        try:
            return core().compile_model(model, self.device, dict(self.properties))
        except RuntimeError as error:
            raise WorkError(f"{what} cannot be compiled for {self.device}: {openvino_reason(error)}") from error

    def describe(self) -> str:
        """One line for reports."""
        if self.as_deployed:
            chosen = ", ".join(f"{name} {value}" for name, value in self.defaults)
            return f"{self.device}, as deployed, with the device's defaults" + (f": {chosen}" if chosen else "")
        missing = f" (not known to this device: {', '.join(self.unsupported)})" if self.unsupported else ""
        return f"{self.device}, f32 execution, activations and KV cache not quantised{missing}"


def arithmetic_for(device: str, as_deployed: bool) -> Arithmetic:
    """The arithmetic for a device; raises `OptionError` where there is no such device."""
    available = core().available_devices
    if device.split(".")[0].split(":")[0] not in {name.split(".")[0] for name in available} | {"AUTO", "HETERO"}:
        raise OptionError(f"device={device!r}: OpenVINO finds no such device here, it finds {', '.join(available)}")
    single = ":" not in device and device != "AUTO"
    try:
        supported = list(core().get_property(device, "SUPPORTED_PROPERTIES")) if single else list(EXACT)
    except RuntimeError as error:
        raise WorkError(f"device {device} does not tell its properties: {openvino_reason(error)}") from error
    known = [name for name in EXACT if name in supported]
    version = ov.get_version()
    if as_deployed:
        defaults = tuple((name, _told(core().get_property(device, name))) for name in known) if single else ()
        return Arithmetic(device, True, (), (), defaults, version)
    asked = tuple((name, EXACT[name]) for name in known)
    return Arithmetic(device, False, asked, tuple(name for name in EXACT if name not in known), (), version)


def _told(value: object) -> str:
    """A property's value in words: OpenVINO's types print as more than their names."""
    return value.to_string() if isinstance(value, ov.Type) else str(value)


_NOT_MODELS = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
DEFAULT_WINDOW = 256
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class LogitsPort:
    """Where a model's logits come out."""

    index: int
    vocabulary: int | None
    """None where the model does not fix it."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model, where it came from, and what was read of its inputs and outputs, once."""

    model: ov.Model
    name: str
    """What it is called in reports: after its folder or file, or "base" and "compressed"."""
    path: Path | None
    """The .xml file; None for a model that was given as an object."""
    inputs: ModelInputs
    logits: LogitsPort | None
    """None for a model that is no language model."""

    longest_window: int | None
    """The number of positions that the model was made for, as far as its config.json or a table of positions says it:
    behind the end of such a table OpenVINO reads zeros and says nothing."""

    usual_window: int
    """Tokens to a window where none were asked for: 256, or fewer where the model takes no more; the length that its
    input has, where that is fixed."""


def load(source: ov.Model | str | PathLike[str], role: str, stack: ExitStack | None = None) -> Loaded:
    """Read a model.

    Args:
        source: an `ov.Model`; a file that OpenVINO reads; or a folder with `openvino_model.xml`, or with one .xml
            beside those of the tokenizer.
        role: "base" or "compressed", for messages.
        stack: postponed constants are computed, into a file that lives as long as this; None leaves them postponed.

    Raises:
        ModelError: there is no such file, or OpenVINO cannot read it.
    """
    path = None
    if isinstance(source, ov.Model):
        model, name = source, role
    else:
        path = PATH.parse(f"the {role} model", source)
        path = _model_in(path, role) if path.is_dir() else path
        # What a person would call it: the folder's name, and the file's where it is not the same for every model.
        name = path.parent.resolve().name + ("" if path.name == "openvino_model.xml" else f"/{path.name}")
        what, kind, weights = f"the {role} model {path}", path.suffix.lower(), path.with_suffix(".bin")
        if not path.is_file():
            raise ModelError(f"{what} does not exist")
        if path.suffix == ".xml" and not weights.is_file():
            raise ModelError(f"{what} has no weights beside it: {weights.name} is missing")
        if kind not in (".xml", ".onnx", *_OTHER_MODELS):
            others = ", ".join(_OTHER_MODELS)
            raise ModelError(
                f"{what} is not a model; expected a folder, or a file that ends with .xml, .onnx, {others}"
            )
        try:
            model = core().read_model(path) if kind in _OTHER_MODELS else read_model(path)
        except Exception as error:
            own = isinstance(error, ModelError)
            reason = str(error).removeprefix(f"{path}: ") if own else openvino_reason(error)
            raise ModelError(f"{what} cannot be read: {reason}") from error
    if stack is not None and any(is_postponed(node) for graph in graphs_of(model) for node, _ in graph.constants):
        # Once: the model is compiled several times, and its weights are read one by one.
        folder = stack.enter_context(TemporaryFolder())
        ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
        model = read_model(folder / "model.xml")
    inputs = ModelInputs(model, "data", f"the {role} model" + (f" {name}" if path else ""))
    language, said = inputs.language, known_config(path.parent) if path else {}
    limits = [said[key] for key in _LIMITS if isinstance(said.get(key), int) and said[key] > 1]
    limits += [limit for limit in (language.positions, language.length) if limit] if language else []
    longest = min(limits, default=None)
    usual = (language and language.length) or min(DEFAULT_WINDOW, longest or DEFAULT_WINDOW)
    return Loaded(model, name, path, inputs, _find_logits(model) if language else None, longest, usual)


def _model_in(folder: Path, role: str) -> Path:
    usual = folder / "openvino_model.xml"
    if usual.is_file():
        return usual
    found = sorted(file for file in folder.glob("*.xml") if file.name not in _NOT_MODELS)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(f"the {role} folder {folder} holds no OpenVINO model (.xml)")
    names = ", ".join(file.name for file in found)
    raise ModelError(f"the {role} folder {folder} holds several models ({names}): name the file")


def _find_logits(model: ov.Model) -> LogitsPort | None:
    """The output called `logits` if it is `[batch, n, vocabulary]`; else the only output of rank 3, if the model keeps
    a past (states, or inputs for one)."""
    ranked = [
        (index, port)
        for index, port in enumerate(model.outputs)
        if port.get_partial_shape().rank.is_static and port.get_partial_shape().rank.get_length() == 3
    ]
    named = [(index, port) for index, port in ranked if "logits" in port.get_names()]
    if not named:
        remembers = bool(model.get_variables()) or any(
            "past" in name for port in model.inputs for name in port.get_names()
        )
        named = ranked if remembers and len(ranked) == 1 else []
    if len(named) != 1:
        return None
    index, port = named[0]
    last = port.get_partial_shape()[2]
    return LogitsPort(index, last.get_length() if last.is_static else None)


class Runner:
    """One model, compiled once, run many times. What `run` returns is valid until the next call."""

    def __init__(self, loaded: Loaded, arithmetic: Arithmetic, model: ov.Model | None = None) -> None:
        """`model`: to run in place of the one that was loaded, with the same inputs and more outputs."""
        self.inputs = loaded.inputs
        self.what = loaded.inputs.what if model is None else f"{loaded.inputs.what} with its layers' outputs"
        self.port = loaded.logits
        model = model or loaded.model
        self._stateful = bool(model.get_variables())
        self._request = arithmetic.compile(model, self.what).create_infer_request()

    def run(self, given: Mapping[str, Array]) -> list[Array]:
        """All outputs for one set of inputs, completed (see `ModelInputs.complete`), from an empty state."""
        inputs = self.inputs.complete(given)
        try:
            if self._stateful:
                self._request.reset_state()
            results = self._request.infer(dict(enumerate(inputs.values())), share_inputs=True, share_outputs=True)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise WorkError(f"{self.what} cannot be run on {shapes}: {openvino_reason(error)}") from error
        return [results[index] for index in range(len(results))]


@dataclass(frozen=True, eq=False)
class Pair:
    """Both models and the arithmetic that they are run in."""

    base: Loaded
    compressed: Loaded
    arithmetic: Arithmetic
