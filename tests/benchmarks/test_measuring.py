"""What the benchmarks measure with: processes, memory limits, divergence, chains."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest

from benchmarks import chains, divergence, limits, modes, peers, processes, weights

ALLOCATE = "import time; kept = bytearray(b'x') * 100_000_000; time.sleep(0.2)"


def test_anonymous_memory_of_a_process_is_seen(tmp_path: Path) -> None:
    run = processes.run([sys.executable, "-c", ALLOCATE], tmp_path / "log")
    assert run.code == 0
    assert 100e6 < run.anonymous < 150e6
    assert run.resident >= run.anonymous
    assert 0.2 < run.seconds < 20
    assert 0 < run.processor < 20


def test_a_process_that_ends_while_it_is_looked_at_has_no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(path: Path, pattern: str) -> list[Path]:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "glob", ended)
    assert processes.descendants(os.getpid()) == [os.getpid()]


def test_children_count_too(tmp_path: Path) -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ALLOCATE!r}])"
    assert processes.run([sys.executable, "-c", script], tmp_path / "log").anonymous > 100e6


def test_pages_shared_with_a_fork_count_once(tmp_path: Path) -> None:
    script = f"import os; {ALLOCATE}; child = os.fork(); time.sleep(0.3); child and os.wait()"
    assert 100e6 < processes.run([sys.executable, "-c", script], tmp_path / "log").anonymous < 150e6


def test_a_failure_keeps_its_last_words(tmp_path: Path) -> None:
    run = processes.run([sys.executable, "-c", "raise SystemExit('no such weight')"], tmp_path / "log")
    assert run.code == 1
    assert "no such weight" in run.printed


def test_timeout_kills(tmp_path: Path) -> None:
    run = processes.run([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", timeout=0.2)
    assert run.code == -9
    assert run.seconds < 20


def test_memory_limit_kills_what_does_not_fit(tmp_path: Path) -> None:
    with limits.limited(64 << 20) as limit:
        if limit is None:
            pytest.skip(limits.UNAVAILABLE)
        fits = processes.run([*limit.prefix, sys.executable, "-c", "print(1)"], tmp_path / "log", before=limit.join)
        large = processes.run([*limit.prefix, sys.executable, "-c", ALLOCATE], tmp_path / "log", before=limit.join)
    assert fits.code == 0
    assert large.code != 0
    assert not list(limits.ROOT.glob(f"**/weight-compression-benchmark-{os.getpid()}"))


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("1GiB", 1 << 30), ("4096", 4096)])
def test_sizes(text: str, size: int) -> None:
    assert limits.parse_size(text) == size


def test_a_size_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="512M"):
        limits.parse_size("half")


def test_no_peer_is_told_apart_from_a_peer() -> None:
    assert peers.versions(None) is None
    assert peers.versions("/no/such/python") is None


def test_fixed_groups_and_backup_are_named() -> None:
    assert modes.options("nvfp4")["group_size"] == 16
    assert modes.options("int8_sym") == {"mode": "int8_sym"}
    assert modes.options("int4_asym", 64)["backup_mode"] == "int8_asym"


def language_model(table: np.ndarray, path: Path) -> Path:
    """logits = table[input_ids], with a state so that it can be reset."""
    ids = op.parameter([-1, -1], ov.Type.i64, name="input_ids")
    ids.output(0).get_tensor().set_names({"input_ids"})
    logits = op.gather(op.constant(table.astype(np.float32)), ids, op.constant(np.int64(0)))
    logits.output(0).get_tensor().set_names({"logits"})
    ov.save_model(ov.Model([op.result(logits)], [ids]), path, compress_to_fp16=False)
    return path


def test_divergence_is_what_the_formula_says(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    tables = [generator.normal(size=(5, 5)).astype(np.float32) for _ in range(2)]
    original, other = (language_model(table, tmp_path / f"{i}.xml") for i, table in enumerate(tables))
    windows = divergence.windows_of(generator.integers(0, 5, 64).astype(np.int32), 8, 1)
    divergence.save_reference(original, windows, tmp_path / "reference.npy", 1)
    measured = divergence.measure(tmp_path / "reference.npy", other, windows, 1)
    p, q = (np.exp(table) / np.exp(table).sum(1, keepdims=True) for table in tables)
    rows = (p * np.log(p / q)).sum(1)
    assert measured.kl == pytest.approx(rows[windows].mean(), rel=1e-5)
    assert measured.top1 == pytest.approx((p.argmax(1) == q.argmax(1))[windows].mean())
    assert (measured.windows, measured.length) == (8, 8)
    assert divergence.measure(tmp_path / "reference.npy", original, windows, 1).kl == pytest.approx(0, abs=1e-9)


def test_windows_are_whole_and_every_second_is_taken() -> None:
    windows = divergence.windows_of(np.arange(50, dtype=np.int32), 10, 2)
    assert windows[:, 0].tolist() == [0, 20, 40]


def matmul(weight: ov.Node, path: Path) -> Path:
    """x · weightᵀ."""
    x = op.parameter([1, -1], np.float32, name="x")
    product = op.matmul(x, weight, False, True)
    product.set_friendly_name("layer")
    ov.save_model(ov.Model([product], [x]), path, compress_to_fp16=False)
    return path


def test_chain_is_named_and_evaluated(tmp_path: Path) -> None:
    codes = np.arange(64 * 64, dtype=np.uint8).reshape(64, 2, 32)
    scale = np.linspace(0.5, 1, 128).astype(np.float16).reshape(64, 2, 1)
    chain = op.subtract(
        op.convert(op.constant(codes), "f16"), op.convert(op.constant(np.full((64, 2, 1), 3, np.uint8)), "f16")
    )
    chain = op.reshape(op.multiply(chain, op.constant(scale)), op.constant(np.array([64, 64])), False)
    path = matmul(op.convert(chain, "f32"), tmp_path / "model.xml")
    (found,) = chains.weights_of(path).items()
    assert found[0] == "layer:1"
    assert found[1].stored == "u8 g32 f16 u8"
    expected = ((codes.astype(np.float32) - 3) * scale.astype(np.float32)).reshape(64, 64)
    np.testing.assert_allclose(found[1].values(), expected, rtol=1e-3)


def test_gather_from_a_codebook_is_part_of_the_chain(tmp_path: Path) -> None:
    indices = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 16
    table = np.linspace(-1, 1, 16).astype(np.float16)
    chain = op.gather(op.constant(table), op.convert(op.constant(indices), "i32"), op.constant(np.int64(0)))
    path = matmul(op.convert(chain, "f32"), tmp_path / "model.xml")
    (found,) = chains.weights_of(path).items()
    assert found[0] == "layer:1"
    np.testing.assert_array_equal(found[1].values(), table[indices].astype(np.float32))


def test_larger_error_is_found_only_where_the_format_is_the_same(tmp_path: Path) -> None:
    value = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

    def stored(bits: np.ndarray, name: str) -> Path:
        scale = op.constant(np.full((64, 1), 0.1, np.float16))
        return matmul(op.convert(op.multiply(op.convert(op.constant(bits), "f16"), scale), "f32"), tmp_path / name)

    original = matmul(op.constant(value), tmp_path / "original.xml")
    good = stored(np.rint(value / 0.1).astype(np.int8), "good.xml")
    bad = stored(np.rint(value / 0.1 + 0.3).astype(np.int8), "bad.xml")
    unsigned = stored(np.clip(np.rint(value / 0.1), 0, 255).astype(np.uint8), "unsigned.xml")
    (worse,) = weights.compare(original, bad, good, "m", "int8_sym")
    (better,) = weights.compare(original, good, bad, "m", "int8_sym")
    (different,) = weights.compare(original, unsigned, good, "m", "int8_sym")
    assert worse.worse
    assert not better.worse
    assert not different.same
    assert not different.worse
    assert "1 | " in weights.report([worse, better, different], []).splitlines()[2]


def test_models_of_a_folder_are_named_and_tokenizers_left_out(tmp_path: Path) -> None:
    for name in ("a/openvino_model", "a/openvino_tokenizer", "b/openvino_encoder_model"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for suffix in (".xml", ".bin"):
            (tmp_path / f"{name}{suffix}").touch()
    assert [name for name, _ in weights.models_in(tmp_path)] == ["a", "b/openvino_encoder_model"]
