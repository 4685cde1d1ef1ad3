"""Every block of code on the site's pages, executed as it stands there, page by page in a folder of its own.

Python blocks of a page share their names. Of `bash` blocks the package's command and its samples are run; `console` and
`text` blocks are for people. A comment `<!-- needs MODULE -->` in front of a block names what only some machines have.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ov_weight_compression as owc
from ov_weight_compression.checkpoints import WeightsFromCheckpoint
from ov_weight_compression.cli.command import COMMANDS, main
from ov_weight_compression.passes.options import OPTIONS
from ov_weight_compression.quantization.formats import FORMATS
from tests.checkpoints.quantised_writers import tensor, write_checkpoint
from tests.running import constants

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *PAGES]
BLOCK = re.compile(r"(?:<!-- needs ([\w.]+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
TEXT = "import unittest\n\n\nclass Test(unittest.TestCase):\n    def test(self):\n        self.assertEqual(1, 1)\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages name: the samples, a model, a chat model, a text, and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    for name in ("model", "chat-model"):
        shutil.copytree(ROOT / "samples" / "pylm", tmp_path / name)
    for suffix in (".xml", ".bin"):
        (tmp_path / f"openvino_model{suffix}").symlink_to(tmp_path / "model" / f"openvino_model{suffix}")
    settings = tmp_path / "chat-model" / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": template}))
    (tmp_path / "text.txt").write_text(TEXT * 200)
    return tmp_path


def checkpoint_of(place: Path) -> None:
    """A checkpoint with the sample model's weights, halved."""
    import openvino as ov

    model = ov.Core().read_model(place / "model" / "openvino_model.xml")
    weights = {name: node for name, node in constants(model).items() if name.startswith("self.")}
    halves = {name[5:].removesuffix("_compressed"): tensor("F16", node.data / 2) for name, node in weights.items()}
    write_checkpoint(place / "MY-CHECKPOINT", halves, {"model_type": "llama"})


def run_line(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "ov-compress":
        assert main(words[1:]) == 0, line
    elif words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], check=True, timeout=300)
    else:
        raise AssertionError(f"a bash block runs the command and the samples, not {words[0]}: use console")


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_works(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {}
    monkeypatch.setitem(FORMATS, "int6_sym", None)  # the page on extensions adds it: undone when the test is over
    del FORMATS["int6_sym"]
    text = page.read_text(encoding="utf-8")
    if "MY-CHECKPOINT" in text:
        checkpoint_of(place)
    for needs, language, code in BLOCK.findall(text):
        if needs and importlib.util.find_spec(needs.split(".")[0]) is None:
            continue
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
        elif language == "bash":
            for line in code.strip().splitlines():
                run_line(line)
        else:
            assert language in ("console", "text", "json"), language


def test_no_page_is_left_out_of_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {str(page.relative_to(DOCS)) for page in PAGES} == set(re.findall(r": (\S+\.md)$", menu, re.MULTILINE))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_option_is_named_that_there_is_not(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    others = (owc.compare, owc.ComparisonProtocol, owc.inspect, WeightsFromCheckpoint, owc.apply_weight_decompression)
    allowed = {"allow_pickle", *OPTIONS, *(name for one in others for name in inspect.signature(one).parameters)}
    assert set(re.findall(r"`([a-z_]+)=", text)) <= allowed
    known = {word for name in COMMANDS for word in _flags(name)}
    shown = {
        word for line in re.findall(r"ov-compress [^\n`]*|`--[^\n`]*`", text) for word in re.findall(r"--[\w-]+", line)
    }
    assert shown <= known | {"--help", "--help-all"} | (
        {"--seed", "--workers"} if page.name == "SECURITY.md" else set()
    )


def _flags(command: str) -> set[str]:
    """Every flag of a command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([command, "--help-all"])
    return set(re.findall(r"--[\w-]+", printed.getvalue()))
