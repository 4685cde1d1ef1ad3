"""Which tensor of a checkpoint a parameter is that an exporter has cast: known by where it lay, as long as it does."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np

from ov_weight_compression.checkpoints import read_checkpoint
from ov_weight_compression.checkpoints.tensor_accounts import TensorAccounts
from tests.checkpoints.files import write_folder


class Parameter:
    """As much of torch's as is asked for."""

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


def test_a_parameter_that_has_moved_is_not_taken_for_what_lies_there_now(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"model.safetensors": {"a": np.ones(4, np.float16)}}, {"model_type": "llama"})
    accounts = TensorAccounts(read_checkpoint(folder), set())
    first = Parameter(1000)
    accounts._copies[1000] = "a", weakref.ref(first)
    assert accounts._copy_at(1000) == "a"
    assert accounts._copy_at(2000) == ""
    first.address = 2000  # cast in place; "b" comes to lie at 1000
    assert accounts._copy_at(1000) == ""
    first.address = 1000
    del first
    assert accounts._copy_at(1000) == ""
