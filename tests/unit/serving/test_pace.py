"""What the batcher knows of time."""

import numpy as np
import pytest

from app.serving.pace import Pace

# Ten milliseconds, and one more for each row.
LINEAR = {rows: 0.010 + 0.001 * rows for rows in (1, 2, 4, 8, 16, 32, 64)}


def test_between_known_sizes_the_cost_is_a_straight_line_and_beyond_it_grows_with_the_rows():
    pace = Pace(LINEAR, 256)
    assert pace.cost(1) == pytest.approx(0.011)
    assert pace.cost(24) == pytest.approx(0.034)
    assert pace.cost(128) == pytest.approx(2 * 0.074)
    assert Pace({}, 64).cost(8) == 0


def test_runs_are_learned_from_and_sizes_that_were_not_seen_follow_the_drift():
    pace = Pace(LINEAR, 64)
    for _ in range(100):
        pace.ran(24, 0.068)  # twice what the warm-up measured
    assert pace.cost(24) == pytest.approx(0.068, rel=0.05)
    assert pace.cost(64) == pytest.approx(2 * 0.074, rel=0.2)
    for _ in range(100):
        pace.ran(8, 0.005)
    assert pace.cost(8) == pytest.approx(0.005, rel=0.05)


def test_without_a_warm_up_the_first_run_is_the_estimate():
    pace = Pace({}, 64)
    pace.ran(8, 0.016)
    assert pace.cost(8) == pytest.approx(0.016)
    assert pace.cost(32) == pytest.approx(0.064)


SMALL = {1 << bit: 3e-5 + 1e-6 * (1 << bit) for bit in range(7)}


@pytest.mark.parametrize("runs_before", [0, 5])
def test_one_run_that_was_held_up_says_little_of_the_next(runs_before: int):
    pace, quick = Pace(SMALL, 64, p95_s=0.05), SMALL[1]
    for _ in range(runs_before):
        pace.ran(1, quick)
    pace.ran(1, 0.1)
    assert pace.cost(1) == pytest.approx(2 * quick)
    assert pace.cost(64) <= 2 * SMALL[64] * 1.001
    for _ in range(25):
        pace.ran(1, quick)
    assert pace.cost(1) == pytest.approx(quick, rel=0.1)


def test_one_run_does_not_make_the_estimate_exceed_what_was_seen():
    for factor in (1.5, 3.0, 10.0, 1000.0):
        for size, usual in SMALL.items():
            pace = Pace(SMALL, 64)
            pace.ran(size, factor * usual)
            assert usual < pace.cost(size) <= factor * usual


def test_a_lasting_slow_down_is_learned():
    pace = Pace(SMALL, 64)
    for _ in range(60):
        pace.ran(1, 0.1)
        pace.ran(3, 0.3)
    assert pace.cost(1) == pytest.approx(0.1, rel=0.05)
    assert pace.cost(3) == pytest.approx(0.3, rel=0.05)


def test_sizes_that_were_seen_do_not_move_those_that_were_not():
    """Three rows take longer than four, as where a graph is made for some sizes: no straight line is true of them."""
    pace = Pace(SMALL, 64)
    for _ in range(1000):
        for size, seconds in ((2, 32e-6), (3, 50e-6), (4, 34e-6)):
            pace.ran(size, seconds)
    assert pace.cost(64) == pytest.approx(SMALL[64], rel=0.3)


def test_a_promise_bounds_the_rows_of_a_run_to_half_of_it():
    assert Pace(LINEAR, 64).batch == 64
    assert Pace(LINEAR, 64, p95_s=0.2).batch == 64
    assert Pace(LINEAR, 64, p95_s=0.1).batch == 32  # 42 ms
    assert Pace(LINEAR, 64, p95_s=0.02).batch == 1  # cannot be kept: as little as there is


@pytest.mark.parametrize(
    ("costs", "batch"),
    [
        ({1: 0.015, 2: 0.029, 4: 0.057, 8: 0.112}, 8),  # the warm-up ended there, and four rows were as good as eight
        ({1: 0.060, 2: 0.065, 4: 0.075, 8: 0.110}, 32),  # reading the weights is most of it
        ({1: 0.200}, 32),  # nothing is known
        ({}, 32),
        ({size: 0.001 * size for size in (1, 2, 4, 8, 16, 32)}, 32),  # the warm-up came to its end
    ],
)
def test_long_runs_are_not_made_longer_for_nothing(costs: dict[int, float], batch: int):
    pace = Pace(costs, 32)
    assert pace.batch == batch
    pace.ran(batch, 0.1)
    assert pace.batch == batch


def test_of_the_sizes_that_keep_the_promise_the_fastest_per_row_is_taken():
    slower_together = {1: 0.010, 2: 0.012, 4: 0.016, 8: 0.040, 16: 0.100}
    assert Pace(slower_together, 16, p95_s=1.0).batch == 4


def test_the_expected_time_counts_runs_before_and_lanes():
    pace = Pace(LINEAR, 64, lanes=2, p95_s=0.1)  # runs of up to 32 rows
    assert pace.expect(0, 1) == pytest.approx(0.011)
    assert pace.expect(0, 1, busy_s=0.03) == pytest.approx(0.041)
    assert pace.expect(64, 1) == pytest.approx(0.042 + 0.011)
    assert pace.expect(63, 1) == pytest.approx(0.042)


def test_under_overload_the_margin_rests_where_one_in_200_is_late():
    """Requests take what is expected times noise, and as many are let in as the promise allows."""
    pace = Pace(LINEAR, 64, p95_s=0.1)
    late = []
    for at, noise in enumerate(np.random.default_rng(3).lognormal(0.0, 0.3, 40_000)):
        seconds = 0.1 / pace.margin * noise  # the last one that is let in
        pace.took(at / 1000, seconds)
        if at > 4_000:
            late.append(seconds > 0.1)
    assert np.mean(late) == pytest.approx(0.005, abs=0.002)
    assert pace.keeps(0.1 / pace.margin * 0.99)
    assert not pace.keeps(0.1 / pace.margin * 1.01)


def test_the_margin_is_never_below_one():
    pace = Pace(LINEAR, 64, p95_s=0.1)
    for at in range(10_000):
        pace.took(at / 1000, 0.001)
    assert pace.margin == 1.0
    assert not pace.keeps(0.101)
