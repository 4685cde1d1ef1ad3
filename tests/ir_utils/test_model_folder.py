"""Folders of models as they may be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ov_weight_compression.ir_utils.errors import ModelError
from ov_weight_compression.ir_utils.model_folder import models_in


def test_a_folder_that_changes_while_it_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(self: Path, pattern: str) -> Any:
        raise FileNotFoundError(2, "No such file or directory", str(tmp_path / "gone"))

    monkeypatch.setattr(Path, "rglob", vanished)
    with pytest.raises(ModelError, match=r"cannot be looked through: No such file or directory: .*gone"):
        models_in(tmp_path)
