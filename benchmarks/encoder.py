"""A sentence encoder as a case of the benchmarks: all-MiniLM-L6-v2 on the language models' English text.

The text's tokens are SmolLM2's; they are decoded by its tokenizer and encoded by the encoder's, once. The figure is the
relative L2 error of all outputs in f32, its square that of a window: errors of the same kind as KL, which is quadratic
in small changes too. Like ``divergence`` it shares no code with what it judges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from benchmarks import places, real_models
from benchmarks.accuracy_cases import Case
from benchmarks.divergence import EXACT, Divergence, Tokens

NAME = "encoder"
_LENGTH = 128


def case(shared: Path, smollm: Path, peer_python: str | None) -> Case | None:
    """The encoder with its texts, all made where they are not there yet; None where nothing exports it."""
    real = next(one for one in real_models.MODELS if one.name == "sentence encoder")
    model = real_models.fetched(real, places.CACHE / "real", peer_python)
    if model is None:
        return None
    texts = {}
    for part in ("calibration", "eval"):
        texts[part] = model.parent / f"english_{part}.npy"
        if not texts[part].exists():
            tokens = np.load(shared / "texts" / f"english_{part}.npy")
            np.save(texts[part], _encoded(tokens, smollm / "tokenizer.json", model.parent / "tokenizer.json"))
    return Case(
        name=NAME,
        model=model,
        calibration_text=texts["calibration"],
        eval_text=texts["eval"],
        group_size=64,
        length=_LENGTH,
        calibration=64 * 256 // _LENGTH,
        every=1,
    )


def _encoded(tokens: Any, theirs: Path, own: Path) -> Any:
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(own))
    encoder.no_truncation()
    encoder.no_padding()
    text = Tokenizer.from_file(str(theirs)).decode(tokens.tolist())
    return np.asarray(encoder.encode(text, add_special_tokens=False).ids, np.int32)


def measure(original: Path, model: Path, windows: Tokens, threads: int) -> Divergence:
    """``kl`` and ``error`` are relative L2, ``each`` its square; there is no likeliest token."""
    moved, whole = [], []
    for a, b in zip(_outputs(original, windows, threads), _outputs(model, windows, threads), strict=True):
        moved.append(sum(float(np.square(one - other).sum()) for one, other in zip(a, b, strict=True)))
        whole.append(sum(float(np.square(one).sum()) for one in a))
    each = np.asarray(moved) / np.mean(whole)
    error = np.std(each) / np.sqrt(len(each)) / 2 / np.sqrt(each.mean())
    return Divergence(float(np.sqrt(each.mean())), float(error), np.nan, np.nan, *windows.shape, tuple(each.tolist()))


def _outputs(model: Path, windows: Tokens, threads: int) -> Iterator[list[Any]]:
    compiled = ov.Core().compile_model(str(model), "CPU", {**EXACT, "INFERENCE_NUM_THREADS": str(threads)})
    fixed = {"attention_mask": np.ones, "token_type_ids": np.zeros}
    taken = {name: make for name, make in fixed.items() if any(name in port.get_names() for port in compiled.inputs)}
    for window in windows:
        given = {name: make((1, len(window)), np.int64) for name, make in taken.items()}
        yield [value.astype(np.float64) for value in compiled({"input_ids": window[None], **given}).values()]
