import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.search import MOST_TRIES, largest_within, smallest_holding


class Counted:
    """A measure that remembers where it was asked."""

    def __init__(self, measure: object) -> None:
        assert callable(measure)
        self.measure = measure
        self.asked: list[int] = []

    def __call__(self, count: int) -> float:
        self.asked.append(count)
        return float(self.measure(count))


@given(
    most=st.integers(2, 10**7),
    share=st.floats(0.001, 2.0),
    overhead=st.integers(0, 50_000),
    each=st.floats(1.0, 250.0),
    guess=st.integers(1, 10**7),
)
def test_sizes_are_met_closely_in_few_tries(most: int, share: float, overhead: int, each: float, guess: int) -> None:
    measure = Counted(lambda count: overhead + int(each * count))
    limit = overhead + max(1.0, share * most) * each
    found = largest_within(measure, limit, most, guess)
    assert found is not None and found in measure.asked
    assert measure.measure(found) <= limit
    # A few tries suffice from a guess that is about right, where one unit is less than the tolerance.
    sensible = 0.1 < guess * each / limit < 10 and limit > max(2 * overhead, 100 * each)
    close = measure.measure(found) >= 0.97 * limit or found == most or measure.measure(found + found // 99 + 1) > limit
    tries = len(measure.asked)
    assert (close and tries <= 6) if sensible else ((close or tries == MOST_TRIES) and tries <= MOST_TRIES)


@given(st.floats(0.7, 1.3), st.integers(1000, 10**6), st.floats(0.05, 0.9))
def test_sizes_that_do_not_grow_in_proportion_are_met(power: float, most: int, share: float) -> None:
    measure = Counted(lambda count: 1000 + 20 * count**power)
    limit = measure.measure(max(2, int(most * share)))
    found = largest_within(measure, limit, most, guess=most)
    assert found is not None
    assert 0.97 * limit <= measure.measure(found) <= limit
    assert len(measure.asked) <= 6


def test_a_measure_that_hardly_grows_is_no_trap() -> None:
    measure = Counted(lambda count: 1000 + 1e-3 * count)
    assert largest_within(measure, 1000.5, 10**6, guess=10) is not None


def test_a_jump_over_the_limit_is_closed_in_on() -> None:
    measure = Counted(lambda count: 25 * count + (600_000 if count >= 65_536 else 0))
    found = largest_within(measure, 2_000_000, 500_000, guess=67_000)
    assert found is not None and 0.98 * 65_536 <= found < 65_536
    assert len(measure.asked) <= 8


def test_everything_is_kept_where_everything_fits() -> None:
    measure = Counted(lambda count: 10 * count)
    assert largest_within(measure, 5000, 100, guess=100) == 100
    assert measure.asked == [100]


def test_no_count_is_found_where_none_fits() -> None:
    assert largest_within(lambda count: 100 + count, 50, 1000, guess=10) is None


def curve(count: int) -> float:
    return 20 + 6 * math.log10(count)


@given(st.floats(20.5, 50.0))
def test_qualities_are_held_by_about_the_smallest_count(target: float) -> None:
    measure = Counted(curve)
    found = smallest_holding(measure, target, most=10**5, guess=25_000)
    assert found is not None and found in measure.asked
    assert target <= curve(found)
    close = curve(found) <= target + 0.1 or curve(max(1, int(found / 1.03) - 1)) < target
    assert close and len(measure.asked) <= (6 if target > 30 else 9)


def test_a_lossless_whole_does_not_stop_the_search() -> None:
    found = smallest_holding(lambda count: math.inf if count == 10**5 else curve(count), 40.0, 10**5, guess=25_000)
    assert found is not None
    assert 40.0 <= curve(found) <= 40.2


def test_only_the_whole_may_hold() -> None:
    measure = Counted(lambda count: 99.0 if count == 1000 else 10.0)
    found = smallest_holding(measure, 50.0, most=1000, guess=250)
    assert found == 1000 and len(measure.asked) <= 11


def test_nothing_is_found_where_the_whole_does_not_hold() -> None:
    measure = Counted(curve)
    assert smallest_holding(measure, 60.0, most=10**5, guess=25_000) is None
    assert measure.asked[-1] == 10**5


@pytest.mark.parametrize("most", [1, 2, 3])
def test_tiny_scenes(most: int) -> None:
    assert smallest_holding(lambda count: 10.0 * count, 10.0, most, guess=1) == 1
    assert largest_within(lambda count: float(count), most, most, guess=1) == most
