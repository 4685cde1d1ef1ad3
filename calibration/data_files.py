"""Data as files and as bare arrays, read in one way for calibration and for comparisons.

    .npy             an array
    .npz             arrays by name
    a folder         recorded samples, an .npz each (see below)
    any other file   text in UTF-8, through the tokenizer that lies beside the model: token ids

What an array is depends on the model. Token ids, where that takes nothing else; the one input of a model that takes
something else; arrays with the names of inputs are those inputs. Arrays of inputs that have one axis more than the
model's input hold samples along their first axis; with `batch`, arrays are cut along their first axis instead, so many
rows at a time.

A folder of recorded samples has one .npz a sample, read when it is asked for, so that they need not fit into memory:

    FOLDER/openvino_encoder_model/00000.npz     the inputs of openvino_encoder_model.xml by name
    FOLDER/unet/openvino_model/00000.npz        those of unet/openvino_model.xml

`record_inputs` writes such folders; whoever has the arrays can write one as well. In place of a model's folder there
may be one file, FOLDER/openvino_encoder_model.npz, with samples along the arrays' first axes.

The tokenizer is one that lies beside a model, whichever of two kinds can be used here:

    openvino_tokenizer.xml    run by OpenVINO, which needs the operations of the package `openvino-tokenizers`
    tokenizer.json            read by the package `tokenizers`

Text is encoded once and whole, as the tokenizer itself does it by default: if it puts a mark at the beginning of a
text, then one mark before the first window. It is never cut short or padded. So it is for calibration and for
comparisons alike: the same file gives the same token ids.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import overload

import numpy as np
import numpy.typing as npt
import openvino as ov

from ov_weight_compression.calibration.model_inputs import ModelInputs
from ov_weight_compression.ir_utils import option_kinds
from ov_weight_compression.ir_utils.errors import CompressionError, MissingExtraError, ModelError, OptionError, one_line
from ov_weight_compression.ir_utils.ir_file import openvino_reason
from ov_weight_compression.ir_utils.types import Array

Arrays = Array | Mapping[str, Array]
"""One array, or several by name."""


def is_text(path: Path) -> bool:
    """Whether a file is read as text."""
    return path.suffix not in (".npy", ".npz")


def read_file(file: object, places: Sequence[Path | None], most: int | None = None) -> tuple[Arrays, str]:
    """What a file holds, and what to call it.

    Args:
        file: a path.
        places: files and folders in which a tokenizer for text is looked for.
        most: bytes of a text that are read; all.

    Raises:
        OptionError: there is no such file, it is damaged, holds nothing or something else; or text without a tokenizer.
        ModelError: the tokenizer is damaged.
        MissingExtraError: the tokenizer needs a package that is not installed.
    """
    path: Path = option_kinds.PATH.parse("data", file)
    if not path.is_file():
        raise OptionError(f"data={str(path)!r}: there is no such file")
    if not is_text(path):
        return load_arrays(path), path.name
    text = _read_text(path, most)
    tokenizer = find_tokenizer(places)
    if tokenizer is None:
        looked = ", ".join(dict.fromkeys(str(place) for place in places if place is not None))
        raise OptionError(
            "data: text needs a tokenizer, openvino_tokenizer.xml or tokenizer.json beside the model (looked in "
            f"{looked or 'nowhere: the models were not given as files'}): put one there or, to compare, name one as "
            "tokenizer; or give token ids (.npy)"
        )
    return tokenizer.encode(text), f"{path.name} (through {Path(tokenizer.source).name})"


def _read_text(path: Path, most: int | None) -> str:
    try:
        with path.open("rb") as file:
            read = file.read(-1 if most is None else most)
            text = codecs.getincrementaldecoder("utf-8")().decode(read, final=not file.read(1))
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"data={str(path)!r}: cannot be read as text ({error})") from error
    if not text.strip():
        raise OptionError(f"data={str(path)!r}: the file holds no text")
    return text


def sort_arrays(arrays: Arrays, inputs: ModelInputs, where: str = "") -> tuple[Array, ...] | dict[str, Array]:
    """What arrays are to a model: arrays of token ids, or inputs by name.

    Args:
        arrays: see the module.
        inputs: those of the model.
        where: what to say of the arrays' place in errors; the option.

    Raises:
        OptionError: they are neither.
    """
    where = where or inputs.option
    if not isinstance(arrays, Mapping):
        if inputs.takes_tokens:
            return (arrays,)
        if len(inputs.names) == 1:
            return {inputs.names[0]: arrays}
        raise OptionError(
            f"{where}: one array is not enough for a model with the inputs {inputs.listed}: give dictionaries "
            "or an .npz file with these names"
        )
    if not arrays:
        raise OptionError(f"{where}: there is no array in it")
    found = {inputs.find(name): array for name, array in arrays.items()}
    if set(found) == {inputs.ids} and inputs.takes_tokens and found[inputs.ids].ndim <= 2:
        return (found[inputs.ids],)
    if None not in found:
        return inputs.named(arrays)
    if inputs.takes_tokens and all(np.issubdtype(array.dtype, np.integer) for array in arrays.values()):
        return tuple(arrays.values())
    raise OptionError(
        f"{where}: its arrays ({', '.join(map(str, arrays))}) are not inputs of the model ({inputs.listed})"
    )


def rows_of(arrays: Mapping[str, Array], inputs: ModelInputs, batch: int | None) -> Iterator[dict[str, Array]]:
    """Inputs by name as they are run: taken apart along an additional axis, or cut into batches.

    Raises:
        OptionError: they cannot be cut, as they have not the same number of rows.
    """
    if not arrays:
        raise OptionError(f"{inputs.option}: a set of inputs is empty")
    sizes = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    same = len(set(sizes.values())) == 1
    if same and all(inputs.rank(name) == array.ndim - 1 for name, array in arrays.items()):
        for row in range(next(iter(sizes.values()))):
            yield {name: array[row] for name, array in arrays.items()}
    elif batch is None:
        yield dict(arrays)
    elif not same or 0 in sizes.values():
        told = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise OptionError(f"{inputs.option}: its arrays disagree about the number of rows, or have none: {told}")
    else:
        for start in range(0, next(iter(sizes.values())), batch):
            yield {name: array[start : start + batch] for name, array in arrays.items()}


class RecordedSamples(Sequence[dict[str, Array]]):
    """Samples of one model: dictionaries of arrays by the inputs' names, each read from its file when it is asked
    for."""

    def __init__(self, files: Sequence[Path], owner: object = None) -> None:
        self._files = tuple(files)
        self._owner = owner  # of the folder that they lie in, which goes with its last reader

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return map(_load_sample, self._files)

    @overload
    def __getitem__(self, place: int) -> dict[str, Array]: ...
    @overload
    def __getitem__(self, place: slice) -> RecordedSamples: ...
    def __getitem__(self, place: int | slice) -> dict[str, Array] | RecordedSamples:
        if isinstance(place, slice):
            return RecordedSamples(self._files[place], self._owner)
        return _load_sample(self._files[place])


def load_arrays(path: Path) -> Array | dict[str, Array]:
    """What a .npy or .npz file holds.

    Raises:
        OptionError: it cannot be read, or holds something else than numbers.
    """
    try:
        read = np.load(path, allow_pickle=False)
        if not isinstance(read, np.ndarray):
            with read:
                read = {name: read[name] for name in read.files}
    except (Exception, MemoryError) as error:  # of zipfile, zlib, tokenize, struct and numpy itself, as they come
        reason = one_line(str(error), 200) or type(error).__name__
        raise OptionError(f"data={str(path)!r}: cannot be read as numpy arrays ({reason})") from error
    found: Array | dict[str, Array] = read
    for name, array in found.items() if isinstance(found, dict) else [("", found)]:
        if array.dtype.kind not in "biuf":
            what = f"its array {one_line(name, 60)!r}" if name else "it"
            raise OptionError(f"data={str(path)!r}: {what} holds no numbers but {one_line(str(array.dtype), 60)}")
    return found


def _load_sample(path: Path) -> dict[str, Array]:
    found = load_arrays(path)
    assert isinstance(found, dict)
    return found


def recorded_data(folder: Path, models: Sequence[Path | str | None]) -> RecordedSamples | Path:
    """The samples in a folder: those that lie in it themselves, else those of one of `models`, by their paths; a file
    where all of a model's samples are in one.

    Raises:
        OptionError: there are none.
    """
    names = [name for model in models if model is not None for name in _names(PurePosixPath(Path(model).as_posix()))]
    files = sorted(folder.glob("*.npz"))
    stems = {PurePosixPath(name).stem for name in names}
    if files and not any(file.stem in stems for file in files):
        return RecordedSamples(files)
    for name in names:
        own = folder / PurePosixPath(name).with_suffix("")
        files = sorted(own.glob("*.npz"))
        if files:
            return RecordedSamples(files)
        if own.with_name(f"{own.name}.npz").is_file():
            return own.with_name(f"{own.name}.npz")
    told = f" for {names[0]}: expected {PurePosixPath(names[0]).with_suffix('')}/*.npz" if names else ""
    raise OptionError(
        f"data={str(folder)!r}: no samples in this folder{told}. record_inputs records them; a recipe gives a "
        "file data of its own, or 8 bits, which need none"
    )


def _names(model: PurePosixPath) -> Iterator[str]:
    """What a model may be called in a folder of samples: its path in its own folder, or an end of it, which may be
    where that folder lies elsewhere."""
    parts = model.parts[-2:] if model.is_absolute() else model.parts
    for start in range(len(parts)):
        yield "/".join(parts[start:])


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


def find_tokenizer(folders: Sequence[Path | None]) -> Tokenizer | None:
    """The first tokenizer that can be used, of those in some folders (a path to a file is taken as it is); None where
    there is none.

    Raises:
        OptionError: a file is of another kind.
        MissingExtraError: there is a tokenizer, and what it needs is not installed.
    """
    found: list[Path] = []
    for place in filter(None, folders):
        if place.is_file() and place.suffix not in _NEEDS:
            raise OptionError(f"tokenizer={str(place)!r}: must be an openvino_tokenizer.xml or a tokenizer.json")
        files = [place] if place.is_file() else [place / name for name in TOKENIZERS]
        found += [file for file in files if file.is_file()]
    for file in found:
        if find_spec(_NEEDS[file.suffix][0]) is not None:
            return _open_xml(file) if file.suffix == ".xml" else _open_json(file)
    if not found:
        return None
    module, extra = _NEEDS[found[-1].suffix]
    raise MissingExtraError(module, extra, f"reading text with {found[-1]}")


_NEEDS = {".xml": ("openvino_tokenizers", "genai"), ".json": ("tokenizers", "text")}


def _open_json(file: Path) -> Tokenizer:
    """A `tokenizer.json`, which cuts nothing off and fills nothing up."""
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError as error:
        raise MissingExtraError("tokenizers", "text", f"reading text with {file.name}") from error
    with _errors(file):
        reader = Reader.from_file(str(file))
        reader.no_truncation()
        reader.no_padding()

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


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    """Turn whatever a tokenizer's own code raises into a `ModelError` that names its file."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, CompressionError):
        raise
    except BaseException as error:  # `tokenizers` raises bare Exception, and where its code panics a BaseException
        raise ModelError(f"tokenizer {file} cannot be read: {openvino_reason(error)}") from error
