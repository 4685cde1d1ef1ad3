"""A quantised checkpoint through optimum-intel's export: the dequantised torch model's logits, codes kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from ov_weight_compression.checkpoints import opening as export_module
from ov_weight_compression.checkpoints.opening import missing_package

pytestmark = [
    pytest.mark.skipif(missing_package() is not None, reason=f"needs {missing_package()}: the extra 'checkpoint'"),
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers and optimum-intel there is no end
]


@pytest.mark.parametrize(
    ("kind", "executed"),
    [("gptq 4 act-order", "u4"), ("compressed-tensors int8", "i8"), ("fp8 blocks", "none"), ("gpt-oss", "none")],
)
def test_logits_are_the_dequantised_models(
    kind: str, executed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose order is folded, two whose codes are called as the float weights are, and experts that are turned."""
    from benchmarks.quantised_checkpoints import check
    from ov_weight_compression.checkpoints import export_worker

    monkeypatch.setattr(export_module, "run_worker", lambda arguments, log: export_worker.work(arguments))
    said = check(kind, tmp_path)
    assert not said.startswith("WRONG"), said
    assert f"codes executed: {executed};" in said
    assert "codes kept" in said
