"""Recorded inputs as data: one .npz a sample, read when it is asked for, so that they need not fit into memory.

    FOLDER/openvino_encoder_model/00000.npz     the inputs of openvino_encoder_model.xml by name
    FOLDER/unet/openvino_model/00000.npz        those of unet/openvino_model.xml

`record_inputs` writes such folders; whoever has the arrays can write one as well. In place of a model's folder there
may be one file, FOLDER/openvino_encoder_model.npz, with samples along the arrays' first axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import overload

import numpy as np

from ov_weight_compression.ir_utils.errors import OptionError, one_line
from ov_weight_compression.ir_utils.types import Array

__all__ = ["RecordedSamples", "load_arrays", "recorded_data"]


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
