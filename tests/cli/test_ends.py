"""How the command ends when it cannot go on: Ctrl-C, full disks, sources that change while they are read."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.cli import main
from tests.cli.commands import COMMAND, failing
from tests.models import layers, op
from tests.running import files_of, run


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough work for some seconds: 32 weights of 4 MB, f16."""
    path = tmp_path_factory.mktemp("large") / "m.xml"
    x = op.parameter([-1, 1024], np.float32)
    hidden = x
    for number in range(32):
        values = np.random.default_rng(number).standard_normal((2048, 1024), dtype=np.float32).astype(np.float16)
        weight = op.constant(values)
        weight.set_friendly_name(f"weight_{number}")
        wide = op.matmul(hidden, op.convert(weight, "f32"), False, True)
        hidden = op.slice(wide, [0], [1024], [1], [1])
    ov.save_model(ov.Model([op.result(hidden)], [x]), path)
    return path


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # room is being made for what is to be written
        return 0


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
def test_ctrl_c_leaves_nothing(large_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = [str(large_model), "-o", str(out / "o.xml"), "--mode", "int4_asym", "--scale-search", "100", "--quiet"]
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(map(_size, out.rglob("*.bin"))):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - sent < 15  # a tenth in fact; test machines are busy
    assert process.returncode == 130
    assert said == "ov-compress: interrupted; nothing was written\n"
    assert list(out.iterdir()) == []


def test_a_full_disk(large_model: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's end: writing fails in the same way."""
    out = tmp_path / "o.xml"
    words = [str(large_model), "-o", str(out), "--mode", "int8_sym", "--quiet"]

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, 8 << 20))

    done = subprocess.run([*COMMAND, *words], stderr=subprocess.PIPE, text=True, preexec_fn=limit, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert str(out) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file_where_it_would_have_been(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ov, "serialize", full)
    out = tmp_path / "out"
    said = failing(capsys, 1, folder, "-o", out, "--quiet")
    assert f"{out / 'openvino_model.xml'}: cannot be written" in said
    assert "partial" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a place where nothing can be written")
def test_a_target_that_cannot_be_written(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "/dev/null/o.xml" in failing(capsys, 1, model, "-o", "/dev/null/o.xml", "--quiet")
    assert "cannot be written" in failing(capsys, 1, model, "-o", "/proc/o.xml", "--quiet")


def test_a_failure_keeps_what_was_there(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "o.xml"
    assert main([str(model), "-o", str(out), "--quiet"]) == 0
    before = files_of(out)

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ov, "serialize", broken)
    assert main([str(model), "-o", str(out), "--force", "--quiet", "--mode", "int8_sym"]) == 1
    assert files_of(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.bin", "o.xml", "source"]


def test_the_installed_command(model: Path, tmp_path: Path) -> None:
    command = shutil.which("ov-compress", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run(
        [command, str(model), "-o", str(tmp_path / "o.xml")], capture_output=True, text=True, check=True
    )
    assert "int8_asym" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_names_of_weights_reach_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ov.save_model(layers(2, 64), tmp_path / "m.xml")

    def broken(*_: object, **__: object) -> None:
        raise ArithmeticError("no luck")

    monkeypatch.setattr("ov_weight_compression.passes.encoding.encode_rows", broken)
    said = failing(capsys, 1, tmp_path / "m.xml", "-o", tmp_path / "o.xml", "--quiet")
    assert re.search(r"weight_\d", said)
    assert "no luck" in said
    assert not (tmp_path / "o.xml").exists()


class TestASourceThatChanges:
    """While its weights are read: an error that names the file, and nothing is written."""

    def compress(self, change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
        from ov_weight_compression.passes import encoding

        ov.save_model(layers(4, 512), tmp_path / "m.xml", compress_to_fp16=False)
        original, calls = encoding.encode_rows, 0

        def encode(*arguments: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls == 2:
                change(tmp_path / "m.bin")
            return original(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(encoding, "encode_rows", encode)
        words = [str(tmp_path / "m.xml"), "-o", str(tmp_path / "o.xml"), "--mode", "int8_sym", "--threads", "1"]
        return main([*words, "--scale-search", "off", "--quiet"])

    def test_cut_short(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.compress(lambda path: os.truncate(path, 1000), tmp_path, monkeypatch) == 1
        said = capsys.readouterr().err
        assert "m.bin: became shorter while it was read (1000 bytes" in said
        assert said.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]

    def test_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def write(path: Path) -> None:
            with path.open("r+b") as file:
                file.write(b"x" * 5000)
            os.utime(path, ns=(1, 1))

        assert self.compress(write, tmp_path, monkeypatch) == 1
        assert "m.bin: was changed while it was read; nothing was written" in capsys.readouterr().err
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.xml"]

    def test_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was opened is still whole."""

        def replace(path: Path) -> None:
            (tmp_path / "other").write_bytes(b"")
            (tmp_path / "other").replace(path)

        assert self.compress(replace, tmp_path, monkeypatch) == 0
        assert np.isfinite(run(tmp_path / "o.xml")[0]).all()
