"""What `import ov_weight_compression` gives."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from openvino.passes import ModelPass

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
    """They do not run `__getattr__`: each name is imported for them, or all of a room's."""
    tree = ast.parse(Path(str(owc.__file__)).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname for node in imports for alias in node.names}
    for room in (node.module for node in imports if node.names[0].name == "*"):
        seen.update(import_module(str(room)).__all__)
    assert seen - {None} == {*owc.__all__} - {"__version__"}


DOCUMENTED_IN = {"apply_weight_compression": "WeightCompression"}


@pytest.mark.parametrize("name", [name for name in owc.__all__ if callable(getattr(owc, name))])
def test_docstrings_say_of_every_argument_what_it_is(name: str) -> None:
    one = getattr(owc, name)
    is_pass = inspect.isclass(one) and issubclass(one, ModelPass)
    if not (is_pass or inspect.isroutine(one)):
        assert inspect.getdoc(one)
        return
    text = inspect.getdoc(one) or ""
    named = inspect.signature(one).parameters
    options = list(named) if name not in DOCUMENTED_IN else []
    assert re.findall(r"^    (\w+): ", text.partition("Args:\n")[2].partition("\n\n")[0], re.MULTILINE) == options
    if name in DOCUMENTED_IN:
        assert f"`{DOCUMENTED_IN[name]}`" in text
        assert [*named][1:] == [*inspect.signature(getattr(owc, DOCUMENTED_IN[name])).parameters]
    if options:
        assert "Raises:\n" in text


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ov_weight_compression' has no attribute 'compress'$"):
        owc.compress  # noqa: B018


def test_the_import_brings_nothing_else() -> None:
    code = "import sys, ov_weight_compression; print([name for name in ('openvino', 'numpy') if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
