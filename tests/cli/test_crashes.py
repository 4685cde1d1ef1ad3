"""The process that watches over the command: crashes end in a line, signals and exit codes pass through it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ov_weight_compression.cli import main
from ov_weight_compression.ir_utils.saving import save_model
from tests.fuzz.kills import wait_for_handler
from tests.models import layers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the command has no child elsewhere")

_SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from ov_weight_compression.entry import supervised

def run():
    from ov_weight_compression.ir_utils.ir_file import read_model
    from ov_weight_compression.ir_utils.journal import note
    from ov_weight_compression.ir_utils.publish import Publication, TemporaryFolder

    for model in sys.argv[3:]:
        read_model(model)
    (Publication(Path(sys.argv[2]), ["o.bin"]).path).write_text("half")
    print(TemporaryFolder().path, flush=True)
    {}

sys.exit(supervised(run, [signal.SIGTERM]))
"""


def crashed(what: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A run that reads models, begins to write `words[0]`, and then does `what`."""
    words = (sys.executable, "-c", _SCRIPT.format(what), "", *words)
    return subprocess.run([*map(str, words)], capture_output=True, text=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(layers(1, 16), tmp_path / "m.xml")
    return tmp_path / "m.xml"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGABRT"])
def test_a_crash_is_a_line_that_names_the_model(name: str, model: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    found = crashed(f"os.kill(os.getpid(), signal.{name})", tmp_path / "new" / "o.xml", model)
    assert found.returncode == 2
    assert found.stderr == (
        f"ov-compress: {model}: OpenVINO crashed ({name}): it is damaged, or holds what this OpenVINO cannot run; "
        "nothing was written\n"
    )
    assert sorted(tmp_path.iterdir()) == before
    assert not Path(found.stdout.strip()).exists()


def test_several_models_are_all_named(model: Path, tmp_path: Path) -> None:
    save_model(layers(1, 16), tmp_path / "n.xml")
    found = crashed("os.abort()", tmp_path / "o.xml", model, tmp_path / "n.xml")
    assert f"{model}, {tmp_path / 'n.xml'}: OpenVINO crashed (SIGABRT): one of them is damaged" in found.stderr


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("os.abort()", 1, "a fault of this program (SIGABRT); nothing was written"),
        ("os.kill(os.getpid(), 9)", 137, "was killed, most likely because memory ran out; nothing was written"),
        ("note('done', ''); os.abort()", 1, "a fault of this program (SIGABRT); what was asked for has been written"),
        ("note('done', '0'); os.abort()", 0, None),
        ("sys.exit(2)", 2, None),
        ("return 1", 1, None),
    ],
)
def test_other_ends(what: str, code: int, said: str | None, tmp_path: Path) -> None:
    found = crashed(what, tmp_path / "o.xml")
    assert (found.returncode, found.stderr) == (code, "" if said is None else f"ov-compress: {said}\n")


def test_signals_arrive_and_the_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    script = _SCRIPT.format("signal.signal(15, lambda *_: os._exit(7)); print(os.getpid(), flush=True); time.sleep(60)")
    for number, code in ((signal.SIGTERM, 7), (signal.SIGKILL, -9)):
        words = [sys.executable, "-c", script, "", str(tmp_path / "o.xml")]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            child = int(process.stdout.readline())
            process.send_signal(number)
            assert process.wait(timeout=30) == code
        deadline = time.monotonic() + 10
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not Path(f"/proc/{child}").exists()


def test_without_a_child(tmp_path: Path) -> None:
    """For debuggers: the crash as it is."""
    words = [sys.executable, "-c", _SCRIPT.format("os.abort()"), "", str(tmp_path / "o.xml")]
    environment = {**os.environ, "OV_COMPRESS_TRACEBACK": "1"}
    found = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert (found.returncode, found.stderr) == (-signal.SIGABRT, "")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed(closed: str, model: Path, tmp_path: Path) -> None:
    """What would be printed there goes nowhere, least of all into the file that is written."""
    command = f"{sys.executable} -m ov_weight_compression.cli {model} -o {tmp_path}/o.xml {closed}"
    found = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert found.returncode == 0
    assert re.fullmatch(r"(ov-compress: done in .*\n)?", found.stderr)
    assert main([str(model), "-o", str(tmp_path / "other.xml"), "--quiet"]) == 0
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"o{suffix}").read_bytes() == (tmp_path / f"other{suffix}").read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_two_signals_to_the_whole_group_print_one_line(model: Path, tmp_path: Path) -> None:
    """As a terminal sends them, to OpenVINO's telemetry too, while modules are still imported."""
    command = [sys.executable, "-m", "ov_weight_compression.cli", "inspect", str(model)]
    for wait in (0.1, 0.3, 0.5):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            wait_for_handler(process)
            time.sleep(wait)
            for _ in range(2):
                os.killpg(process.pid, signal.SIGHUP)
            _, said = process.communicate(timeout=30)
        assert (process.returncode, said) in (
            (129, "ov-compress: the terminal was closed; nothing was written\n"),
            (0, ""),
        )
