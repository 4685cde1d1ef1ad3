"""In what arithmetic two models are run, so that what is judged is the weights and nothing else.

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
from dataclasses import dataclass
from typing import Any

import openvino as ov

from ov_weight_compression.ir_utils.errors import OptionError, WorkError
from ov_weight_compression.ir_utils.ir_file import openvino_reason

__all__ = ["EXACT", "Arithmetic", "choose", "core"]

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


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


def choose(device: str, as_deployed: bool) -> Arithmetic:
    """The arithmetic for a device; raises `OptionError` where there is no such device."""
    available = core().available_devices
    if device.split(".")[0].split(":")[0] not in {name.split(".")[0] for name in available} | {"AUTO", "HETERO"}:
        raise OptionError(f"device={device!r}: OpenVINO finds no such device here, it finds {', '.join(available)}")
    single = ":" not in device and device != "AUTO"
    known = [name for name in EXACT if not single or name in _supported(device)]
    version = ov.get_version()
    if as_deployed:
        defaults = tuple((name, _told(core().get_property(device, name))) for name in known) if single else ()
        return Arithmetic(device, True, (), (), defaults, version)
    asked = tuple((name, EXACT[name]) for name in known)
    return Arithmetic(device, False, asked, tuple(name for name in EXACT if name not in known), (), version)


def _told(value: object) -> str:
    """A property's value in words: OpenVINO's types print as more than their names."""
    return value.to_string() if isinstance(value, ov.Type) else str(value)


def _supported(device: str) -> list[str]:
    try:
        return list(core().get_property(device, "SUPPORTED_PROPERTIES"))
    except RuntimeError as error:
        raise WorkError(f"device {device} does not tell its properties: {openvino_reason(error)}") from error
