"""Example records as a data frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from actscope.core.activations import ExampleRecord
from actscope.core.errors import BadInputError
from actscope.stores._where import EXAMPLES

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame_of"]


def frame_of(records: Iterable[ExampleRecord]) -> pd.DataFrame:
    """One row a record; metadata become columns of their own.

    Raises:
        BadInputError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise BadInputError(
            "a data frame needs pandas", next_step="pip install 'actscope[frame]'"
        ) from error
    rows = [_row(record) for record in records]
    return pd.DataFrame(rows, columns=None if rows else list(EXAMPLES.fields))


def _row(record: ExampleRecord) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in EXAMPLES.fields}
    for name, value in record.metadata.items():
        row[f"metadata.{name}" if name in EXAMPLES.fields else name] = value
    return row
