"""Arrays of numbers from .npy and .npz files, whatever state those are in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ov_weight_compression.ir_utils.errors import OptionError
from ov_weight_compression.ir_utils.kinds import one_line
from ov_weight_compression.ir_utils.types import Array

__all__ = ["load_arrays"]


def load_arrays(path: Path) -> Array | dict[str, Array]:
    """The array of an .npy file, or those of an .npz file by name.

    Raises:
        OptionError: the file is damaged, of another kind, or holds something else than numbers.
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
