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

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ov_weight_compression.ir_utils.errors import ModelError, OptionError, WorkError
from ov_weight_compression.ir_utils.publish import Publication, cannot_write
from ov_weight_compression.ir_utils.types import Float32

__all__ = ["BaseLogitsReader", "BaseLogitsWriter", "Header"]

_MAGIC = b"OVBLOGIT"
_ALIGN = 64


@dataclass(frozen=True)
class Header:
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


class BaseLogitsWriter:
    """Writes the file while the base model runs: `open`, `append` each window, then `commit` or `discard`."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path, self._header = path, header
        self._publication: Publication | None = None
        self._file: BinaryIO | None = None

    def open(self) -> None:
        """Start the file."""
        text = json.dumps(asdict(self._header)).encode()
        text += b" " * (-(len(_MAGIC) + 8 + len(text)) % _ALIGN)
        try:
            self._publication = Publication(self._path)
            self._file = open(self._publication.path, "wb")  # noqa: SIM115 - closed by commit or discard
            self._file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def append(self, logits: Float32) -> None:
        """The scored positions of the next window, `[positions, vocabulary]`."""
        assert self._file is not None
        try:
            self._file.write(np.ascontiguousarray(logits, dtype="<f4").data)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def commit(self) -> None:
        """Move the complete file into place."""
        assert self._file is not None
        assert self._publication is not None
        try:
            self._file.close()
            self._publication.commit()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be written is thrown away
                self._file.close()
        if self._publication is not None:
            self._publication.discard()


class BaseLogitsReader:
    """Reads the file window by window, after checking that it is what is wanted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if not path.is_file():
            raise OptionError(f"base_logits={str(path)!r}: there is no such file")
        self._file = open(path, "rb")  # noqa: SIM115 - closed in close()
        self.header, self._start = self._read_header()
        expected = self._start + 4 * self.header.positions * self.header.vocabulary
        if path.stat().st_size != expected:
            raise ModelError(f"base logits {path}: {path.stat().st_size} bytes where {expected} belong; it is damaged")

    def _read_header(self) -> tuple[Header, int]:
        head = self._file.read(len(_MAGIC) + 8)
        try:
            if head[: len(_MAGIC)] != _MAGIC:
                raise ValueError("no such mark at its beginning")
            length = int.from_bytes(head[len(_MAGIC) :], "little")
            if length > 1 << 20:
                raise ValueError("its header has no end")
            return Header(**json.loads(self._file.read(length))), len(head) + length
        except (ValueError, TypeError) as error:
            raise ModelError(f"base logits {self._path}: not a file of base logits ({error})") from error

    def check(self, wanted: Header) -> None:
        """Raise `OptionError` unless the logits belong to what is wanted; the message says what differs."""
        texts = {
            "version": f"they are of version {self.header.version} of the format, this is {wanted.version}",
            "fingerprint": f"they are of another base model ('{self.header.model}')",
            "tokens": "they are of another text, or of the same cut otherwise",
            "window": f"their window is {self.header.window}, not {wanted.window}",
            "context": f"their context is {self.header.context}, not {wanted.context}",
            "score_last": "they count the last position of a window differently",
            "vocabulary": f"their vocabulary has {self.header.vocabulary} tokens, not {wanted.vocabulary}",
            "arithmetic": f"they were computed with {self.header.arithmetic}, not with {wanted.arithmetic}",
        }
        for name, text in texts.items():
            if getattr(self.header, name) != getattr(wanted, name):
                raise OptionError(f"base_logits={str(self._path)!r}: cannot be used here, {text}")

    def next(self, positions: int) -> Float32:
        """The logits of the next window's scored positions."""
        found = np.empty((positions, self.header.vocabulary), dtype="<f4")
        if self._file.readinto(found.reshape(-1).view(np.uint8).data) != found.nbytes:
            raise WorkError(f"base logits {self._path} ended too early")
        return found.astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
