"""Kinds of values that options take: each says in words what it takes, and reads it from whatever a caller gives.

A kind never lets through what it was not made for, and its `parse` never raises anything but `OptionError`: a value may
be an array, an object whose `__eq__` raises, or a text of twenty thousand characters. What was given is shown in the
message, cut short (`shown`).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino as ov

from ov_weight_compression.ir_utils.errors import CompressionError, OptionError, one_line
from ov_weight_compression.ir_utils.types import Array, tensor_values

_SHOWN = 60
"""Characters of a value that a message shows."""
_LONGEST_PATH = 4095
_LONGEST_NAME = 255
_DIGITS = 18
"""Of a whole number in a text; no option takes one that is larger."""
MOST = 2**31 - 1
"""The largest count that an option takes: more of anything than there can be."""

_E = TypeVar("_E", bound=Enum)
_F = TypeVar("_F", bound=Callable[..., Any])


def shown(value: object) -> str:
    """A value for a message: its `repr` on one line, at most 60 characters of it; its type where it has none."""
    try:
        if isinstance(value, str):
            # The repr of a long text would be built in full first; of a text, both ends may be what was mistaken.
            return one_line(repr(value), _SHOWN) if len(value) <= _SHOWN else repr(one_line(value, _SHOWN - 2))
        if isinstance(value, np.ndarray) and value.size > 4:
            return f"an array of {value.dtype} {list(value.shape)}"
        if isinstance(value, (list, tuple, dict, set, frozenset, bytes, bytearray)) and len(value) > 16:
            return f"a {type(value).__name__} of {len(value)}"
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
            return f"a whole number of {value.bit_length()} bits"
        return one_line(repr(value), _SHOWN)
    except Exception:  # whatever an object's own methods raise
        return f"an object of type {one_line(type(value).__name__, _SHOWN)}"


@dataclass(frozen=True)
class OptionKind:
    """What an option takes."""

    takes: str
    """In words, after "must be"; or, where there are `choices`, unused."""
    read: Callable[[Any], Any]
    """The value as the code works with it. Raises anything at all for what is none."""
    annotation: str
    """The type in a signature."""
    choices: tuple[str, ...] = ()
    from_text: Callable[[str], object] = str
    """What a word of the command line means: what `read` takes."""
    none: object = None
    """What None stands for, where it does not stand for the default."""

    def parse(self, name: str, value: object) -> Any:
        """The value of the option `name`.

        Raises:
            OptionError: it is not of this kind; names the option, what it takes and what was given.
        """
        try:
            return self.read(value)
        except CompressionError:
            raise
        except Exception:
            pass  # not chained: what an object's own methods raise tells nobody anything
        if self.choices:
            raise OptionError(f"{name}: {shown(value)} is not one of {', '.join(self.choices)}")
        raise OptionError(f"{name}: must be {self.takes}, got {shown(value)}")


def number(low: float, high: float) -> OptionKind:
    """A number between two limits, both included."""
    return OptionKind(f"a number from {low:g} to {high:g}", _within(low, high), "float", from_text=_number_from_text)


def count(low: int, high: int = MOST) -> OptionKind:
    """A whole number that is neither too small nor too large."""
    limits = f"of at least {low}" if high >= MOST else f"from {low} to {high}"
    return OptionKind(f"a whole number {limits}", _within(low, high, int), "int", from_text=whole_from_text)


def group() -> OptionKind:
    """A group size: a whole number from 2 up, or -1 for one group a channel."""
    read = _within(2, MOST, int, also=(-1,))
    return OptionKind("-1 (per channel) or a whole number of at least 2", read, "int", from_text=whole_from_text)


def _within(
    low: float, high: float, kind: type[int] | type[float] = float, also: tuple[int, ...] = ()
) -> Callable[[Any], Any]:
    """What reads a number of any type that says it is one, but True and False; `also` are allowed beside the limits."""

    def read(value: Any) -> int | float:
        number = isinstance(value, (int, float, np.integer, np.floating)) or hasattr(value, "__index__")
        if not number or isinstance(value, (bool, np.bool_)):
            raise ValueError
        found = int(value.__index__()) if kind is int else float(value)
        if not (low <= found <= high or found in also):
            raise ValueError
        return found

    return read


def whole(value: Any) -> int:
    """A whole number of any type that says it is one. Raises anything for others, True and False among them."""
    if isinstance(value, (bool, np.bool_)):
        raise ValueError
    return int(value.__index__())


def whole_from_text(text: str) -> object:
    """The whole number that a word is; the word itself where it is none, to be refused by whoever wants one."""
    digits = text.strip().lstrip("+-")
    fine = digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS and len(text.strip()) - len(digits) <= 1
    return int(text) if fine else text


def _number_from_text(text: str) -> object:
    try:
        return float(text) if text.isascii() else text
    except ValueError:
        return text


def candidates() -> OptionKind:
    """How many scales a search tries: a number, or one of two words."""

    def read(value: Any) -> str | int:
        if isinstance(value, str):
            return {"auto": "auto", "off": "off"}.get(value.lower()) or read(whole(whole_from_text(value)))
        found = whole(value)
        if not 0 <= found <= 256:
            raise ValueError
        return found or "off"

    return OptionKind("'auto', 'off' or a number of candidates up to 256", read, "str | int")


def functions(name: str, arguments: str) -> OptionKind:
    """Some functions of these arguments; `name` is their type's."""

    def read(value: Any) -> tuple[Any, ...]:
        found = tuple(value)
        if not found or not all(map(callable, found)):
            raise ValueError
        return found

    return OptionKind(f"a sequence of functions ({arguments})", read, f"Sequence[{name}]")


def flag() -> OptionKind:
    """True or False."""

    def read(value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError
        return bool(value)

    return OptionKind("True or False", read, "bool")


def word() -> OptionKind:
    """A name: some printable text."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or not value.isprintable():
            raise ValueError
        return str(value)

    return OptionKind("a name", read, "str")


def shapes() -> OptionKind:
    """Shapes by the names of inputs."""

    def read(value: Any) -> dict[str, tuple[int, ...]]:
        found = {name: tuple(map(whole, sizes)) for name, sizes in dict(value).items()}
        named = all(isinstance(name, str) for name in found)
        if not named or not all(0 < size <= MOST for sizes in found.values() for size in sizes):
            raise ValueError
        return found

    return OptionKind("a dict of inputs' names and shapes", read, "Mapping[str, Sequence[int]]")


def optional(kind: OptionKind, name: str, value: object) -> Any:
    """The value of an option that may be None."""
    return None if value is None else kind.parse(name, value)


def _read_path(value: Any) -> Path:
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text or len(os.fsencode(text)) > _LONGEST_PATH:
        raise ValueError
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in Path(text).parts):
        raise ValueError
    return Path(text)


PATH = OptionKind("a path", _read_path, "str | PathLike[str]")
"""A path as text or object."""


def choice(allowed: Sequence[str]) -> OptionKind:
    """One of some words, in any case."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value.lower() not in allowed:
            raise ValueError
        return value.lower()

    return OptionKind("", read, "str", tuple(allowed))


def one_of(kind: type[_E]) -> OptionKind:
    """A member of an enum: itself, another library's with the same value, or its value in any case."""

    def read(value: Any) -> _E:
        if isinstance(value, kind):
            return value
        text = value.value if isinstance(value, Enum) else value
        if not isinstance(text, str):
            raise ValueError
        name = text.strip().lower()
        return next((member for member in kind if name == str(member.value).lower()), None) or kind(name)

    return OptionKind("", read, f"{kind.__name__} | str", tuple(str(member.value) for member in kind))


def parse_enum(kind: type[_E], value: object, field: str) -> _E:
    """A member of `kind` from what `one_of` takes.

    Raises:
        OptionError: no member has that value; the message lists those there are.
    """
    found: _E = one_of(kind).parse(field, value)
    return found


def table() -> OptionKind:
    """A list of finite numbers: a sequence, an array, or a tensor of OpenVINO of whatever type."""

    def read(value: Any) -> tuple[float, ...]:
        found = _numbers(value)
        if found.dtype.kind not in "iuf" and found.dtype.itemsize != 1:
            raise ValueError
        with np.errstate(over="ignore"):
            numbers = found.astype(np.float32)
        if numbers.ndim != 1 or not np.isfinite(numbers).all():
            raise ValueError
        return tuple(numbers.tolist())

    def from_text(text: str) -> object:
        return [_number_from_text(part) for part in text.split(",")]

    return OptionKind("one list of finite numbers", read, "Sequence[float] | NDArray[Any]", from_text=from_text)


def table_type(value: Any) -> str | None:
    """The type that holds the numbers of an array or tensor as they are, by a table's name of it; None for a list.

    Doubles, and integers that have no 8 bits, take f32: nobody means the type that numpy gives by default.
    """
    value = _bare(value)
    kind = value.element_type.get_type_name() if isinstance(value, ov.Tensor) else str(getattr(value, "dtype", ""))
    kind = kind.rpartition(".")[2]
    if not kind:
        return None
    if kind in _TABLE_TYPES:
        return _TABLE_TYPES[kind]
    numbers = _numbers(value)
    if numbers.dtype.kind in "iu" and numbers.size:
        if numbers.min() >= -128 and numbers.max() <= 127:
            return "i8"
        return "u8" if numbers.min() >= 0 and numbers.max() <= 255 else "f32"
    return "f32"


_TABLE_TYPES = {
    **{"float16": "f16", "f16": "f16", "f8e5m2": "f16", "float8_e5m2": "f16"},
    **{"f8e4m3": "f8e4m3", "float8_e4m3fn": "f8e4m3", "int8": "i8", "i8": "i8", "uint8": "u8", "u8": "u8"},
}


def _bare(value: Any) -> Any:
    """What a tensor of NNCF's wraps."""
    inner = getattr(value, "data", None)
    return inner if isinstance(inner, (np.ndarray, ov.Tensor)) and not isinstance(value, ov.Tensor) else value


def _numbers(value: Any) -> Array:
    value = _bare(value)
    return tensor_values(value) if isinstance(value, ov.Tensor) else np.asarray(value)


def anything(annotation: str) -> OptionKind:
    """What is read later, by those who know more."""
    return OptionKind("", lambda value: value, annotation)


def check_model(model: object) -> None:
    """Raise OptionError where a function was given something else than a model."""
    if not isinstance(model, ov.Model):
        kind = one_line(type(model).__name__, _SHOWN)
        raise OptionError(f"model: expected an openvino.Model, got {kind}; read a file with Core().read_model")


def by_name(function: _F) -> _F:
    """For functions with keyword-only options: what is given by place, or by a name that is no option's, is refused in
    the package's own words."""
    parameters = inspect.signature(function).parameters
    options = [name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY]
    places = len(parameters) - len(options)

    @wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        if len(given) > places:
            raise OptionError(f"{shown(given[places])}: options are given by name, as in mode='int4_sym'")
        for name in named:
            if name not in parameters:
                raise unknown_option(name, options)
        return function(*given, **named)

    return checked  # type: ignore[return-value]


def unknown_option(name: str, known: Iterable[str]) -> OptionError:
    """The error for a name that is none of an option, with the one that it is nearest to."""
    near = get_close_matches(name[:40], known, 1)
    hint = f"did you mean {near[0]!r}?" if near else "help(WeightCompression) lists those there are"
    return OptionError(f"unknown option {shown(name)}; {hint}")
