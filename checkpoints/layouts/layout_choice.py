"""Which layout a checkpoint has, and all its quantised weights.

What the configuration says is held to the tensors: AWQ's weights that are called GPTQ's are read as what they are, and
a layer's bits and group size are those of its tensors. What no layout is known for is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from math import comb, inf
from typing import Any

from ov_weight_compression.checkpoints.layouts.bitsandbytes_layout import (
    bitsandbytes_int8,
    bitsandbytes_state,
    bitsandbytes_weight,
)
from ov_weight_compression.checkpoints.layouts.compressed_tensors_layout import (
    CompressedTensorsScheme,
    compressed_tensors_weight,
)
from ov_weight_compression.checkpoints.layouts.float_layouts import fp8_weight, gpt_oss_weight
from ov_weight_compression.checkpoints.layouts.gptq_layout import WORD_BITS, GptqVariant, awq_weight, gptq_weight
from ov_weight_compression.checkpoints.layouts.quantised_weight import QuantisedWeight, Tensors
from ov_weight_compression.checkpoints.layouts.torchao_layout import torchao_weight, torchao_weights
from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.option_kinds import shown

Config = Mapping[str, Any]

_LONGEST_EXPRESSION = 500
_MOST_STEPS = 10**8
_ONE_CHARACTER = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_HEAD_OF_GROUP = re.compile(r"\(\?(?:P?<\w+>|<?[:=!])")
_HIDING = re.compile(r"\(\?(?![:=!<P])")
"""Comments, and flags that make some: what stands in them may look as if brackets began or ended."""
_GROUP = re.compile(r"\(([^()]*)\)([*+{]?)")
_OF_ACTIVATIONS = frozenset(
    f"{what}_{part}"
    for what in ("input", "output", "k", "v", "q", "kv", "kv_cache", "k_proj_output", "v_proj_output", "activation")
    for part in ("scale", "zero_point", "global_scale", "scale_ub", "scale_inv")
)


def quantised_weights(
    config: Config, tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> dict[str, QuantisedWeight]:
    """The quantised weights of a checkpoint, by the names of the float weights that they stand for.

    Scales are looked at, codes are not.

    Args:
        config: its `quantization_config`.
        tensors: all its tensors.
        metadata: that of its files, which torchao's need.

    Raises:
        ModelError: a method, a variant or a tensor that cannot be read; names it.
    """
    method = str(config.get("quant_method", config.get("method", ""))).lower()
    if not method and "config_groups" in config:
        method = "compressed-tensors"
    if method not in METHODS:
        said = shown(config.get("quant_method")) if method else "not said"
        raise ModelError(f"quantization_config: its quant_method is {said}; those that are read: {', '.join(METHODS)}")
    found = {weight.name: weight for weight in METHODS[method](config, tensors, metadata or {})}
    if not found:
        raise ModelError(f"quantization_config: says {method}, but none of the tensors is quantised so")
    return found


def is_of_activations(name: str) -> bool:
    """Whether a tensor says how activations, or the cache, would be quantised: they are not, here."""
    return name.rpartition(".")[2] in _OF_ACTIVATIONS


def _layers(tensors: Tensors, last: str) -> list[str]:
    """The layers that have a tensor of this name."""
    return [name[: -len(last) - 1] for name in tensors if name.endswith(f".{last}")]


def _is_awq(tensors: Tensors, layer: str) -> bool:
    """Whether output channels are packed; in GPTQ's layout input channels are."""
    packed, scales = tensors[f"{layer}.qweight"], tensors.get(f"{layer}.scales")
    if scales is None or len(packed.shape) != 2 or len(scales.shape) != 2:
        return False
    return packed.shape[1] * 8 == scales.shape[1]


def _gptq(config: Config, tensors: Tensors, _: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    layout = str(config.get("checkpoint_format", config.get("format")) or "gptq")
    if layout not in ("gptq", "gptq_v2", "gemm"):
        raise ModelError(f"checkpoint_format: {shown(layout)} is arranged for a kernel; read are gptq and gptq_v2")
    meta = config.get("meta")
    writers = meta.get("quantizer") if isinstance(meta, Mapping) else None
    whole_words = "gptqmodel" in str(writers).lower()
    yield from _gptq_or_awq(config, tensors, "GPTQ", layout != "gptq_v2", whole_words)


def _gptq_or_awq(
    config: Config, tensors: Tensors, kind: str, less_one: bool, whole_words: bool = False
) -> Iterator[QuantisedWeight]:
    for layer in _layers(tensors, "qweight"):
        size = _group_size(config, layer)
        if _is_awq(tensors, layer):
            yield awq_weight(tensors, layer, size, kind if kind != "GPTQ" else "AWQ")
            continue
        bits = _bits(config, tensors, layer)
        if kind == "GPTQ" and bits not in (2, 3, 4, 8):
            raise ModelError(
                f"{layer}: {bits} bits are stored in planes by GPTQModel, which is not read; use 2, 3, 4, 8"
            )
        yield gptq_weight(tensors, layer, GptqVariant(bits, size, less_one, whole_words, kind))


def _bits(config: Config, tensors: Tensors, layer: str) -> int:
    """Bits of a layer's codes: what its zero points take, else what is said."""
    packed, zeros = tensors[f"{layer}.qweight"], tensors.get(f"{layer}.qzeros")
    if zeros is not None and len(zeros.shape) == len(packed.shape) == 2 and packed.shape[1]:
        bits, rest = divmod(zeros.shape[1] * WORD_BITS.get(zeros.dtype, 32), packed.shape[1])
        if not rest and 2 <= bits <= 8:
            return bits
    return _number(_own(config, layer).get("bits", config.get("bits", config.get("w_bit"))), f"{layer}: bits", 2, 8)


def _group_size(config: Config, layer: str) -> int:
    said = _own(config, layer).get("group_size", config.get("group_size", config.get("q_group_size", -1)))
    return _number(-1 if said is None else said, f"{layer}: group_size", -1, 1 << 20)


def _own(config: Config, layer: str) -> Mapping[str, Any]:
    """What is said of one layer: AutoRound's `extra_config`, by name or expression."""
    extra = config.get("extra_config")
    if not isinstance(extra, Mapping):
        return {}
    own = extra.get(layer) or next((said for name, said in extra.items() if _matches(str(name), layer)), None)
    return own if isinstance(own, Mapping) else {}


def _matches(expression: str, layer: str) -> bool:
    """Whether a layer's name is what a configuration's expression describes.

    Raises:
        ModelError: an expression that could take forever.
    """
    if len(expression) > _LONGEST_EXPRESSION or _steps(expression, len(layer)) > _MOST_STEPS:
        raise ModelError(
            f"quantization_config: the expression {shown(expression)} is not evaluated: it could take forever"
        )
    try:
        return re.fullmatch(expression, layer) is not None
    except re.error:
        return False


def _steps(expression: str, length: int) -> float:
    """No fewer than the ways in which an expression could be tried on so many characters; infinite where something
    that can be tried in several ways is repeated."""
    if _HIDING.search(expression):
        return inf
    plain = _HEAD_OF_GROUP.sub("(", _ONE_CHARACTER.sub("x", expression))
    repetitions = len(re.findall(r"[*+{]", plain))
    ways = comb(length + repetitions, repetitions) << plain.count("?")
    while group := _GROUP.search(plain):
        inner, repeated = group.groups()
        several = re.search(r"[*+?{|]", inner) is not None
        if several and repeated:
            return inf
        ways *= 1 + inner.count("|")
        plain = plain[: group.start()] + ("x?" if several else "x") + repeated + plain[group.end() :]
    return ways * (1 + plain.count("|"))


def _number(value: Any, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ModelError(f"{what} is {shown(value)}, must be a whole number from {low} to {high}")
    return value


def _awq(config: Config, tensors: Tensors, _: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    version = str(config.get("version") or "gemm").lower()
    if version != "gemm":
        raise ModelError(f"version: {shown(version)} of AWQ is arranged for a kernel; read is gemm")
    yield from _gptq_or_awq(config, tensors, "AWQ", less_one=True)


def _auto_round(config: Config, tensors: Tensors, metadata: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    packing = str(config.get("packing_format") or "auto_gptq").lower().removeprefix("auto_round:")
    if packing in ("auto_gptq", "auto_round", "gptqmodel", "auto_awq"):
        yield from _gptq_or_awq(config, tensors, "AutoRound", less_one=packing == "auto_gptq")
    elif packing in ("llm_compressor", "compressed-tensors"):
        yield from _compressed_tensors(config, tensors, metadata)
    else:
        raise ModelError(f"packing_format: {shown(packing)} of AutoRound is not read; auto_gptq and auto_awq are")


def _compressed_tensors(config: Config, tensors: Tensors, _: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    for layer in dict.fromkeys((*_layers(tensors, "weight_packed"), *_layers(tensors, "weight_scale"))):
        yield compressed_tensors_weight(tensors, layer, _scheme(config, tensors, layer))


def _scheme(config: Config, tensors: Tensors, layer: str) -> CompressedTensorsScheme:
    """The group of the configuration that a layer belongs to: the one that names it, else the first: of which class a
    layer is nothing here says, and its tensors must fit in any case."""
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
        raise ModelError("quantization_config: has no config_groups that say how weights are stored")
    named = [group for group in groups.values() if any(_targets(one, layer) for one in group.get("targets") or ())]
    group: Mapping[str, Any] = next(iter(named or groups.values()), {})
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        raise ModelError(f"quantization_config: the group of {layer} says nothing of weights")
    layout = str(group.get("format") or config.get("format") or "")
    if layout in ("", "dense", "mixed-precision"):
        layout = "pack-quantized" if f"{layer}.weight_packed" in tensors else "naive-quantized"
    bits = _number(weights.get("num_bits"), f"{layer}: num_bits", 2, 8)
    return CompressedTensorsScheme(layout, bits, _block(weights.get("block_structure"), "block_structure"))


def _block(said: object, what: str) -> tuple[int, int] | None:
    """Rows and columns that share a scale, where that is said."""
    if not isinstance(said, (list, tuple)) or len(said) != 2:
        return None
    return _number(said[0], what, 1, 1 << 20), _number(said[1], what, 1, 1 << 20)


def _targets(target: object, layer: str) -> bool:
    text = str(target)
    return _matches(text.removeprefix("re:") + ".*", layer) if text.startswith("re:") else text == layer


def _fp8(config: Config, tensors: Tensors, _: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    block = _block(config.get("weight_block_size"), "weight_block_size")
    for name, tensor in tensors.items():
        if tensor.dtype == "F8_E4M3" and not name.endswith(("_scale", "_scale_inv", ".scale")):
            scale = next((name + end for end in ("_scale_inv", "_scale") if name + end in tensors), f"{name}_scale")
            yield fp8_weight(tensors, name, scale, block)


def _mxfp4(_config: Config, tensors: Tensors, _: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    for name in tensors:
        if name.endswith("_blocks"):
            yield gpt_oss_weight(tensors, name.removesuffix("_blocks"))


def _bitsandbytes(_config: Config, tensors: Tensors, _: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    for name, tensor in tensors.items():
        layer, _dot, last = name.rpartition(".")
        if last == "weight" and bitsandbytes_state(tensors, name) is not None:
            yield bitsandbytes_weight(tensors, name)
        elif last == "weight" and tensor.dtype == "I8" and f"{layer}.SCB" in tensors:
            yield bitsandbytes_int8(tensors, layer)


def _torchao(_config: Config, tensors: Tensors, metadata: Mapping[str, str]) -> Iterator[QuantisedWeight]:
    for name, said in torchao_weights(metadata).items():
        yield torchao_weight(tensors, name, said)


METHODS: dict[str, Callable[[Config, Tensors, Mapping[str, str]], Iterator[QuantisedWeight]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "mxfp4": _mxfp4,
    "bitsandbytes": _bitsandbytes,
    "torchao": _torchao,
}
"""What reads each `quant_method`."""
