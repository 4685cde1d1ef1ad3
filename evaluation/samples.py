"""What is going to be run: windows of text, or sets of inputs, whichever the data and the models allow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ov_weight_compression.evaluation.comparison import DataFigures
from ov_weight_compression.evaluation.data import Data, Inputs, Source, read_data
from ov_weight_compression.evaluation.options import Options
from ov_weight_compression.evaluation.pair import Pair
from ov_weight_compression.evaluation.running import find_logits
from ov_weight_compression.evaluation.synthetic import SAMPLES, fitting_window, random_inputs, random_tokens
from ov_weight_compression.evaluation.windows import Windows, cut
from ov_weight_compression.ir_utils.errors import OptionError

__all__ = ["Samples", "prepare"]

_SYNTHETIC_WINDOWS = 8


@dataclass
class Samples:
    """The sets of inputs to run, the first few of which are remembered for a second look."""

    source: str
    synthesised: bool
    is_text: bool
    """Whether predictions are compared, not outputs."""
    windows: Windows | None
    """Where the data are token ids."""
    ids: str
    """The input of token ids."""
    notes: list[str]
    remembered: list[Inputs]
    _sets: Iterable[Inputs]
    _remember: int

    def __iter__(self) -> Iterator[Inputs]:
        for inputs in self._sets:
            if len(self.remembered) < self._remember:
                self.remembered.append(inputs)
            yield inputs

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
    feeder = pair.base_feeder
    ports = [find_logits(one.model) for one in (pair.base, pair.compressed)]
    vocabulary = ports[0].vocabulary if ports[0] else None
    if data is None:
        read = _made_up(pair, options, vocabulary)
    else:
        read = read_data(data, pair.base, feeder, options.tokenizer, pair.compressed, options.batch)
    longest = pair.base.longest_window()
    windows = cut(read.tokens, options.cut, pair.base.usual_window()) if read.tokens else None
    is_text = all(ports)
    if not (is_text and windows) and (options.save_base or options.base_logits):
        raise OptionError("save_base, base_logits: only a language model's logits over token ids or text can be kept")
    remember = options.layer_samples if options.layers else 0
    sets: Iterable[Inputs] = read.inputs or ()
    remembered: list[Inputs] = []
    if windows:
        sets = [feeder.tokens(tokens) for tokens in windows.tokens]
        remembered = list(sets[:remember])
    return Samples(
        source=read.source,
        synthesised=read.synthesised,
        is_text=is_text,
        windows=windows,
        ids=feeder.ids,
        notes=list(_remarks(read, windows, longest)),
        remembered=remembered,
        _sets=sets,
        _remember=remember,
    )


def _made_up(pair: Pair, options: Options, vocabulary: int | None) -> Data:
    model, feeder = pair.base.model, pair.base_feeder
    count = options.cut.limit
    usual_count = SAMPLES if vocabulary is None else _SYNTHETIC_WINDOWS
    if feeder.takes_tokens and not options.shapes:
        window = options.cut.window or fitting_window(model, pair.base.usual_window())
        known = vocabulary or (feeder.language.vocabulary if feeder.language else 0)
        tokens = random_tokens(known, count or usual_count, window)
        return Data("random token ids", tokens=(tokens,), synthesised=True)
    inputs = random_inputs(model, feeder, options.shapes, count or SAMPLES)
    first = next(inputs)
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in first.items())
    return Data(f"random inputs: {shapes}", inputs=itertools.chain([first], inputs), synthesised=True)


def _remarks(read: Data, windows: Windows | None, longest: int | None) -> Iterator[str]:
    if read.synthesised:
        yield "The inputs were made up from the input shapes: this is no measure of accuracy on real data."
    if windows and longest and windows.window > longest:
        yield f"Windows of {windows.window} tokens are longer than the {longest} that the model was made for."
