"""A few hundred random models, as `python -m tests.fuzz models` checks thousands, and whether its checks can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from ov_weight_compression.ir_utils.saving import save_model
from ov_weight_compression.passes import WeightCompression
from tests import models
from tests.fuzz.campaign import ORIGINAL, Campaign, worker_command
from tests.fuzz.levels import misplaced_codes
from tests.fuzz.stored import constant_values
from tests.running import constants


def test_random_models_in_random_ways() -> None:
    campaign = Campaign(worker_command("models", 20), first=0, cases=200, workers=2)
    campaign.run()
    assert campaign.done == 200
    assert not campaign.failures, campaign.summary(0)
    assert campaign.notes["compressed"] > 80
    assert campaign.notes["ran"] > 80


@pytest.mark.parametrize(("seed", "case"), [(201, 5347), (4242, 19)])
def test_what_campaigns_have_found_stays_mended(seed: int, case: int) -> None:
    """5347: nvfp4 behind leading ones, whose f32 scale `ov.save_model` rounded; 19: a rule by name in a second run."""
    campaign = Campaign(worker_command("models", seed), first=case, cases=1, workers=1)
    campaign.run()
    assert campaign.done == 1
    assert not campaign.failures, campaign.summary(seed)


@pytest.mark.parametrize("mode", ["int8_asym", "int4_sym", "nf4", "fp4", "int3_sym", "cb4"])
@pytest.mark.parametrize("part", ["codes", "scale"])
def test_a_wrong_bit_is_found(mode: str, part: str, tmp_path: Path) -> None:
    model = models.linear(48, 64)
    before = list(constants(model).values())
    compression = WeightCompression(mode=mode, **({} if mode == "int8_asym" else {"all_layers": True}))
    compression.run_on_model(model)
    save_model(model, tmp_path / "m.xml")
    after = constants(ov.Core().read_model(tmp_path / "m.xml"))
    assert list(misplaced_codes(before, list(after.values()), compression.report)) == []
    node = after["weight" if part == "codes" else "weight/scale"]
    tensor = ov.Tensor(node.get_output_element_type(0), node.shape)
    raw = tensor.data.reshape(-1).view(np.uint8)
    raw[:] = node.get_tensor_view().data.reshape(-1).view(np.uint8)
    raw[:2] ^= 0x44
    wrong = ov.op.Constant(tensor)
    wrong.set_friendly_name(node.get_friendly_name())
    spoiled = [wrong if one == node else one for one in after.values()]
    (failure,) = misplaced_codes(before, spoiled, compression.report)
    assert failure.kind == f"codes are not the nearest ({mode})"


@pytest.mark.parametrize("kind", ["u2", "u3", "u4", "i4", "nf4", "f4e2m1", "f8e4m3", "f8e5m2", "bf16", "f16"])
def test_numpy_reads_every_type_as_openvino_does(kind: str) -> None:
    tensor = ov.Tensor(getattr(ov.Type, kind), ov.Shape([4, 64]))
    raw = tensor.data.reshape(-1).view(np.uint8)
    raw[:] = np.arange(raw.size, dtype=np.uint8)
    node = ov.op.Constant(tensor)
    expected = np.array(node.get_data(dtype=np.float32))
    assert np.array_equal(constant_values(node).astype(np.float32), expected, equal_nan=True)


def test_a_case_that_ends_the_process_is_named_and_the_others_go_on() -> None:
    worker = (
        "import json, os, sys\n"
        "for case in range(int(sys.argv[1]), int(sys.argv[2])):\n"
        "    print(json.dumps({'case': case}), flush=True)\n"
        f"    if case == 5: print(json.dumps({{'case': case, 'stage': {ORIGINAL!r}}}), flush=True)\n"
        "    if case in (3, 5): os.kill(os.getpid(), 8)\n"
        "    print(json.dumps({'case': case, 'failures': [], 'notes': ['ran']}), flush=True)\n"
    )
    campaign = Campaign(lambda first, stop: [sys.executable, "-c", worker, str(first), str(stop)], 0, 8, 1)
    assert campaign.run() == 1
    assert campaign.done == 8
    assert {kind: [case for case, _ in found] for kind, found in campaign.failures.items()} == {
        "the process ended (SIGFPE)": [3]
    }
    assert campaign.notes == {"ran": 6, "the original ends the process": 1}
