"""Which of the waiting form the next batch."""

import asyncio
from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from app.serving.waiting import Pending, put, rows_before, take

LOOP = asyncio.new_event_loop()
LOOP.close()  # futures need a loop's name, and nothing here runs on it


def pending(rows: int = 1, shape: tuple[tuple[int, ...], ...] = (), deadline: float = 100.0) -> Pending:
    return Pending((), rows, asyncio.Future(loop=LOOP), 0.0, deadline, shape)


def test_other_shapes_keep_their_places():
    a, b, c, d, e = (pending(shape=((size,),)) for size in (3, 5, 3, 7, 5))
    waiting = deque([a, b, c, d, e])
    assert take(waiting, 8, 0.0) == ([a, c], [], 2)
    assert list(waiting) == [b, d, e]
    assert take(waiting, 8, 0.0) == ([b, e], [], 2)
    assert take(waiting, 8, 0.0) == ([d], [], 1)


def test_what_is_passed_over_can_still_be_late():
    a, late = pending(shape=((3,),)), pending(shape=((5,),), deadline=-1.0)
    assert take(deque([a, late]), 8, 0.0) == ([a], [late], 2)


REQUESTS = st.lists(st.tuples(st.integers(1, 6), st.sampled_from([((1,),), ((2,),), ((2, 2),)])), max_size=30)


@given(REQUESTS, st.integers(1, 10))
def test_everybody_is_served_once_in_order_and_with_their_own_kind(
    requests: list[tuple[int, tuple[tuple[int, ...], ...]]], budget: int
):
    everybody = [pending(rows, shape) for rows, shape in requests]
    waiting, served = deque(everybody), []
    while waiting:
        first = waiting[0]
        batch, late, removed = take(waiting, budget, 0.0)
        assert batch[0] is first
        assert not late
        assert removed == sum(p.rows for p in batch)
        assert len({p.shape for p in batch}) == 1
        assert len(batch) == 1 or removed <= budget
        served += batch
    for shape in {p.shape for p in everybody}:
        assert [p for p in served if p.shape == shape] == [p for p in everybody if p.shape == shape]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), max_size=30), st.integers(1, 4))
def test_rows_before_are_those_that_it_would_be_put_behind(requests: list[tuple[int, int]], priority: int):
    waiting: deque[Pending] = deque()
    for rows, own in requests:
        request = pending(rows)
        request.priority = own
        put(waiting, request)
    new = pending()
    new.priority = priority
    before = rows_before(waiting, priority)
    put(waiting, new)
    assert before == sum(p.rows for p in list(waiting)[: waiting.index(new)])
