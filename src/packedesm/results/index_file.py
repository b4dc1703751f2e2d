"""The index of results, read so that damage is told."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from packedesm.errors import Damaged
from packedesm.files import damaged
from packedesm.sequences.arrow import read_columns


def index_columns(path: Path, columns: Iterable[str]) -> pa.Table:
    """Read some columns of an index; raises as `whole`, also if it lacks one."""
    columns = list(columns)
    with whole(path):
        table = read_columns(path, columns)
    if not set(columns) <= set(table.column_names):
        raise damaged(path)
    return table


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Let the block read a Parquet file.

    Raises
    ------
    Damaged
        If the file is not as it was written, or gone.
    """
    try:
        yield
    except FileNotFoundError:
        raise Damaged(f"{path}: is gone; run again") from None
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not of its content
            raise
        raise damaged(path) from error
