"""Compress a small language model to 4 bits, and let the original and the compressed one finish some lines of Python.

    python samples/first_minute.py [OUT]

Writes the compressed model to the folder OUT, or to a temporary one. Needs the extra `genai`.
"""

import sys
import tempfile
from pathlib import Path

import openvino_genai

from ov_weight_compression.cli import main as ov_compress

MODEL = Path(__file__).parent / "pylm"
LINES = ("import unittest\n\nclass Test(", "    with open(", "    if not isinstance(")


def complete(folder: Path) -> list[str]:
    """Each of LINES as the model in `folder` completes it, taking the most likely token each time."""
    pipeline = openvino_genai.LLMPipeline(folder, "CPU")
    config = openvino_genai.GenerationConfig(max_new_tokens=32, stop_strings={"\n"}, do_sample=False)
    return [line + str(pipeline.generate(line, config)).rstrip() for line in LINES]


def main(out: Path) -> int:
    words = [str(MODEL), "-o", str(out), "--mode", "int4_asym", "--group-size", "64", "--force"]
    print("$ ov-compress", *words)
    code = ov_compress(words)
    if code:
        return code
    for line, before, after in zip(LINES, complete(MODEL), complete(out), strict=True):
        print(f"\n{line!r}\n  original    {before.splitlines()[-1]}\n  compressed  {after.splitlines()[-1]}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(main(Path(temporary) / "pylm-int4"))
