"""Pictures of the pages that the command writes, for the documentation and to look at:

    python -m benchmarks.screenshots [FOLDER]

Compresses, plans and compares the small model in samples/ and lets a headless Chromium (Debian's package `chromium`)
take pictures of the three pages: into docs/images what the documentation shows, into FOLDER each page light and dark,
wide and narrow.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ov_weight_compression.cli import main as command

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "samples" / "pylm"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SHOWN = {"compress": 1010, "plan": 1480, "compare": 1350}
"""Height of each picture in the documentation."""


def picture(page: Path, target: Path, width: int, height: int, dark: bool = False) -> None:
    """Have a browser take a picture of a page."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"there is no browser: {', '.join(_BROWSERS)}")
    with tempfile.TemporaryDirectory() as profile:
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        words += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--window-size={width},{height}"]
        words += [f"--screenshot={target}", page.as_uri()]
        subprocess.run([browser, *words], check=True, capture_output=True, timeout=120)


def pages(folder: Path) -> dict[str, Path]:
    """The three pages of the small model, written into a folder, made inside it: they show paths as given."""
    os.chdir(folder)
    shutil.copytree(MODEL, "pylm")
    found = {name: folder / f"{name}.html" for name in _SHOWN}
    few = ["--mode", "int4_sym", "--group-size", "64", "--ratio", "0.8", "--quiet"]
    for words in (
        ["compress", "pylm", "-o", "pylm-int4", *few, "--html", found["compress"]],
        ["plan", "pylm", "--target-bits", "4.5", "--quiet", "--html", found["plan"]],
        ["compare", "pylm", "pylm-int4", "--quiet", "--html", found["compare"]],
    ):
        if command([str(word) for word in words]) != 0:
            raise SystemExit(f"failed: {words[0]}")
    return found


def main() -> None:
    """Make the pictures."""
    images = ROOT / "docs" / "images"
    images.mkdir(exist_ok=True)
    shown = [Path(one).resolve() for one in sys.argv[1:2]]
    with tempfile.TemporaryDirectory() as name:
        for kind, page in pages(Path(name)).items():
            picture(page, images / f"{kind}.png", 1000, _SHOWN[kind])
            for folder in shown:
                folder.mkdir(parents=True, exist_ok=True)
                for width in (1150, 420):
                    for dark in (False, True):
                        target = folder / f"{kind}_{width}_{'dark' if dark else 'light'}.png"
                        picture(page, target, width, 3000, dark)


if __name__ == "__main__":
    main()
