"""Random options that are valid by themselves: whether they fit the model is for the package to say."""

from __future__ import annotations

from typing import Any

import numpy as np

_MODES = (
    *("int8_asym", "int8_asym", "int8_sym", "int4_asym", "int4_asym", "int4_sym", "int4_sym", "int3_sym", "int2_asym"),
    *("int2_sym", "nf4", "fp4", "mxfp4", "nvfp4", "fp8_e4m3", "mxfp8_e4m3", "cb4", "codebook", "adaptive_codebook"),
)
_FIXED = ("mxfp4", "nvfp4", "mxfp8_e4m3")
_GROUPS = (-1, -1, 2, 3, 4, 5, 7, 8, 9, 16, 16, 20, 32, 32, 33, 40, 48, 64, 64, 72, 100, 128, 144, 256, 1000)
_DATA = ("scale_estimation", "gptq", "accuracy", "lora_correction", "dataset alone", "awq", "sensitivity_metric")


def settings(random: np.random.Generator, names: list[str], with_data: bool) -> dict[str, Any]:
    """Keyword arguments of the pass. `names` are those of the model's constants and layers; `dataset` is the number of
    samples, 0 for none."""

    def pick(*choices: Any) -> Any:
        return choices[int(random.integers(len(choices)))]

    def chance(share: float) -> bool:
        return bool(random.random() < share)

    mode = pick(*_MODES)
    if with_data and mode.startswith("int8"):
        mode = pick("int4_sym", "int4_asym", "nf4")
    chosen: dict[str, Any] = {"mode": mode}
    if not mode.startswith("int8"):
        if chance(0.6) and mode not in _FIXED:
            chosen["group_size"] = pick(*_GROUPS)
        if chance(0.7):
            chosen["all_layers"] = True
        if chance(0.4):
            chosen["backup_mode"] = pick("none", "int8_sym", "int8_asym", "fp8_e4m3", "mxfp8_e4m3")
        if chance(0.25):
            chosen["ratio"] = pick(0, 1, 0.5, 0.3, 0.8, float(random.random()))
        if not with_data and chance(0.15):
            chosen["awq"] = True
        if not with_data and chance(0.05):
            chosen["accuracy"] = "fast"
    if chance(0.2):
        chosen["group_size_fallback"] = pick("adjust", "ignore", "error")
    if chance(0.4) and not with_data and "accuracy" not in chosen:
        chosen["scale_search"] = pick("auto", "off", 1, 2, 3, 8, 30)
    if mode == "codebook":
        table = random.standard_normal(pick(2, 3, 7, 15, 16, 17, 40, 256, 257)) * pick(0.01, 1, 100)
        chosen.update(codebook=[float(one) for one in table], codebook_type=pick("f8e4m3", "f16", "f32", "i8"))
        chosen["codebook"][:2] = [-1.0, 1.0]
    if mode == "adaptive_codebook":
        chosen.update(
            codebook_size=pick(2, 3, 7, 16, 17, 200, 300), codebook_sharing=pick("none", "block", "across_blocks")
        )
        chosen["codebook_type"] = pick("f8e4m3", "f16", "f32", "i8")
    if names and chance(0.2):
        chosen["rules"] = [_rule(random, names) for _ in range(pick(1, 1, 2, 3))]
    if names and chance(0.15):
        chosen["ignored_scope"] = pick(
            {"names": [pick(*names)], "validate": False},
            {"types": [pick("MatMul", "Gather", "Convolution")], "validate": False},
            {"patterns": [".*[02468]$"], "validate": False},
            {"names": [pick(*names), pick(*names)]},
        )
    if chance(0.15):
        chosen["device"] = pick("CPU", "GPU", "NPU", "AUTO")
    if chance(0.1):
        chosen["runtime_hints"] = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": pick(0, 32, -1), "KV_CACHE_PRECISION": "u8"}
    if chance(0.6):
        chosen["threads"] = pick(1, 1, 2, 3, 4)
    if chance(0.3):
        chosen["lazy"] = False
    if with_data:
        _add_data(random, chosen)
    return chosen


def _rule(random: np.random.Generator, names: list[str]) -> tuple[str, Any]:
    name = names[int(random.integers(len(names)))]
    pattern = [name, name, "*", f"{name[:5]}*"][int(random.integers(4))]
    mode = _MODES[int(random.integers(len(_MODES) - 2))]
    if random.random() < 0.15:
        return pattern, None
    if mode not in _FIXED and random.random() < 0.4:
        return pattern, {"mode": mode, "group_size": _GROUPS[int(random.integers(len(_GROUPS)))]}
    return pattern, mode


def _add_data(random: np.random.Generator, chosen: dict[str, Any]) -> None:
    chosen["dataset"] = int(random.integers(1, 4))
    for which in random.choice(_DATA, int(random.integers(1, 3)), replace=False):
        if which == "accuracy":
            chosen["accuracy"] = str(random.choice(["fast", "balanced", "best"]))
        elif which == "sensitivity_metric":
            metrics = ["hessian_input_activation", "mean_activation_variance", "max_activation_variance"]
            chosen["sensitivity_metric"] = str(random.choice([*metrics, "mean_activation_magnitude"]))
            chosen["ratio"] = float(random.random())
        elif which != "dataset alone":
            chosen[str(which)] = True
    if chosen.get("lora_correction"):
        chosen["lora_rank"] = int(random.choice([1, 2, 8, 64]))
    for name in ("scale_search", "codebook", "codebook_type") if chosen["mode"] != "codebook" else ("scale_search",):
        if chosen["mode"] != "adaptive_codebook" or name == "scale_search":
            chosen.pop(name, None)
