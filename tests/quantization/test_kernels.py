"""Every kernel against the numpy reference, bit for bit."""

import platform
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ov_weight_compression.quantization import FORMATS, Format, Spec, tensor_scale_of, with_codebook
from ov_weight_compression.quantization.encode import Kernel
from ov_weight_compression.quantization.kernels import Key
from ov_weight_compression.quantization.reference import STARTS, encode_groups
from tests.quantization.groups import nasty_groups

TABLES = {
    "unsorted_i8": with_codebook(FORMATS["codebook"], [3, -7, 0, 1, -1, 5, 11, -12, 2, -2], "i8"),
    "no_zero_f16": with_codebook(FORMATS["codebook"], [-1.0, 1.0], "f16"),
    "u8_f16": with_codebook(FORMATS["codebook"], np.sinh(np.linspace(-3, 3, 200)).tolist(), "f16"),
    "u16_f16": with_codebook(FORMATS["codebook"], np.linspace(-1, 1, 1000), "f16"),
    "u16_f32": with_codebook(FORMATS["codebook"], np.random.default_rng(0).permutation(np.linspace(-2, 2, 999)), "f32"),
}
EVERY = {**{name: row for name, row in FORMATS.items() if name not in ("codebook", "adaptive_codebook")}, **TABLES}


def check(
    groups: np.ndarray,
    spec: Spec,
    graph: bool = False,
    importance: np.ndarray | None = None,
    starts: tuple[float, ...] = (),
) -> None:
    """The kernel's bits are the reference's; a block smaller than the groups shows that the tail is right too."""
    source = "f16" if groups.dtype == np.float16 else "f32"
    scalar = tensor_scale_of(float(np.abs(groups).max()), spec.format)
    kernel = compiled(Key(spec, groups.shape[1], source, graph, importance is not None, starts))
    blocks = [[np.array(part) for part in one] for _, one in kernel.run(groups, np.copyto, importance, scalar)]
    got = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
    energy = None if importance is None else importance[np.arange(len(groups)) % len(importance)]
    with np.errstate(over="ignore"):
        codes, scale, zero_point = encode_groups(groups.astype(np.float32), spec, scalar, energy, graph, starts)
    np.testing.assert_array_equal(got[1].view(np.uint8), scale.view(np.uint8))
    np.testing.assert_array_equal(got[0] ^ got[0].dtype.type(spec.format.flip), codes)
    if zero_point is not None:
        np.testing.assert_array_equal(got[2], zero_point)


KERNELS: dict[Key, Kernel] = {}


def compiled(key: Key) -> Kernel:
    if key not in KERNELS:
        KERNELS[key] = Kernel(key, 96)
    return KERNELS[key]


def spec_of(row: Format, search: int = 0, scale_type: str | None = None) -> Spec:
    return Spec(row, row.default_group if row.fixed_group else -1, scale_type or row.scale, search)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", EVERY)
def test_plain_kernels_equal_the_reference(name: str, dtype: type) -> None:
    row = EVERY[name]
    group = row.default_group if row.fixed_group else 27 if dtype == np.float32 else 64
    check(nasty_groups(500, group, dtype=dtype), spec_of(row))


@pytest.mark.parametrize("name", ["int4_sym", "int8_asym", "nf4", "fp8_e4m3"])
def test_f32_scales(name: str) -> None:
    check(nasty_groups(300, 32, dtype=np.float32), spec_of(EVERY[name], scale_type="f32"))


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.default_search])
@pytest.mark.parametrize("graph", [True, False])
def test_searching_kernels_equal_the_reference(name: str, graph: bool) -> None:
    row = FORMATS[name]
    group = row.default_group if row.fixed_group else 27 if graph else 48
    groups = nasty_groups(300, group, dtype=np.float16 if graph else np.float32)
    importance = (10.0 ** np.random.default_rng(1).uniform(-4, 0, groups.shape)).astype(np.float32)
    check(groups, spec_of(row, search=min(row.default_search, 4)), graph, importance)


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row.default_search])
def test_refitting_kernels_equal_the_reference(name: str) -> None:
    row = FORMATS[name]
    group = row.default_group if row.fixed_group else 48
    groups = nasty_groups(300, group, dtype=np.float16)
    importance = (10.0 ** np.random.default_rng(1).uniform(-6, 0, groups.shape)).astype(np.float32)
    starts = STARTS if row.levels is None else STARTS[:1]
    check(groups, spec_of(row, search=4), importance=importance, starts=starts)


def test_a_search_without_importance() -> None:
    check(nasty_groups(300, 64), spec_of(FORMATS["int4_asym"], search=4))
    check(nasty_groups(300, 64), spec_of(FORMATS["int4_sym"], search=4), graph=True)


@pytest.mark.parametrize("name", ["int4_sym", "int4_asym", "nf4", "fp8_e4m3"])
def test_any_half_at_all(name: str) -> None:
    """Each finite f16 number, in shuffled groups."""
    patterns = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    numbers = np.random.default_rng(2).permutation(patterns[np.isfinite(patterns)])
    check(numbers[: numbers.size // 16 * 16].reshape(-1, 16), spec_of(FORMATS[name]))


HALVES = hnp.arrays(np.float16, (3, 8), elements=st.floats(width=16, allow_nan=False, allow_infinity=False))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HALVES, st.sampled_from(["int4_sym", "int4_asym", "nf4", "fp4", "int8_sym"]), st.sampled_from([0, 3]))
def test_whatever_hypothesis_finds(groups: np.ndarray, name: str, search: int) -> None:
    row = FORMATS[name]
    check(groups, spec_of(row, search if row.default_search else 0), graph=search > 0)


def test_a_toy_format_is_one_row() -> None:
    toy = Format("toy", "u4", 4, levels=(-2.0, -1.0, 0.5, 0.0, 3.0), default_search=4)
    check(nasty_groups(200, 40), spec_of(toy))
    check(nasty_groups(200, 40), spec_of(toy, search=4), graph=True)
    odd = Format("odd", "u6", 6, zero_point="group")
    check(nasty_groups(200, 40), spec_of(odd))
    assert replace(odd, bits=5).high == 31


def test_small_weights_get_a_block_of_their_size() -> None:
    """And no more sizes than pay: compiling one takes as long as a thousand runs."""
    kernel = Kernel(Key(spec_of(FORMATS["int4_sym"]), 32, "f16"), 4096)
    sizes = [kernel._block_for(groups) for groups in (128, 100, 64, 60, 20, 10, 9, 500, 5000, 3000, 128)]
    assert sizes == [128, 128, 128, 64, 24, 24, 24, 4096, 4096, 4096, 128]


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_importance_is_repeated_in_small_blocks(rows: int) -> None:
    groups = nasty_groups(40, 32, dtype=np.float16)
    importance = np.random.default_rng(rows).uniform(2.0**-20, 1, (rows, 32)).astype(np.float32)
    check(groups, spec_of(FORMATS["int4_sym"], search=6), graph=True, importance=importance)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="made for these processors")
def test_a_kernel_that_cannot_be_a_loop_changes_no_other() -> None:
    """A table of sixteen levels has more constants than a processor without AVX-512 has vector registers."""
    groups, weights = nasty_groups(96, 32), np.ones((1, 32), np.float32)
    key = Key(spec_of(FORMATS["nf4"], 9), 32, "f32", importance=True, starts=(1.0, 0.9))
    list(Kernel(key, 96).run(groups, np.copyto, weights, None))
    test_reductions_are_part_of_a_loop()


def test_reductions_are_part_of_a_loop() -> None:
    """A third of the time goes with them where they are not."""
    kernel = Kernel(Key(spec_of(FORMATS["int4_asym"]), 64, "f16"), 96)
    list(kernel.run(nasty_groups(96, 64, dtype=np.float16), np.copyto, None, None))
    model = kernel._free[96][0].request.get_compiled_model().get_runtime_model()
    kinds = {node.get_rt_info()["layerType"].astype(str) for node in model.get_ops()}
    assert "Subgraph" in kinds
    assert not [kind for kind in kinds if kind.startswith("Reduce")]
