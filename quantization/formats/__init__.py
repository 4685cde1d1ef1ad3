"""Every storage format, a row each. Adding a format is adding a row to one of the tables read here (or, at run time, to
``FORMATS``): the arithmetic, the kernels and the scale search work from the row."""

from ov_weight_compression.quantization.formats.codebooks import CODEBOOKS, TABLE_TYPES, with_table
from ov_weight_compression.quantization.formats.floats import FLOATS
from ov_weight_compression.quantization.formats.format import PER_CHANNEL, Format
from ov_weight_compression.quantization.formats.integers import INTEGERS

__all__ = ["FORMATS", "PER_CHANNEL", "TABLE_TYPES", "Format", "get_format", "with_table"]

FORMATS: dict[str, Format] = {row.name: row for row in (*INTEGERS, *FLOATS, *CODEBOOKS)}


def get_format(name: str) -> Format:
    """The format called ``name`` (a mode's value, any case).

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    try:
        return FORMATS[name.lower()]
    except KeyError:
        raise ValueError(f"no format is called {name!r}; there are {', '.join(FORMATS)}") from None
