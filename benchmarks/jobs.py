"""One compression by one tool in a process of its own: writes the job, runs the worker, reads the answer."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Run, run

WORKERS = Path(__file__).resolve().parent / "workers"
FORMS = {
    "library": "ov.save_model",
    "writer": "save_model",
    "compiled": "compile_model",
    "command": "command",
}
"""What stands in the script behind ``apply_weight_compression``: OpenVINO's writer, the package's own, or the model
compiled as it is, lazily; or there is no script but ``ov-compress``, of which only the whole is known."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """``source`` and ``output`` are .xml paths; ``options`` by name and string value; ``data`` is None, ``"random"``,
    ``"self"`` or the description of a token file; ``form`` is how this package is used (see ``FORMS``)."""

    source: Path
    output: Path
    options: dict[str, Any]
    data: dict[str, Any] | str | None = None
    form: str = "library"


@dataclass(frozen=True)
class Done:
    """Seconds of each stage (None where the tool failed), and the process's own figures."""

    run: Run
    stages: dict[str, float] | None
    output_bytes: int

    @property
    def failure(self) -> str | None:
        """The last words of a run that did not end well."""
        if self.stages is not None:
            return None
        if self.run.code < 0:
            return f"killed by signal {-self.run.code}"
        last = [line for line in self.run.printed.splitlines() if line.strip()][-1:]
        return f"exit code {self.run.code}: {' '.join(last)}"[:300]


def stages_of(stamps: dict[str, float], run: Run) -> dict[str, float]:
    """Seconds from the worker's stamps: interpreter and imports, reading the model, the pass, saving, the whole."""
    return {
        "import": stamps["imported"] - run.started,
        "package import": stamps["imported"] - stamps["openvino"],
        "read": stamps["read"] - stamps["imported"],
        "pass": stamps["passed"] - stamps["read"],
        "save": stamps["saved"] - stamps["passed"],
        "total": run.seconds,
    }


def perform(
    tool: str,
    job: Job,
    peer_python: str | None,
    threads: int | None = None,
    before: Callable[[], None] | None = None,
    prefix: Sequence[str] = (),
    timeout: float | None = None,
    package: Path | None = None,
) -> Done:
    """Runs ``own`` (this interpreter) or ``nncf`` (the peer's) on a job; ``prefix`` is put before the command, and
    ``package`` is a folder with another ``ov_weight_compression`` in it."""
    python, worker = (sys.executable, "own_worker.py") if tool == "own" else (str(peer_python), "nncf_worker.py")
    job.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        answer, description = Path(folder, "answer.json"), Path(folder, "job.json")
        description.write_text(
            json.dumps(
                {
                    "source": str(job.source),
                    "output": str(job.output),
                    "options": job.options,
                    "data": job.data,
                    "form": job.form,
                    "answer": str(answer),
                }
            )
        )
        environment = dict.fromkeys(THREAD_VARIABLES, str(threads)) if threads else {}
        if package is not None:
            environment["PYTHONPATH"] = str(package)
        if threads and before is None:
            before = _pin(threads)
        done = run(
            [*prefix, python, str(WORKERS / worker), str(description)],
            Path(folder, "log"),
            environment,
            before=before,
            timeout=timeout,
        )
        stamps = json.loads(answer.read_text())["stamps"] if done.code == 0 and answer.exists() else None
    return Done(done, stages_of(stamps, done) if stamps else None, size_of(job.output))


def size_of(xml: Path) -> int:
    """Bytes of an IR's two files, 0 where there is none."""
    return sum(path.stat().st_size for path in (xml, xml.with_suffix(".bin")) if path.exists())


def _pin(threads: int) -> Callable[[], None]:
    """Keeps the process on so many cores: neither tool takes a number of threads for all that it does."""
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    return lambda: os.sched_setaffinity(0, cores)
