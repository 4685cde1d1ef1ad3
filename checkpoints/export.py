"""A checkpoint's graph: optimum-intel's export, run in a process of its own (see `export_worker`).

What is written is a folder like optimum-intel's, whose models are skeletons: everything but the weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from ov_weight_compression.checkpoints.skeleton import Placed
from ov_weight_compression.ir_utils.errors import MissingExtraError, ModelError, WorkError, one_line
from ov_weight_compression.ir_utils.publish import TemporaryFolder

_PACKAGES = ("torch", "transformers", "optimum-intel")
_WORKER = """
import sys
sys.modules["openvino_telemetry"] = None  # OpenVINO imports it if it can, and its converter reports with it
from ov_weight_compression.checkpoints.export_worker import watch_caller, work
watch_caller()
sys.exit(work(sys.argv[1:]))
"""
_NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
_KILLED = -9


@dataclass(frozen=True)
class Skeleton:
    """One model of an export."""

    holes: tuple[Placed, ...]
    copies: Mapping[str, str]
    """Of constants that are copies of tensors in another type: their names, and those tensors'."""


@dataclass(frozen=True)
class Exported:
    """What an export has written."""

    folder: Path
    models: Mapping[str, Skeleton]
    """By the .xml's path relative to the folder."""
    unused: Mapping[str, str]
    """Tensors of the checkpoint that are in no model, and why."""


def missing_package() -> str | None:
    """The first of the packages that an export needs and that is not installed; none of them is imported."""
    for package in _PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            return package
    return None


class HolesReadError(ModelError):
    """The exporter computes with weights that are not there."""

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


def export(folder: Path, output: Path, task: str | None = None, tensors: Sequence[str] | None = None) -> Exported:
    """Export the checkpoint in `folder` into the folder `output`, without its weights.

    `task` is optimum-intel's word; by default what the architecture is for. Nothing goes to the network, and nothing
    that comes with the checkpoint is run. `tensors` are those that count of a `virtual_folder`.

    Raises:
        HolesReadError: the exporter computes with weights of a `virtual_folder` that are holes.
        MissingExtraError: torch, transformers or optimum-intel are not installed.
        ModelError: the checkpoint lacks a tensor, has one that nothing uses, or cannot be exported.
        WorkError: the export ended before it was done.
    """
    package = missing_package()
    if package is not None:
        raise MissingExtraError(package, "checkpoint", "a model from a checkpoint")
    with TemporaryFolder() as scratch:
        asked, answered, log = scratch / "request.json", scratch / "answer.json", scratch / "log"
        request = {"folder": str(folder.resolve()), "output": str(output), "task": task}
        asked.write_text(json.dumps({**request, "tensors": None if tensors is None else list(tensors)}))
        code = run_worker([str(asked), str(answered)], log)
        answer = json.loads(answered.read_text()) if answered.exists() else {}
        if "models" not in answer:
            raise _failure(folder, code, answer, log)
    models = {
        name: Skeleton(
            tuple(
                Placed(place, tensor, begin, size, tuple(words), turned)
                for place, tensor, begin, size, words, turned in found["holes"]
            ),
            found["copies"],
        )
        for name, found in answer["models"].items()
    }
    return Exported(output, models, answer["unused"])


def run_worker(arguments: list[str], log: Path) -> int:
    """Run the worker in its own process until it ends. Its standard input is a pipe that closes with this process."""
    environment = {**os.environ, **_NO_NETWORK, "PYTHONSAFEPATH": "1"}
    environment.pop("HF_TOKEN", None)
    with log.open("wb") as told:
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=told,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _failure(folder: Path, code: int, answer: dict[str, Any], log: Path) -> ModelError | WorkError:
    if answer.get("holes_read"):
        return HolesReadError(f"{folder}: optimum-intel cannot export it: {answer['error']}", answer["holes_read"])
    if answer.get("kind") == "model":
        return ModelError(answer["error"])
    if "error" in answer:
        return ModelError(f"{folder}: optimum-intel cannot export it: {answer['error']}")
    if code == _KILLED:
        return WorkError(f"{folder}: the export was killed; for want of memory, most likely")
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return WorkError(
        f"{folder}: the export ended with code {code}: {one_line((lines or ['nothing was said'])[-1], 200)}"
    )
