"""Which pairs of a table's rows and columns are tried on every run of the tests, and which where there is time."""

import pytest


def crossed(rows, columns, fits=lambda row, column: True, also=()):
    """Parameters for every pair that fits; those off the diagonal are marked slow.

    The diagonal has each row and each column, so that one that is wrong by itself fails on every run: only what
    is wrong of a pair alone waits for the others.

    Args:
        rows: names, or what they name.
        columns: as rows.
        fits: whether a pair can be.
        also: rows of which every pair is on the diagonal.
    """
    rows, columns, pairs = list(rows), list(columns), {}
    assert all(row in rows for row in also)
    for place, row in enumerate(rows):
        fitting = [column for column in columns if fits(row, column)]
        for number, column in enumerate(fitting):
            pairs[place, columns.index(column)] = number == place % len(fitting) or row in also
    for place in range(len(columns)):  # those that no row came to
        those = [row for row, other in pairs if other == place]
        if those and not any(pairs[row, place] for row in those):
            pairs[those[place % len(those)], place] = True
    return [
        pytest.param(rows[row], columns[column], marks=[] if quick else pytest.mark.slow)
        for (row, column), quick in pairs.items()
    ]
