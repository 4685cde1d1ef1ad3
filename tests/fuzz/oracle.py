"""What must hold for every model and every options: one check a function, each yields what is wrong."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from ov_weight_compression.evaluation import inspect
from ov_weight_compression.ir_utils.errors import CompressionError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import Report, WeightCompression, apply_weight_decompression
from tests.fuzz.campaign import ORIGINAL, Failure
from tests.fuzz.levels import misplaced_codes
from tests.fuzz.outputs import core, misread, misread_by_default, run, undefined_outputs
from tests.fuzz.stored import FOLDED, constants_of, operations_of, raw_bytes, values_of
from tests.running import EXACT, files_of

Array = np.ndarray[Any, np.dtype[Any]]
_INDICES = ("i64", "i32")
_STEP = 6 * 2.0**-25
"""The largest code of f4e2m1 times what a scale is off that a chain computes in f16, below f16's normal numbers."""


class Case:
    """One model, one set of options, what to feed, and a folder to write into."""

    def __init__(
        self,
        model: ov.Model,
        options: Mapping[str, Any],
        feeds: Sequence[Any],
        samples: Sequence[Any],
        folder: Path,
        number: int = 0,
    ) -> None:
        self.model, self.feeds, self.folder, self.number = model, list(feeds), folder, number
        self.options = dict(options)
        if "dataset" in self.options:
            self.options["dataset"] = list(samples)
        self.notes: list[str] = []
        self.stage: Callable[[str], None] = lambda name: None
        """Told what is about to be done where that may end the process for another's fault."""
        self._written = 0

    @property
    def data(self) -> bool:
        """Whether codes are chosen by more than the nearest level of the weight as it is."""
        return "dataset" in self.options or bool(self.options.get("awq"))

    def compressed(self, **other: Any) -> tuple[ov.Model, Report]:
        """A fresh clone, compressed."""
        model = self.model.clone()
        compression = WeightCompression(**{**self.options, **other})
        compression.run_on_model(model)
        return model, compression.report

    def original(self, config: Mapping[str, Any] = EXACT) -> list[Array]:
        """The outputs of the model as it was."""
        self.stage(ORIGINAL)
        outputs = run(self.model, self.feeds, config)
        self.stage("")
        return outputs

    def save(self, model: ov.Model, name: str, how: str = "own") -> ov.Model:
        """Written in one of the ways there are, and read again."""
        self._written += 1  # never over a file that is mapped
        path = self.folder / f"{name}{self._written}.xml"
        if how == "own":
            save_model(model, path)
        elif how == "ov":
            ov.save_model(model, path)
        else:
            ov.serialize(model, path)
        return core().read_model(path)


def check(case: Case) -> list[Failure]:
    """All that is wrong with one case."""
    try:
        return list(_check(case))
    except CompressionError:
        raise
    except Exception as error:
        return [Failure(f"not our error: {type(error).__name__} {_generic(error)}", _where(error))]


def _check(case: Case) -> Iterator[Failure]:
    before = _picture(case.model, case.folder)
    try:
        model, report = case.compressed()
        saved = case.save(model, "own")
    except CompressionError as error:
        case.notes.append("refused")
        yield from _refused(case, error, before)
        return
    if _picture(case.model, case.folder) != before:
        yield Failure("compressing a clone changes the original")
    yield from _preview(case, report, before)
    if not report.rows:
        case.notes.append("nothing to compress")
        yield from _unchanged(case, saved)
        return
    case.notes.append("compressed")
    yield from _every_way(case, model, saved, report)
    yield from _second_run(case, saved)
    yield from _sizes(case, saved, report)
    yield from _inspected(case, saved, report)
    if not case.data:
        yield from misplaced_codes(constants_of(case.model), constants_of(saved), report)
    yield from _signature(case.model, saved)
    yield from _decompressed(case, saved)
    if case.options.get("device") in (None, "CPU"):  # for another device nothing is promised of CPUs
        yield from _computed(case, saved)


def _where(error: BaseException) -> str:
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if "/tests/" not in place.filename] or list(places)
    last = [f"{Path(place.filename).name}:{place.lineno}" for place in own[-3:]]
    return f"{' '.join(last)}: {' '.join(str(error).split())[-300:]}"


def _generic(error: BaseException) -> str:
    """The last line of a message without what is peculiar to one case."""
    line = (str(error).strip().splitlines() or [""])[-1]
    return re.sub(r"'[^']*'|\d+(\.\d+)?(e[+-]?\d+)?", "…", line)[:90]


def _unchanged(case: Case, saved: ov.Model) -> Iterator[Failure]:
    """Where no weight was compressed the constants are what they were."""
    if "awq" not in case.options and "accuracy" not in case.options and _content(saved) != _content(case.model):
        yield Failure("nothing is compressed and constants change")
    yield from _signature(case.model, saved)


def _picture(model: ov.Model, folder: Path) -> tuple[bytes, bytes]:
    """A model as bytes."""
    ov.serialize(model, folder / "picture.xml")
    return files_of(folder / "picture.xml")


def _refused(case: Case, error: CompressionError, before: tuple[bytes, bytes]) -> Iterator[Failure]:
    text = str(error)
    if "\n" in text.strip() or len(text) > 1000 or "Check '" in text or "Exception from" in text:
        yield Failure("an error of more than a line", text[:200])
    model = case.model.clone()
    try:
        WeightCompression(**case.options).run_on_model(model)
    except CompressionError:
        if _picture(model, case.folder) != before:
            yield Failure("the model is changed after an error", text[:200])
    else:
        yield Failure("an error while saving what was accepted", text[:200])


def _preview(case: Case, report: Report, before: tuple[bytes, bytes]) -> Iterator[Failure]:
    if case.data:
        return
    model = case.model.clone()
    seen = WeightCompression(**case.options).preview(model)
    if seen.rows != report.rows or seen.bytes_after != report.bytes_after:
        yield Failure("the preview is another", f"{seen.bytes_after} bytes, {report.bytes_after} reported")
    if _picture(model, case.folder) != before:
        yield Failure("the preview changes the model")


def _content(model: ov.Model) -> Counter[tuple[str, str, tuple[int, ...], bytes]]:
    """The constants: name, type, shape, bytes."""
    return Counter(
        (_named(node), node.get_output_element_type(0).to_string(), tuple(node.get_output_shape(0)), raw_bytes(node))
        for node in constants_of(model)
    )


def _named(node: ov.Node) -> str:
    """A name; without the running number that OpenVINO gives to what nobody named."""
    return re.sub(r"^([A-Z][A-Za-z]+)_\d+", r"\1", str(node.get_friendly_name()))


_RECOGNISED = ("int8", "int4", "nf4", "nvfp4", "fp8")
_CODES = ("i4", "u4", "i8", "u8", "nf4", "f8e4m3", "f4e2m1")


def _seen_as_compressed(saved: ov.Model, report: Report) -> bool:
    """Whether `ov.save_model` has what it recognises a compressed model by: it looks at the main graph alone, and does
    not know codebooks, elements of two and three bits, f4e2m1 and scales that are powers of two."""
    names = {row.name for row in report.rows if row.mode.startswith(_RECOGNISED)}
    return any(
        node.get_output_element_type(0).to_string() in _CODES
        and (node.get_friendly_name() in names or node.get_friendly_name().endswith("/lora_A"))
        for node in saved.get_ops()
        if node.get_type_name() == "Constant"
    )


def _every_way(case: Case, model: ov.Model, saved: ov.Model, report: Report) -> Iterator[Failure]:
    expected = rounded = _content(saved)
    if not _seen_as_compressed(saved, report):  # it then rounds what is left in f32, as it does with what we wrote
        rounded = _content(case.save(saved, "again", "ov"))
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("the other laziness", "own", {"lazy": not case.options.get("lazy", True)}),
        ("other threads", "own", {"threads": 1 if case.options.get("threads") != 1 else 3}),
        ("the other laziness, by ov.save_model", "ov", {"lazy": not case.options.get("lazy", True)}),
    ]
    name, how, other = ways[0 if case.data else case.number % len(ways)]  # one each: they take the most time
    others = [
        (name, case.save(case.compressed(**other)[0], "way", how), how == "ov"),
        ("ov.serialize", case.save(model, "serialized", "serialize"), False),
        ("ov.save_model", case.save(model, "theirs", "ov"), True),
    ]
    for name, other, rounds in others:
        found = _content(other)
        gone, come = expected - found, found - expected
        if rounds and gone <= expected - rounded and come <= rounded - expected and gone.total() == come.total():
            continue
        if found != expected:
            lost, new = list(gone), list(come)
            kinds = sorted({f"{one[1]}" for one in lost}), sorted({f"{one[1]}" for one in new})
            detail = "; ".join(f"{one[0][:30]} {one[1]}{list(one[2])}" for one in (*lost[:2], *new[:2]))
            alike = "types" if kinds[0] != kinds[1] else "values"
            yield Failure(f"{name}: other {alike}", f"{kinds[0]} became {kinds[1]}: {detail}")


def _second_run(case: Case, saved: ov.Model) -> Iterator[Failure]:
    if "dataset" in case.options:
        return
    model = saved.clone()
    try:
        second = WeightCompression(**case.options)
        second.run_on_model(model)
    except CompressionError as error:
        if "matches no" not in str(error) and "nothing in the model matches" not in str(error):
            yield Failure("a second run is refused", str(error)[:200])
        return
    if second.report.rows:
        row = second.report.rows[0]
        yield Failure("a second run compresses more", f"{row.name[:40]} {list(row.shape)} ({row.consumer[:40]})")
    elif _content(model) != _content(saved):
        yield Failure("a second run changes constants")


def _stored_bytes(model: ov.Model) -> int:
    """All constants' bytes, without the numbers that Reshape and Transpose go by."""
    return sum(
        len(raw_bytes(node))
        for node in constants_of(model)
        if node.get_output_element_type(0).to_string() not in _INDICES
    )


def _sizes(case: Case, saved: ov.Model, report: Report) -> Iterator[Failure]:
    grown = _stored_bytes(saved) - _stored_bytes(case.model)
    said = report.bytes_after - report.bytes_before
    if grown != said:
        yield Failure("sizes are not those of the report", f"{grown:+} bytes, {said:+} reported")


def _inspected(case: Case, saved: ov.Model, report: Report) -> Iterator[Failure]:
    seen = inspect(saved)
    if case.number % 5 == 0:
        str(seen)
        str(report)
    found = Counter((one.mode, one.elements, one.bytes) for one in seen.weights)
    free = Counter((one.mode, one.elements) for one in seen.weights)
    for row in report.rows:
        mode = "codebook" if row.mode in ("cb4", "adaptive_codebook") else row.mode
        names = {row.mode, mode, "cb4", "codebook"} if mode == "codebook" else {row.mode}
        if not any(free[name, row.elements] for name in names):
            told = sorted({key[0] for key in found if key[1] == row.elements})
            yield Failure(
                "inspect disagrees with the report", f"{row.name[:40]} {row.mode} {list(row.shape)}: seen {told}"
            )


def _signature(model: ov.Model, saved: ov.Model) -> Iterator[Failure]:
    for what, mine, theirs in (("input", model.inputs, saved.inputs), ("output", model.outputs, saved.outputs)):
        if len(mine) != len(theirs):
            yield Failure(f"{what}s are lost")
            continue
        for old, new in zip(mine, theirs, strict=True):
            pairs = {
                "names": (set(old.get_names()), set(new.get_names())),
                "type": (old.get_element_type(), new.get_element_type()),
                "shape": (str(old.get_partial_shape()), str(new.get_partial_shape())),
            }
            for aspect, (was, became) in pairs.items():
                if was != became:
                    yield Failure(f"an {what}'s {aspect} changes", f"{was} became {became}")


def _decompressed(case: Case, saved: ov.Model) -> Iterator[Failure]:
    model = apply_weight_decompression(saved.clone(), "f32")
    path = case.folder / "floats.xml"
    save_model(model, path)
    floats = core().read_model(path)
    known: dict[ov.Node, Array | None] = {}
    expected: dict[str, list[Array]] = {}
    for node in operations_of(saved):
        if node.get_type_name() in FOLDED:
            values = values_of(node, known)
            if values is not None and values.dtype == np.float32:
                expected.setdefault(str(values.shape), []).append(values)
    plain = Counter(raw_bytes(node) for node in constants_of(saved))
    for node in constants_of(floats):
        if node.get_output_element_type(0) != ov.Type.f32 or raw_bytes(node) in plain:
            continue
        own = np.frombuffer(raw_bytes(node), np.float32).reshape(tuple(node.get_output_shape(0)))
        found = expected.get(str(own.shape), [])
        if found and not any(np.allclose(own, other, rtol=1e-3, atol=_STEP, equal_nan=True) for other in found):
            yield Failure("decompress gives other values", f"{node.get_friendly_name()[:40]} {list(own.shape)}")


def _computed(case: Case, saved: ov.Model) -> Iterator[Failure]:
    try:
        first = case.original()
    except RuntimeError:
        case.notes.append("no CPU takes the original")
        return
    try:
        found = run(saved, case.feeds)
    except RuntimeError as error:
        yield Failure(f"does not compile or run compressed: {_generic(error)}", _where(error))
        return
    case.notes.append("ran")
    undefined = undefined_outputs(case.model)
    for number, (old, new) in enumerate(zip(first, found, strict=True)):
        if old.shape != new.shape or old.dtype != new.dtype:
            yield Failure("the CPU returns another shape or type", f"{old.dtype}{old.shape} {new.dtype}{new.shape}")
        sound = np.isfinite(old).all() and np.abs(old).max(initial=0.0) < 1e30 if old.dtype.kind == "f" else False
        if sound and number not in undefined and not np.isfinite(new).all():
            yield Failure("outputs that were finite are not", f"output {number}")
    wrong = misread(saved, found, case.feeds)
    if wrong and misread(case.model, first, case.feeds):
        case.notes.append("the CPU misreads the original")
    elif wrong:
        yield Failure("the CPU computes something else", wrong)
    elif case.number % 8 == 0:
        try:
            case.original({})
        except RuntimeError:
            case.notes.append("no CPU takes the original by default")
            return
        try:
            for wrong in misread_by_default(saved, found, case.feeds):
                yield Failure("the CPU computes something else by default", wrong)
        except RuntimeError as error:
            yield Failure(f"does not compile or run by default: {_generic(error)}", _where(error))
