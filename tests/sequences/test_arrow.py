"""Columns made and read without pandas are those that pyarrow makes and reads."""

import numpy as np
import pyarrow as pa
import pytest

from packedesm.sequences.arrow import numbers, texts, to_numpy


@pytest.mark.parametrize("dtype", ["int32", "int64", "float64"])
@pytest.mark.parametrize("size", [0, 1, 9, 1000])
def test_numbers_there_and_back(dtype, size):
    array = np.arange(size, dtype=dtype)[::-1]
    column = numbers(array)
    assert column.equals(pa.array(array))
    np.testing.assert_array_equal(to_numpy(column), array)
    assert to_numpy(column).dtype == dtype


def test_missing_numbers_are_nulls():
    missing = np.arange(20) % 3 == 0
    column = numbers(np.arange(20), missing)
    assert column.to_pylist() == [None if gap else i for i, gap in enumerate(missing)]
    assert column.equals(pa.array(np.arange(20), mask=missing))


def test_chunks_and_slices_are_joined_in_their_order():
    column = pa.chunked_array([numbers(np.arange(5)), numbers(np.arange(7))])
    assert to_numpy(column.slice(3)).tolist() == [3, 4, *range(7)]
    assert to_numpy(pa.chunked_array([], pa.int64())).shape == (0,)


@pytest.mark.parametrize("values", [[], [""], ["a", "", "é", "🧬 日本", "\0", "x" * 10_000]])
def test_texts_are_those_that_were_given(values):
    column = texts(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.string()))
