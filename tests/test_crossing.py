"""Crosses lose no case, and try each row and column on every run."""

import pytest
from crossing import crossed

ROWS, COLUMNS = ["a", "b", "c"], [1, 2, 3, 4, 5]


def fits(row, column):
    return (row, column) != ("b", 4)


@pytest.mark.parametrize("also", [[], ["b"]])
def test_every_pair_that_fits_is_there_once(also):
    pairs = [param.values for param in crossed(ROWS, COLUMNS, fits, also)]
    assert sorted(pairs) == [(row, column) for row in ROWS for column in COLUMNS if fits(row, column)]


def test_each_row_and_each_column_is_tried_on_every_run():
    quick = [param.values for param in crossed(ROWS, COLUMNS, fits) if not param.marks]
    assert ({row for row, _ in quick}, {column for _, column in quick}) == ({*ROWS}, {*COLUMNS})
    assert len(quick) < len(ROWS) * len(COLUMNS)


def test_of_some_rows_every_pair_is():
    quick = [param.values for param in crossed(ROWS, COLUMNS, also=["c"]) if not param.marks]
    assert [column for row, column in quick if row == "c"] == COLUMNS


def test_a_row_that_is_not_there_is_not_asked_for_in_vain():
    with pytest.raises(AssertionError):
        crossed(ROWS, COLUMNS, also=["d"])
