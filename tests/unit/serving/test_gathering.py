"""Who was just answered, and has come back at once before, is waited for, a little."""

from app.serving.gathering import Gathering

RUN_S, WINDOW_S = 0.02, 0.002


def faithful(lanes: int = 2, back: int = 4) -> Gathering:
    """At time 0, when `back` of every four rows have come back in time for a while."""
    gathering = Gathering(lanes)
    for turn in range(-20, 0):
        gathering.started(4)
        gathering.ended(4, float(turn), RUN_S)
        for _ in range(back):
            gathering.came(1, turn + WINDOW_S / 2)
    return gathering


def answer(gathering: Gathering, rows: int, *, beside: int = 0, cost_s: float = RUN_S) -> Gathering:
    """At time 0 a run of `rows` rows ends, while a run of `beside` rows goes on."""
    gathering.started(rows)
    gathering.started(beside)
    gathering.ended(rows, 0.0, cost_s)
    return gathering


def test_a_lane_waits_for_its_share_of_the_rows_that_are_on_their_way():
    gathering = answer(faithful(), 4, beside=4)
    for waiting in range(1, 4):
        gathering.came(1, 0.0)
        assert gathering.wait_s(waiting, 64, 0.0) == WINDOW_S
    gathering.came(1, 0.0)
    assert gathering.wait_s(4, 64, 0.0) == 0.0
    assert gathering.share(4) == 4


def test_uneven_lanes_become_even():
    gathering = answer(faithful(), 7, beside=1)
    gathering.came(7, 0.0)
    assert gathering.share(7) == 4


def test_a_lone_caller_is_not_kept_waiting():
    gathering = answer(faithful(), 1)
    gathering.came(1, 0.0)
    assert gathering.wait_s(1, 64, 0.0) == 0.0


def test_callers_who_do_not_come_back_are_not_waited_for():
    gathering = answer(faithful(back=1), 4, beside=4)
    gathering.came(1, 0.0)
    assert gathering.wait_s(1, 64, 0.0) == 0.0
    assert gathering.share(1) == 3


def test_the_wait_ends_at_a_tenth_of_the_run():
    gathering = answer(faithful(), 4, beside=4)
    gathering.came(1, 0.0)
    assert gathering.wait_s(1, 64, WINDOW_S / 2) > 0
    assert gathering.wait_s(1, 64, WINDOW_S) == 0.0
    gathering.give_up()
    assert gathering.wait_s(1, 64, 0.0) == 0.0
    assert gathering.share(1) == 3


def test_a_long_run_does_not_mean_a_long_wait():
    assert 0 < answer(faithful(), 4, cost_s=10.0).wait_s(1, 64, 0.0) <= 0.02


def test_a_quick_run_is_not_worth_a_wait():
    assert answer(faithful(), 4, cost_s=0.001).wait_s(1, 64, 0.0) == 0.0


def test_a_full_batch_goes_at_once():
    assert answer(faithful(lanes=1), 200).wait_s(64, 64, 0.0) == 0.0
