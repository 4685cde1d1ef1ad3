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
from openvino import opset13 as op

from ov_weight_compression.evaluation import inspect
from ov_weight_compression.ir_utils.errors import CompressionError
from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import Report, WeightCompression, apply_weight_decompression
from tests.fuzz.campaign import ORIGINAL, Failure
from tests.fuzz.levels import misplaced_codes
from tests.fuzz.stored import FOLDED, raw_bytes, values_of
from tests.running import EXACT, files_of

__all__ = ["Case", "check"]

Array = np.ndarray[Any, np.dtype[Any]]
_INDICES = ("i64", "i32")
_TOLERANCE = 1e-3
_BF16 = 2.0**-7
_STEP = 6 * 2.0**-25
"""The largest code of f4e2m1 times what a scale is off that a chain computes in f16, below f16's normal numbers."""
_ROUNDINGS = 4
_ROUNDED = 4.0
"""How often more a compiled model may be off than one whose weights are rounded to f16: plugins fold chains in f16."""


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
        outputs = _run(self.model, self.feeds, config)
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
        return _core().read_model(path)


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
        yield from misplaced_codes(_constants(case.model), _constants(saved), report)
    yield from _signature(case.model, saved)
    yield from _decompressed(case, saved)
    if case.options.get("device") in (None, "CPU"):  # for another device nothing is promised of CPUs
        yield from _computed(case, saved)


def _core() -> ov.Core:
    if not hasattr(_core, "core"):
        _core.core = ov.Core()  # type: ignore[attr-defined]
    return _core.core  # type: ignore[attr-defined, no-any-return]


def _where(error: BaseException) -> str:
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if "/tests/" not in place.filename] or list(places)
    last = [f"{Path(place.filename).name}:{place.lineno}" for place in own[-3:]]
    return f"{' '.join(last)}: {' '.join(str(error).split())[-300:]}"


def _generic(error: BaseException) -> str:
    """The last line of a message without what is peculiar to one case."""
    line = (str(error).strip().splitlines() or [""])[-1]
    return re.sub(r"'[^']*'|\d+(\.\d+)?(e[+-]?\d+)?", "…", line)[:90]


def _operations(model: ov.Model) -> Iterator[ov.Node]:
    """Of a model and of the bodies in it."""
    for node in model.get_ordered_ops():
        yield node
        if node.get_type_name() == "If":
            yield from _operations(node.get_then_body())
            yield from _operations(node.get_else_body())
        elif node.get_type_name() in ("Loop", "TensorIterator"):
            yield from _operations(node.get_function() if node.get_type_name() == "Loop" else node.get_body())


def _constants(model: ov.Model) -> list[ov.Node]:
    return [node for node in _operations(model) if node.get_type_name() == "Constant"]


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
        for node in _constants(model)
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
        for node in _constants(model)
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


def _referenced(saved: ov.Model, rounding: int = 0, in_bf16: bool = False) -> ov.Model:
    """The model with every chain of constants replaced with its values by numpy; rounded, in ways that differ with the
    number, where one is given."""
    model = saved.clone()
    known: dict[ov.Node, Array | None] = {}
    bf16 = in_bf16 or any(
        node.get_output_size() and node.get_output_element_type(0) == ov.Type.bf16 for node in _operations(model)
    )
    for node in list(_operations(model)):
        if node.get_type_name() not in FOLDED or node.get_output_element_type(0).to_string() not in _FLOATS:
            continue
        values = values_of(node, known)
        targets = list(node.output(0).get_target_inputs())
        inside = [one for one in targets if one.get_node().get_type_name() in FOLDED]
        if values is None or len(inside) == len(targets) > 0:
            continue
        plain = _coarse(values, bf16, rounding) if rounding else values
        constant: ov.Node = op.constant(np.ascontiguousarray(plain, dtype=np.float32))
        if node.get_output_element_type(0) != ov.Type.f32:
            constant = op.convert(constant, node.get_output_element_type(0).to_string())
        for target in targets:
            if values_of(target.get_node(), known) is None:
                target.replace_source_output(constant.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _coarse(values: Array, bf16: bool, rounding: int) -> Array:
    """Off by as much as a plugin may round that folds a chain in the type that the graph says, in either direction."""
    signs = np.random.default_rng(rounding).choice(np.array([-1, 1], np.float32), values.shape)
    return values + signs * np.maximum(np.abs(values) * np.float32(2**-8 if bf16 else 2**-11), np.float32(2**-25))


_FLOATS = ("f32", "f16", "bf16", "f64")


def _decompressed(case: Case, saved: ov.Model) -> Iterator[Failure]:
    model = apply_weight_decompression(saved.clone(), "f32")
    path = case.folder / "floats.xml"
    save_model(model, path)
    floats = _core().read_model(path)
    known: dict[ov.Node, Array | None] = {}
    expected: dict[str, list[Array]] = {}
    for node in _operations(saved):
        if node.get_type_name() in FOLDED:
            values = values_of(node, known)
            if values is not None and values.dtype == np.float32:
                expected.setdefault(str(values.shape), []).append(values)
    plain = Counter(raw_bytes(node) for node in _constants(saved))
    for node in _constants(floats):
        if node.get_output_element_type(0) != ov.Type.f32 or raw_bytes(node) in plain:
            continue
        own = np.frombuffer(raw_bytes(node), np.float32).reshape(tuple(node.get_output_shape(0)))
        found = expected.get(str(own.shape), [])
        if found and not any(np.allclose(own, other, rtol=1e-3, atol=_STEP, equal_nan=True) for other in found):
            yield Failure("decompress gives other values", f"{node.get_friendly_name()[:40]} {list(own.shape)}")


def _run(model: ov.Model, feeds: Sequence[Any], config: Mapping[str, Any] = EXACT) -> list[Array]:
    request = _core().compile_model(model, "CPU", dict(config)).create_infer_request()
    results = request.infer(dict(enumerate(feeds)))
    return [_numbers(request.get_tensor(port)) for port in results]


def _numbers(tensor: ov.Tensor) -> Array:
    """A tensor's values; OpenVINO hands the bits of bf16 out as those of f16."""
    values = np.array(tensor.data)
    if tensor.get_element_type() != ov.Type.bf16:
        return values
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _computed(case: Case, saved: ov.Model) -> Iterator[Failure]:
    try:
        first = case.original()
    except RuntimeError:
        case.notes.append("no CPU takes the original")
        return
    try:
        found = _run(saved, case.feeds)
    except RuntimeError as error:
        yield Failure(f"does not compile or run compressed: {_generic(error)}", _where(error))
        return
    case.notes.append("ran")
    undefined = _undefined(case.model)
    for number, (old, new) in enumerate(zip(first, found, strict=True)):
        if old.shape != new.shape or old.dtype != new.dtype:
            yield Failure("the CPU returns another shape or type", f"{old.dtype}{old.shape} {new.dtype}{new.shape}")
        sound = np.isfinite(old).all() and np.abs(old).max(initial=0.0) < 1e30 if old.dtype.kind == "f" else False
        if sound and number not in undefined and not np.isfinite(new).all():
            yield Failure("outputs that were finite are not", f"output {number}")
    wrong = _misread(saved, found, case.feeds)
    if wrong and _misread(case.model, first, case.feeds):
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
            yield from _deployed(saved, found, case.feeds)
        except RuntimeError as error:
            yield Failure(f"does not compile or run by default: {_generic(error)}", _where(error))


def _deployed(saved: ov.Model, exact: Sequence[Array], feeds: Sequence[Any]) -> Iterator[Failure]:
    """As users run it: in bf16 where the CPU has that, activations quantised. Compared with the float model run so."""
    found, floats = _run(saved, feeds, {}), [_run(_referenced(saved), feeds, {})]
    undefined = _undefined(saved)
    for number, (new, wanted) in enumerate(zip(found, exact, strict=True)):
        finite = np.isfinite(wanted).all() and np.isfinite(floats[0][number]).all()
        if new.dtype.kind != "f" or number in undefined or not finite:
            continue
        largest, error = float(np.abs(wanted).max(initial=0.0)), _largest_error(new, wanted)
        if error <= _ROUNDED * _largest_error(floats[0][number], wanted) + 0.05 * largest + 1e-30:
            continue
        if len(floats) == 1:  # one rounding may come out well by chance where sums cancel, others do not
            floats += [_run(_referenced(saved, seed, True), feeds, {}) for seed in range(1, _ROUNDINGS + 1)]
            floats.append(_run(_with_activations_in_8_bits(_referenced(saved)), feeds))
        if not error <= _ROUNDED * max(_largest_error(one[number], wanted) for one in floats) + 0.05 * largest:
            yield Failure(
                "the CPU computes something else by default", f"output {number}: off by {error / largest:.2%}"
            )


def _with_activations_in_8_bits(model: ov.Model) -> ov.Model:
    """What MatMuls multiply constants with is rounded, as CPUs do it: to 255 levels in groups of 32, or in a row."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_a"]:
            continue
        value, shape = node.input_value(0), node.get_input_partial_shape(0)
        weight = node.input_value(1).get_node()
        source = weight.input_value(0).get_node() if weight.get_type_name() == "Convert" else weight
        static = shape.rank.is_static and len(shape) > 1 and shape[len(shape) - 1].is_static
        if source.get_type_name() != "Constant" or not static:
            continue
        columns = shape[len(shape) - 1].get_length()
        kept = [0] * (len(shape) - 1)
        cut = op.reshape(op.convert(value, "f32"), np.array([*kept, -1, 32 if columns % 32 == 0 else columns]), True)
        step = op.divide(op.reduce_max(op.abs(cut), np.array([-1]), True), np.float32(127))
        step = op.maximum(step, np.float32(1e-30))
        rounded = op.multiply(op.round(op.divide(cut, step), "half_to_even"), step)
        back = op.convert(op.reshape(rounded, np.array([*kept, columns]), True), value.get_element_type().to_string())
        node.input(0).replace_source_output(back.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _largest_error(found: Array, wanted: Array) -> float:
    with np.errstate(all="ignore"):
        return float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))


def _undefined(model: ov.Model) -> set[int]:
    """Outputs that depend on a sum over nothing: the CPU plugin leaves what was in the memory there (seen of MatMuls of
    no columns, which are not always zeros)."""
    empty: dict[ov.Node, bool] = {}
    for node in model.get_ordered_ops():
        shapes = [value.get_partial_shape() for value in node.input_values()]
        sums = node.get_type_name() == "MatMul" and any(
            shape.is_static and 0 in list(shape.to_shape()) for shape in shapes
        )
        empty[node] = sums or any(empty[value.get_node()] for value in node.input_values())
    return {number for number, output in enumerate(model.outputs) if empty[output.get_node()]}


def _computes_in_bf16(model: ov.Model) -> bool:
    """Whether some layer's outputs are rounded to bf16: an order of adding that differs is a step of that then."""
    kinds = ("MatMul", "Convolution", "Gather", "Add")
    layers = [node for node in _operations(model) if node.get_type_name() in kinds]
    return any(node.get_output_element_type(0) == ov.Type.bf16 for node in layers)


def _changes(model: ov.Model, feeds: Sequence[Any], number: int) -> bool:
    """Whether the floats alone do not give an output twice: seen of an If with infinities in a branch not taken."""
    runs = [_run(_referenced(model), feeds)[number] for _ in range(6)]
    return any(not np.array_equal(runs[0], other, equal_nan=True) for other in runs[1:])


def _misread(model: ov.Model, outputs: Sequence[Array], feeds: Sequence[Any]) -> str:
    """Where outputs are not what numpy's weights give, by more than rounding explains."""
    try:
        expected = _run(_referenced(model), feeds)
        undefined = _undefined(model)
        near, tolerance = expected, _BF16 if _computes_in_bf16(model) else _TOLERANCE
        for number, (new, wanted) in enumerate(zip(outputs, expected, strict=True)):
            if new.dtype.kind != "f" or new.shape != wanted.shape or number in undefined:
                continue
            if not np.isfinite(wanted).all() or not np.isfinite(new).all():
                continue
            largest = float(np.abs(wanted).max(initial=0.0))
            error = float(np.abs(new.astype(np.float64) - wanted).max(initial=0.0))
            if error <= tolerance * largest + 1e-30:
                continue
            if near is expected:
                near = _run(_referenced(model, 1), feeds)
            with np.errstate(all="ignore"):
                rounding = np.abs(near[number] - wanted).max(initial=0.0)
            if not error <= _ROUNDED * rounding + tolerance * largest:
                if _changes(model, feeds, number):  # what the floats give is what was in the memory
                    continue
                return f"output {number}: off by {error:.3g} of {largest:.3g} ({error / (largest or 1.0):.2%})"
    except RuntimeError:  # the floats themselves are what the CPU does not take
        return ""
    return ""
