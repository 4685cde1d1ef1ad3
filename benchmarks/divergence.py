"""How far a compressed language model is from its original, in numpy alone.

For every token of held-out text both models give a distribution p (original) and q (compressed) over the next token.
The figure is the mean over tokens of the Kullback-Leibler divergence, in nats,

    KL(p || q) = sum_v p_v (log p_v - log q_v),

with both models executed in f32: ``INFERENCE_PRECISION_HINT`` f32 (no bf16 or f16 arithmetic),
``DYNAMIC_QUANTIZATION_GROUP_SIZE`` 0 (activations are not quantised) and ``KV_CACHE_PRECISION`` f32. Nothing here comes
from the package: what judges must not share code with what is judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray

EXACT = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
    "PERFORMANCE_HINT": "LATENCY",
}
Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Divergence:
    """Means over all tokens: ``kl`` in nats, ``error`` the standard error of it over windows, ``top1`` the share of
    tokens where both models hold the same token likeliest, ``perplexity`` of the compressed model; ``each`` is the
    divergence of every window."""

    kl: float
    error: float
    top1: float
    perplexity: float
    windows: int
    length: int
    each: tuple[float, ...] = ()


def windows_of(tokens: NDArray[np.int32], length: int, every: int) -> Tokens:
    """Every ``every``-th whole stretch of ``length`` tokens: ``[windows, length]``."""
    count = len(tokens) // length
    return tokens[: count * length].reshape(count, length)[::every].astype(np.int64)


def logits_of(model: Path, windows: Tokens, threads: int) -> Iterator[Floats]:
    """Logits ``[length, vocabulary]`` of each window, each from an empty cache."""
    compiled = ov.Core().compile_model(str(model), "CPU", {**EXACT, "INFERENCE_NUM_THREADS": str(threads)})
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}
    length = windows.shape[1]
    fixed = {
        "attention_mask": np.ones((1, length), np.int64),
        "position_ids": np.arange(length, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    fixed = {name: value for name, value in fixed.items() if name in names}
    for window in windows:
        request.reset_state()
        request.infer({"input_ids": window[None], **fixed})
        yield np.array(request.get_tensor("logits").data[0], np.float32)


def log_softmax(logits: Floats) -> Floats:
    """Log-probabilities, row by row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total).astype(np.float32), np.float32)


def save_reference(model: Path, windows: Tokens, path: Path, threads: int) -> None:
    """The original's log-probabilities ``[windows, length, vocabulary]`` in an .npy, once for all comparisons."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    stored: np.memmap | None = None
    for index, logits in enumerate(logits_of(model, windows, threads)):
        if stored is None:
            stored = np.lib.format.open_memmap(partial, "w+", np.float32, (len(windows), *logits.shape))
        stored[index] = log_softmax(logits)
    if stored is None:
        raise ValueError(f"{model}: the held-out text is shorter than one window of {windows.shape[1]} tokens")
    stored.flush()
    partial.replace(path)


def measure(reference: Path, model: Path, windows: Tokens, threads: int) -> Divergence:
    """Compares a compressed model with the saved log-probabilities of its original on the same windows."""
    expected = np.load(reference, mmap_mode="r")
    if expected.shape[:2] != windows.shape:
        raise ValueError(f"{reference}: made for windows {expected.shape[:2]}, asked for {windows.shape}")
    divergence, same, surprise = [], [], []
    for window, log_p, logits in zip(windows, expected, logits_of(model, windows, threads), strict=True):
        log_q = log_softmax(logits)
        each = np.einsum("tv,tv->t", np.exp(log_p), log_p - log_q, dtype=np.float64)
        divergence.append(float(each.mean()))
        same.append(float((log_p.argmax(1) == log_q.argmax(1)).mean()))
        surprise.append(float(-np.take_along_axis(log_q[:-1], window[1:, None], 1).mean()))
    return Divergence(
        kl=float(np.mean(divergence)),
        error=float(np.std(divergence) / np.sqrt(len(divergence))),
        top1=float(np.mean(same)),
        perplexity=float(np.exp(np.mean(surprise))),
        windows=windows.shape[0],
        length=windows.shape[1],
        each=tuple(divergence),
    )
