"""Change points: a planted regression is marked where it is, and an unchanged history rarely."""

from __future__ import annotations

import numpy as np
import pytest
from recorded_baselines import recorded, releases

from validation.history import change_points, history


def test_a_regression_is_marked_where_it_begins() -> None:
    (found,) = history(releases(20.0, 20.01, 19.99, 20.0, 20.2, 20.21, 20.2))
    assert [change.first for change in found.changes] == [4]
    assert found.changes[0].percent == pytest.approx(1.0, abs=0.1)


def test_the_last_release_alone_is_marked() -> None:
    (found,) = history(releases(20.0, 20.01, 19.99, 20.0, 20.3))
    assert [change.first for change in found.changes] == [4]


def test_there_and_back_is_two_changes() -> None:
    (found,) = history(releases(20.0, 20.01, 19.99, 20.4, 20.41, 20.4, 20.0, 20.01, 19.99))
    assert [change.first for change in found.changes] == [3, 6]


def test_a_step_inside_the_launch_spread_is_not_marked() -> None:
    quiet, loud = releases(20.0, 20.0, 20.2, 20.2), releases(20.0, 20.0, 20.2, 20.2, launch_sd_percent=3.0)
    assert history(quiet)[0].changes
    assert not history(loud)[0].changes


def test_many_records_that_wander_more_than_their_launches_say_so_themselves() -> None:
    rng = np.random.default_rng(1)
    (found,) = history(releases(*(20.0 * np.exp(0.01 * rng.standard_normal(12))), launch_sd_percent=0.05))
    assert not found.changes


def test_without_any_spread_few_records_are_not_marked_and_it_is_said() -> None:
    (found,) = history(releases(20.0, 20.0, 25.0, launch_sd_percent=None, launches=1))
    assert not found.changes
    assert "too few to tell it from changes" in found.unmarked
    assert found.points[0].lower is None


def test_two_records_are_no_history() -> None:
    assert "from 3 on" in history(releases(20.0, 30.0))[0].unmarked


@pytest.mark.parametrize("records", [3, 5, 10, 20])
def test_unchanged_histories_are_marked_in_about_five_percent(records: int) -> None:
    rng = np.random.default_rng(records)
    marked = sum(bool(change_points(rng.standard_normal(records))) for _ in range(400))
    assert marked <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


@pytest.mark.parametrize("records", [5, 10, 20])
def test_five_standard_deviations_are_found_in_nine_of_ten(records: int) -> None:
    rng = np.random.default_rng(records)
    step = np.where(np.arange(records) >= records - 1, 5.0, 0.0)
    assert sum(records - 1 in change_points(rng.standard_normal(records) + step) for _ in range(100)) >= 90


def test_accuracy_has_a_history_too() -> None:
    good, bad = "1" * 950 + "0" * 50, "1" * 850 + "0" * 150
    files = {
        f"r{i}.json": recorded(i, 20.0, marks=(marks, marks)) for i, marks in enumerate([good, good, good, bad, bad])
    }
    (found,) = history(files, "accuracy")
    assert [change.first for change in found.changes] == [3]
    assert found.points[0].value == 0.95
    assert found.points[0].lower is not None
    assert 0.93 < found.points[0].lower < 0.95
