from __future__ import annotations

import numpy as np
import pytest

from mpma.data.counter_hash import counter_hash, text_hash, uniform

FROZEN = [14458418275280341186, 7302908807246110913, 7011135154847204563]
FROZEN_TEXT = -5478188626491276667


def test_the_values_are_frozen_so_that_old_runs_continue_exactly() -> None:
    assert counter_hash(7, "crop", np.arange(3), 5).tolist() == FROZEN
    assert text_hash("no acute disease") == FROZEN_TEXT
    assert uniform(7, "crop", 0, 5) == (FROZEN[0] >> 11) / 2**53


def test_values_are_uniform_in_every_column() -> None:
    values = uniform(3, "words", 1, np.arange(20_000)[:, None], np.arange(8))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in values.T])
    chi_square = ((counts - 1000) ** 2 / 1000).sum(1)
    assert chi_square.max() < 50  # 19 degrees of freedom: above 50 once in about 8,000 columns


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("crop", 0, 1), ("crop", 1, 0)),
        (("crop", 0, 1), ("words", 0, 1)),
        (("crop", 0, 1, 0), ("crop", 0, 0, 1)),
        (("crop", 2, 3), ("crop", 3, 3)),
    ],
)
def test_other_counters_and_other_purposes_are_uncorrelated(one: tuple, other: tuple) -> None:
    position = np.arange(20_000)
    first, second = (uniform(11, stream, *rest, position) for stream, *rest in (one, other))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(position))


def test_other_seeds_and_successive_positions_are_uncorrelated() -> None:
    position = np.arange(20_000)
    first = uniform(0, "crop", 0, position)
    for second in (uniform(1, "crop", 0, position), uniform(0, "crop", 0, position + 1)):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(position))


def test_a_value_does_not_depend_on_what_is_drawn_beside_it() -> None:
    together = uniform(5, "crop", np.arange(100)[:, None], np.arange(4))
    alone = [[uniform(5, "crop", row, column) for column in range(4)] for row in range(100)]
    np.testing.assert_array_equal(together, np.array(alone))
    assert len(np.unique(together)) == together.size
