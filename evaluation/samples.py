"""What was asked for and what is going to be run: windows of text, or sets of inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ov_weight_compression.evaluation.comparison import DataFigures
from ov_weight_compression.evaluation.data import Data, Inputs, Source, read_data
from ov_weight_compression.evaluation.models import Pair
from ov_weight_compression.evaluation.synthetic import SAMPLES, fitting_window, random_inputs, random_tokens
from ov_weight_compression.evaluation.windows import Cut, Windows, cut
from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.kinds import count, flag, optional

__all__ = ["Options", "Samples", "prepare"]

_SYNTHETIC_WINDOWS = 8


@dataclass(frozen=True)
class Options:
    """What `compare` was asked for; its docstring says what each of them means."""

    cut: Cut = field(default_factory=Cut)
    tokenizer: Path | None = None
    batch: int | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    layers: bool = True
    layer_samples: int = 2
    save_base: Path | None = None
    base_logits: Path | None = None

    def __post_init__(self) -> None:
        count(0).parse("layer_samples", self.layer_samples)
        optional(count(1), "batch", self.batch)
        flag().parse("layers", self.layers)
        if self.save_base and self.base_logits:
            raise OptionError("save_base, base_logits: give one of them, the logits are either written or read")
        if self.tokenizer and not self.tokenizer.exists():
            raise OptionError(f"tokenizer={str(self.tokenizer)!r}: there is no such file or folder")
        if self.save_base and not self.save_base.parent.is_dir():
            raise OptionError(f"save_base={str(self.save_base)!r}: there is no folder {self.save_base.parent}")


@dataclass(frozen=True, eq=False)
class Samples:
    """The sets of inputs to run."""

    source: str
    synthesised: bool
    is_text: bool
    """Whether predictions are compared, not outputs."""
    windows: Windows | None
    """Where the data are token ids."""
    ids: str
    """The input of token ids."""
    notes: tuple[str, ...]
    sets: Iterable[Inputs]
    """All of them, to be gone through once."""
    first: tuple[Inputs, ...]
    """Those on which the layers' outputs are compared."""

    def figures(self, count: int) -> DataFigures:
        """What to say of the data, after `count` of them were run."""
        found = self.windows
        if found is None:
            return DataFigures(self.source, self.synthesised, count)
        if not self.is_text:
            return DataFigures(self.source, self.synthesised, count, found.window, found.stride)
        return DataFigures(
            self.source, self.synthesised, count, found.window, found.stride, found.context, found.score_last
        )


def prepare(pair: Pair, data: Source, options: Options) -> Samples:
    """Read the data, or make it up."""
    feeder = pair.base.feeder
    vocabulary = pair.base.logits.vocabulary if pair.base.logits else None
    if data is None:
        read = _made_up(pair, options, vocabulary)
    else:
        read = read_data(data, pair.base, options.tokenizer, pair.compressed, options.batch)
    longest = pair.base.longest_window()
    windows = cut(read.tokens, options.cut, pair.base.usual_window()) if read.tokens else None
    is_text = pair.base.logits is not None and pair.compressed.logits is not None
    if not (is_text and windows) and (options.save_base or options.base_logits):
        raise OptionError("save_base, base_logits: only a language model's logits over token ids or text can be kept")
    sets = (feeder.tokens(tokens) for tokens in windows.tokens) if windows else iter(read.inputs or ())
    first = tuple(itertools.islice(sets, options.layer_samples if options.layers else 0))
    return Samples(
        source=read.source,
        synthesised=read.synthesised,
        is_text=is_text,
        windows=windows,
        ids=feeder.ids,
        notes=tuple(_remarks(read, windows, longest)),
        sets=itertools.chain(first, sets),
        first=first,
    )


def _made_up(pair: Pair, options: Options, vocabulary: int | None) -> Data:
    model, feeder = pair.base.model, pair.base.feeder
    wanted = options.cut.limit
    usual_count = SAMPLES if vocabulary is None else _SYNTHETIC_WINDOWS
    if feeder.takes_tokens and not options.shapes:
        window = options.cut.window or fitting_window(model, pair.base.usual_window())
        known = vocabulary or (feeder.language.vocabulary if feeder.language else 0)
        tokens = random_tokens(known, wanted or usual_count, window)
        return Data("random token ids", tokens=(tokens,), synthesised=True)
    inputs = random_inputs(model, feeder, options.shapes, wanted or SAMPLES)
    first = next(inputs)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in first.items())
    return Data(f"random inputs: {shapes}", inputs=itertools.chain([first], inputs), synthesised=True)


def _remarks(read: Data, windows: Windows | None, longest: int | None) -> Iterator[str]:
    if read.synthesised:
        yield "The inputs were made up from the input shapes: this is no measure of accuracy on real data."
    if windows and longest and windows.window > longest:
        yield f"Windows of {windows.window} tokens are longer than the {longest} that the model was made for."
