"""Small models of every kind that `compare` tells apart, and the plain arithmetic that it is held to."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

VOCABULARY = 50
WIDTH = 32
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


def constant(values: Any, name: str) -> ov.Node:
    node = op.constant(np.asarray(values, dtype=np.float32))
    node.set_friendly_name(name)
    return node


def weights(seed: int, noise: float) -> dict[str, np.ndarray]:
    """Embedding, hidden layer and head; `noise` moves them a little, as compression does."""
    random, moved = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    shapes = {"embedding": (VOCABULARY, WIDTH), "hidden": (WIDTH, WIDTH), "head": (2048, WIDTH)}
    return {
        name: (random.standard_normal(shape) * 0.5 + moved.standard_normal(shape) * noise).astype(np.float32)
        for name, shape in shapes.items()
    }


def named_parameter(name: str, shape: list[int], kind: Any = np.int64) -> Any:
    node = op.parameter(shape, kind, name=name)
    node.output(0).get_tensor().set_names({name})
    return node


def language_model(
    *, noise: float = 0.0, stateful: bool = True, vocabulary: int = VOCABULARY, extra: str | None = None, **options: Any
) -> ov.Model:
    """Logits that depend on the token, on its position, on the mask and, with `stateful`, on everything before.

        h_t = tanh(E[token_t] + position_t / 10 + past + cumulative mean so far);   logits = tanh(h W) H

    `extra` adds an input of that name; `past` one that is a cache of keys.
    """
    own = weights(3, noise)
    ids = named_parameter("input_ids", [-1, -1])
    mask = named_parameter("attention_mask", [-1, -1])
    positions = named_parameter("position_ids", [-1, -1], np.int32)
    beams = named_parameter("beam_idx", [-1], np.int32)
    inputs, sinks = [ids, mask, positions, beams], []
    x = op.gather(constant(own["embedding"], "embedding.weight"), ids, np.int64(0))
    x = op.add(x, op.multiply(op.unsqueeze(op.convert(positions, "f32"), np.int64(2)), np.float32(0.1)))
    x = op.multiply(x, op.unsqueeze(op.convert(mask, "f32"), np.int64(2)))
    summed = op.cumsum(x, np.int64(1))
    if stateful:
        variable = op.read_value(constant(np.zeros((1, 1, WIDTH)), "zero"), "sum", ov.Type.f32, [1, 1, WIDTH])
        gathered = op.gather(variable, beams, np.int64(0))
        summed = op.add(summed, gathered)
        last = op.add(op.reduce_sum(x, np.int64(1), True), gathered)
        sinks.append(op.assign(last, "sum"))
    if options.get("past"):
        cache = named_parameter("past_key_values.0.key", [-1, 2, -1, 4], np.float32)
        inputs.append(cache)
        summed = op.add(summed, op.reduce_sum(cache, np.array([0, 1, 2, 3])))
    if extra:
        other = named_parameter(extra, [-1, -1], np.float32)
        inputs.append(other)
        summed = op.add(summed, op.reduce_sum(other, np.array([0, 1])))
    hidden = op.tanh(op.add(x, op.multiply(summed, np.float32(0.05))))
    layer = op.matmul(hidden, constant(own["hidden"], "hidden.weight"), False, True)
    layer.set_friendly_name("hidden/MatMul")
    head = op.matmul(op.tanh(layer), constant(own["head"][:vocabulary], "head.weight"), False, True)
    head.set_friendly_name("head/MatMul")
    result = op.result(op.multiply(head, np.float32(options.get("sharpness", 1.0))))
    result.output(0).get_tensor().set_names({"logits"})
    return ov.Model([result], sinks, inputs, "language")


def perceptron(*, noise: float = 0.0, width: int = 24, inner: int = 64) -> ov.Model:
    """Two layers over `x [batch, width]`; outputs `embedding [batch, 16]` and `scores [batch, 3]`."""
    random, moved = np.random.default_rng(5), np.random.default_rng(6)

    def weight(name: str, *shape: int) -> ov.Node:
        return constant(random.standard_normal(shape) + noise * moved.standard_normal(shape), name)

    x = named_parameter("x", [-1, width], np.float32)
    first = op.matmul(x, weight("first.weight", inner, width), False, True)
    first.set_friendly_name("first/MatMul")
    second = op.matmul(op.relu(first), weight("second.weight", 16, inner), False, True)
    second.set_friendly_name("second/MatMul")
    results = [op.result(second), op.result(op.matmul(second, weight("third.weight", 3, 16), False, True))]
    for result, name in zip(results, ("embedding", "scores"), strict=True):
        result.output(0).get_tensor().set_names({name})
    return ov.Model(results, [x], "perceptron")


def logits_of(model: ov.Model, tokens: np.ndarray) -> np.ndarray:
    """One window, `[n, vocabulary]`, run in the plainest way: a request of its own."""
    compiled = ov.Core().compile_model(model, "CPU", EXACT)
    names = {name for port in compiled.inputs for name in port.get_names()}
    feed = {
        "input_ids": tokens[None].astype(np.int64),
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "position_ids": np.arange(len(tokens), dtype=np.int32)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    request = compiled.create_infer_request()
    return np.array(request.infer({name: value for name, value in feed.items() if name in names})["logits"][0])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def plain_figures(base: ov.Model, compressed: ov.Model, windows: np.ndarray) -> dict[str, float]:
    """The figures of a language model by the definitions alone."""
    kl, same, nll_base, nll = [], [], [], []
    for tokens in windows:
        a, b = logits_of(base, tokens), logits_of(compressed, tokens)
        log_p, log_q = log_softmax(a), log_softmax(b)
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
        same.append(a.argmax(axis=-1) == b.argmax(axis=-1))
        place = np.arange(len(tokens) - 1)
        nll_base.append(-log_p[place, tokens[1:]])
        nll.append(-log_q[place, tokens[1:]])
    return from_positions(*(np.concatenate(part) for part in (kl, same, nll_base, nll)))


def from_positions(kl: np.ndarray, same: np.ndarray, nll_base: np.ndarray, nll: np.ndarray) -> dict[str, float]:
    """llama.cpp's sums and formulas, as its tool has them."""

    def mean_and_uncertainty(values: np.ndarray) -> tuple[float, float]:
        n = len(values)
        mean = values.sum() / n
        variance = (values**2).sum() / n - mean * mean
        return mean, np.sqrt(max(variance, 0) / (n - 1))

    n = len(nll)
    (ln, ln_error), (ln_base, ln_base_error) = mean_and_uncertainty(nll), mean_and_uncertainty(nll_base)
    covariance = ((nll * nll_base).sum() / n - nll.sum() / n * nll_base.sum() / n) / (n - 1)
    ratio_error = np.sqrt(ln_error**2 + ln_base_error**2 - 2 * covariance)
    delta = np.exp(-nll) - np.exp(-nll_base)
    square, square_error = mean_and_uncertainty(delta**2)
    mean, error = mean_and_uncertainty(kl)
    share = same.mean()
    return {
        "kl": mean,
        "kl_error": error,
        "median": np.median(kl),
        "p99": np.percentile(kl, 99),
        "p999": np.percentile(kl, 99.9),
        "maximum": kl.max(),
        "same_top": share,
        "same_top_error": np.sqrt(share * (1 - share) / (len(same) - 1)),
        "perplexity_base": np.exp(ln_base),
        "perplexity": np.exp(ln),
        "perplexity_error": np.exp(ln) * ln_error,
        "ratio": np.exp(ln - ln_base),
        "ratio_error": np.exp(ln - ln_base) * ratio_error,
        "rms": np.sqrt(square),
        "rms_error": 0.5 / np.sqrt(square) * square_error,
    }


def found_figures(language: Any) -> dict[str, float]:
    """The same names from a comparison."""
    kl = language.kl
    return {
        "kl": kl.mean.value,
        "kl_error": kl.mean.error,
        "median": kl.median,
        "p99": kl.p99,
        "p999": kl.p999,
        "maximum": kl.maximum,
        "same_top": language.same_top.value,
        "same_top_error": language.same_top.error,
        "perplexity_base": language.perplexity_base.value,
        "perplexity": language.perplexity.value,
        "perplexity_error": language.perplexity.error,
        "ratio": language.perplexity_ratio.value,
        "ratio_error": language.perplexity_ratio.error,
        "rms": language.delta_p_rms.value,
        "rms_error": language.delta_p_rms.error,
    }
