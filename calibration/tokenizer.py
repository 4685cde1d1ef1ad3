"""The tokenizer that lies beside a model, whichever of the two kinds can be used here.

    openvino_tokenizer.xml    run by OpenVINO, which needs the operations of the package `openvino-tokenizers`
    tokenizer.json            read by the package `tokenizers`

Text is encoded once and whole, as the tokenizer itself does it by default: if it puts a mark at the beginning of a
text, then one mark before the first window. It is never cut short or padded. So it is for calibration and for
comparisons alike: the same file gives the same token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_weight_compression.ir_utils.errors import CompressionError, MissingExtraError, ModelError, OptionError
from ov_weight_compression.ir_utils.ir_file import openvino_reason

TOKENIZERS = ("openvino_tokenizer.xml", "tokenizer.json")
"""By their names, the first of which is preferred."""


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back."""

    source: str
    encode: Callable[[str], npt.NDArray[np.int64]]
    decode: Callable[[Sequence[int]], str]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token in its place. A letter whose bytes are spread over several tokens is shown at the last
        of them. Concatenated they are the text."""
        pieces: list[str] = []
        shown = ""
        for end in range(1, len(tokens) + 1):
            text = self.decode(tokens[:end])
            whole = not text.endswith("\ufffd") or end == len(tokens)
            pieces.append(text[len(shown) :] if whole else "")
            shown = text if whole else shown
        return pieces


def find_tokenizer(folders: Sequence[Path | None]) -> Tokenizer:
    """The first tokenizer that can be used, of those in some folders (a path to a file is taken as it is).

    Raises:
        OptionError: there is none.
        MissingExtraError: there is one, and what it needs is not installed.
    """
    files = tokenizer_files(folders)
    for file in files:
        if find_spec(_NEEDS[file.suffix][0]) is not None:
            return _open_xml(file) if file.suffix == ".xml" else _open_json(file)
    if files:
        module, extra = _NEEDS[files[-1].suffix]
        raise MissingExtraError(module, extra, f"reading text with {files[-1]}")
    places = dict.fromkeys(str(place) for place in folders if place is not None)
    looked = ", ".join(places) or "nowhere: the models were not given as files"
    raise OptionError(
        "data: text needs a tokenizer, openvino_tokenizer.xml or tokenizer.json beside the model "
        f"(looked in {looked}): put one there or, to compare, name one as tokenizer; or give token ids (.npy)"
    )


_NEEDS = {".xml": ("openvino_tokenizers", "genai"), ".json": ("tokenizers", "text")}


def tokenizer_files(folders: Sequence[Path | None]) -> list[Path]:
    """Those that lie in some folders, the ones to be preferred first; raises OptionError for a file of another kind."""
    found: list[Path] = []
    for place in filter(None, folders):
        if place.is_file() and place.suffix not in _NEEDS:
            raise OptionError(f"tokenizer={str(place)!r}: must be an openvino_tokenizer.xml or a tokenizer.json")
        files = [place] if place.is_file() else [place / name for name in TOKENIZERS]
        found += [file for file in files if file.is_file()]
    return found


def _open_json(file: Path) -> Tokenizer:
    reader = _reader(file)

    def encode(text: str) -> npt.NDArray[np.int64]:
        with _errors(file):
            return np.array(reader.encode(text).ids, dtype=np.int64)

    def decode(tokens: Sequence[int]) -> str:
        with _errors(file):
            return str(reader.decode([int(token) for token in tokens], skip_special_tokens=False))

    return Tokenizer(str(file), encode, decode)


def _open_xml(file: Path) -> Tokenizer:
    import_module("openvino_tokenizers")  # from here on every new Core knows its operations
    runtime = ov.Core()
    with _errors(file):
        tokenize = runtime.compile_model(file, "CPU")

    def encode(text: str) -> npt.NDArray[np.int64]:
        with _errors(file):
            ids: npt.NDArray[np.int64] = np.asarray(tokenize([text])["input_ids"]).astype(np.int64)[0]
        return ids

    back = file.with_name("openvino_detokenizer.xml")
    with _errors(back):
        detokenize = runtime.compile_model(back, "CPU") if back.is_file() else None

    def decode(tokens: Sequence[int]) -> str:
        if detokenize is None:
            return "".join(f"⟨{token}⟩" for token in tokens)
        with _errors(back):
            return str(detokenize([np.array([tokens], dtype=np.int64)])[0][0])

    return Tokenizer(str(file), encode, decode)


def _reader(file: Path) -> Any:
    """A `tokenizer.json`, which cuts nothing off and fills nothing up.

    Raises:
        MissingExtraError: the package that reads it is not installed.
        ModelError: it is damaged.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "text", f"reading text with {file.name}") from error
    with _errors(file):
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    """Turn whatever a tokenizer's own code raises into a `ModelError` that names its file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, CompressionError):
        raise
    except BaseException as error:  # `tokenizers` raises bare Exception, and where its code panics a BaseException
        raise ModelError(f"tokenizer {file} cannot be read: {openvino_reason(error)}") from error
