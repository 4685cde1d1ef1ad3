"""What `import ov_weight_compression` gives."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ov_weight_compression as owc
from ov_weight_compression import evaluation, passes


def test_everything_that_the_rooms_offer_is_here() -> None:
    assert set(owc.__all__) == {"__version__", "RecordedInputs", "record_inputs", *passes.__all__, *evaluation.__all__}
    for name in owc.__all__:
        assert getattr(owc, name) is not None
    assert owc.apply_weight_compression is passes.apply_weight_compression
    assert owc.compare is evaluation.compare
    assert set(owc.__all__) <= set(dir(owc))


def test_type_checkers_see_the_same_names() -> None:
    """They do not run `__getattr__`: each name is imported for them."""
    tree = ast.parse(Path(str(owc.__file__)).read_text())
    seen = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {*passes.__all__, *evaluation.__all__} <= seen


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ov_weight_compression' has no attribute 'compress'$"):
        owc.compress  # noqa: B018


def test_the_import_brings_nothing_else() -> None:
    code = "import sys, ov_weight_compression; print([name for name in ('openvino', 'numpy') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
