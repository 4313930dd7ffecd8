"""Tables as CSV that a spreadsheet opens as they are. Knows nothing about what stands in them.

A spreadsheet takes a cell that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, and runs it: a file or a class
may be called so by anybody. Such cells get an apostrophe in front, which a spreadsheet shows as text (OWASP, "CSV
Injection"); so do those that begin with a tab, a line break, a sign of full width, or with apostrophes before any of
these, so that the way back is plain: one apostrophe is taken off exactly where one was put. All other cells are as they
are, so tables that were written before read the same.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Signs of full width begin formulas too, in some languages.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")


def to_cell(text: str) -> str:
    """Return what stands for `text` in a table: with an apostrophe in front where a spreadsheet would run it.

    Example:
        >>> to_cell("=1+1"), to_cell("cat"), to_cell("'tis")
        ("'=1+1", 'cat', "'tis")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """Return the text that `to_cell` made a cell of.

    Example:
        >>> from_cell("'=1+1"), from_cell("cat"), from_cell("'tis")
        ('=1+1', 'cat', "'tis")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_text(frame: pd.DataFrame) -> str:
    """Return a frame as CSV without its index; cells of text and names of columns go through `to_cell`."""
    import pandas as pd

    safe = {
        to_cell(str(name)): values
        if pd.api.types.is_numeric_dtype(values)
        else _texts(to_cell(value) if isinstance(value, str) else value for value in values)
        for name, values in frame.reset_index(drop=True).items()
    }
    # Python's csv does not quote a lone carriage return, at which readers end the line.
    broken = any("\r" in str(cell) for values in safe.values() if values.dtype == object for cell in values)
    return pd.DataFrame(safe).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC if broken else csv.QUOTE_MINIMAL)


def read_csv(path: Path, text: tuple[str, ...]) -> pd.DataFrame:
    """Read what `csv_text` wrote; names that are not UTF-8 come back as they were (surrogateescape).

    Args:
        path: the file.
        text: columns of text, where nothing stands for a missing value: a class may be called NA.
    """
    import pandas as pd

    # Column names went through `to_cell` too, so a text column may carry either name in the file.
    types = dict.fromkeys((cell for name in text for cell in (name, to_cell(name))), object)
    frame = pd.read_csv(path, dtype=types, keep_default_na=False, encoding_errors="surrogateescape")
    frame = frame.rename(columns=from_cell)
    return frame.assign(**{name: _texts(map(from_cell, frame[name])) for name in text if name in frame})


def _texts(values: Iterable[object]) -> pd.Series:
    """Return a column of any text: pandas' own type for text refuses names that are not UTF-8."""
    import pandas as pd

    return pd.Series(list(values), dtype=object)
