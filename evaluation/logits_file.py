"""Keeping what the base model said in a file, so that many compressed models can be compared with one run of it.

    8 bytes     "OVBLOGIT"
    8 bytes     length of the header in bytes, little endian
    header      JSON, padded with spaces so that what follows begins at a multiple of 64
    logits      little-endian float32, [scored positions, vocabulary], window after window

The header says what the logits belong to, and each of it is checked before they are used: a fingerprint of the model,
the SHA-256 of the windows, window length, context, whether the last position counts, vocabulary, and the arithmetic.

Why float32, at 4 bytes for each token of the vocabulary and position (100 windows of 256 tokens: 210 MB with a
vocabulary of 2,048, 5 GB with 49,152): figures from the file are the same to the last bit as those of a fresh run.
Relative error of the mean KL, and of the worst of median, 99 % and maximum, when base logits are kept in 16 bits:

                                                float16            16 bits between the largest log p and 16 below it
    5 M Llama, int8 (KL 9.5e-5)                 0.7 %, 6 %         23 %, 21 %
    5 M Llama, int4 (KL 0.011)                  0.002 %, 0.2 %     0.2 %, 0.1 %
    SmolLM2-135M, int8 (KL 0.0052)              0.25 %, 0.9 %      140 %, 140 %
    SmolLM2-135M, int4 (KL 0.60)                0.02 %, 0.05 %     0.8 %, 0.5 %

The file is written under another name and moved into place when it is complete; it is read a window at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ov_weight_compression.calibration.statistics import fingerprint
from ov_weight_compression.evaluation.models import Pair
from ov_weight_compression.evaluation.samples import Batch, LogitsOf, Windows
from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.publish import Publication, cannot_write
from ov_weight_compression.ir_utils.types import Float32

_MAGIC = b"OVBLOGIT"
_ALIGN = 64


@dataclass(frozen=True)
class _Header:
    """What kept logits belong to."""

    model: str
    """Name, for messages."""
    fingerprint: str
    tokens: str
    """SHA-256 of the windows."""
    windows: int
    window: int
    context: int
    score_last: bool
    positions: int
    """Scored positions of all windows."""
    vocabulary: int
    arithmetic: str
    """Device and properties, as one line."""
    version: int = 2


def _header(pair: Pair, windows: Windows) -> Callable[..., _Header]:
    """What the file says of itself, for the size of the vocabulary."""
    return partial(
        _Header,
        pair.base.name,
        fingerprint(pair.base.model),
        windows.digest,
        len(windows.tokens),
        windows.window,
        windows.context,
        windows.score_last,
        windows.positions,
        arithmetic=pair.arithmetic.describe(),
    )


@contextmanager
def kept_while_run(pair: Pair, windows: Windows, path: Path, logits_of: LogitsOf) -> Iterator[LogitsOf]:
    """The base model's logits, which are written into a file as they are asked for. The file has its place once the
    block is done, and none where it fails.

    Raises:
        WorkError: it cannot be written.
    """
    header = _header(pair, windows)
    try:
        with Publication(path) as begun, open(begun, "wb") as file:

            def kept(batch: Batch) -> Float32:
                logits = logits_of(batch)
                if not file.tell():
                    text = json.dumps(asdict(header(vocabulary=logits.shape[1]))).encode()
                    text += b" " * (-(len(_MAGIC) + 8 + len(text)) % _ALIGN)
                    file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
                file.write(np.ascontiguousarray(logits, dtype="<f4").data)
                return logits

            yield kept
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def read_again(pair: Pair, windows: Windows, path: Path) -> Iterator[LogitsOf]:
    """The base model's logits from such a file, window after window, after checking that it is what is wanted.

    Raises:
        OptionError: there is no such file, or it belongs to something else; the message says what differs.
        ModelError: it is damaged.
        WorkError: it ends too early.
    """
    if not path.is_file():
        raise OptionError(f"base_logits={str(path)!r}: there is no such file")
    header = _header(pair, windows)
    vocabulary = pair.compressed.logits.vocabulary if pair.compressed.logits else None
    with open(path, "rb") as file:
        found, start = _read_header(file, path)
        expected = start + 4 * found.positions * found.vocabulary
        if path.stat().st_size != expected:
            raise ModelError(f"base logits {path}: {path.stat().st_size} bytes where {expected} belong; it is damaged")
        _check(found, header(vocabulary=vocabulary or found.vocabulary), path)

        def following(batch: Batch) -> Float32:
            logits = np.empty((int(batch.chosen.sum()), found.vocabulary), dtype="<f4")
            if file.readinto(logits.reshape(-1).view(np.uint8).data) != logits.nbytes:
                raise WorkError(f"base logits {path} ended too early")
            return logits.astype(np.float32, copy=False)

        yield following


def _read_header(file: BinaryIO, path: Path) -> tuple[_Header, int]:
    head = file.read(len(_MAGIC) + 8)
    try:
        if head[: len(_MAGIC)] != _MAGIC:
            raise ValueError("no such mark at its beginning")
        length = int.from_bytes(head[len(_MAGIC) :], "little")
        if length > 1 << 20:
            raise ValueError("its header has no end")
        return _Header(**json.loads(file.read(length))), len(head) + length
    except (ValueError, TypeError) as error:
        raise ModelError(f"base logits {path}: not a file of base logits ({error})") from error


def _check(found: _Header, wanted: _Header, path: Path) -> None:
    texts = {
        "version": f"they are of version {found.version} of the format, this is {wanted.version}",
        "fingerprint": f"they are of another base model ('{found.model}')",
        "tokens": "they are of another text, or of the same cut otherwise",
        "window": f"their window is {found.window}, not {wanted.window}",
        "context": f"their context is {found.context}, not {wanted.context}",
        "score_last": "they count the last position of a window differently",
        "vocabulary": f"their vocabulary has {found.vocabulary} tokens, not {wanted.vocabulary}",
        "arithmetic": f"they were computed with {found.arithmetic}, not with {wanted.arithmetic}",
    }
    for name, text in texts.items():
        if getattr(found, name) != getattr(wanted, name):
            raise OptionError(f"base_logits={str(path)!r}: cannot be used here, {text}")
