"""What is under way of one stream is bounded by number and by bytes, and counted."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.core.errors import Overloaded
from app.gateway.grpc.window import Window
from app.gateway.predict.bodies import SMALL_BODY, Bodies

LARGE = SMALL_BODY + 1


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def done(number: int, begun: list[int]) -> Callable[[], asyncio.Future[int]]:
    def begin() -> asyncio.Future[int]:
        begun.append(number)
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(number)
        return answer

    return begin


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(10 * LARGE)


async def test_requests_wait_for_room_and_are_answered_in_their_order(bodies: Bodies):
    window: Window[int] = Window(64, 100, bodies)
    begun: list[int] = []

    async def take() -> None:
        for number, size in enumerate([60, 40, 1, 500, 10]):
            await window.add(window.enter(size), done(number, begun))
        window.end()

    reader = asyncio.create_task(take())
    seen = []
    for expected in ([0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4]):
        await settle()
        assert begun == expected
        first = await window.first()
        assert first is not None
        seen.append(await first[0])
        window.left(first[1])
    assert await window.first() is None
    assert seen == [0, 1, 2, 3, 4]
    await reader


async def test_who_has_left_is_not_worked_for(bodies: Bodies):
    window: Window[None] = Window(2, 100, bodies)

    async def wait() -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(wait()) for _ in range(2)]
    for task in tasks:
        await window.add(window.enter(1), lambda task=task: task)
    window.cancel()
    await settle()
    assert all(task.cancelled() for task in tasks)


async def test_what_waits_for_a_place_is_not_begun(bodies: Bodies):
    window: Window[int] = Window(1, 100, bodies)
    begun: list[asyncio.Task[int]] = []

    def begin() -> asyncio.Task[int]:
        begun.append(asyncio.create_task(asyncio.sleep(3600, 1)))
        return begun[-1]

    async def take() -> None:
        while True:
            await window.add(window.enter(1), begin)

    reader = asyncio.create_task(take())
    await settle()
    assert len(begun) == 1
    first: Any = await window.first()
    assert first[0] is begun[0]  # makes place, while its answer is waited for
    await settle()
    assert len(begun) == 2
    reader.cancel()
    window.cancel()
    await settle()
    assert (len(begun), begun[1].cancelled()) == (2, True)
    begun[0].cancel()


async def test_the_end_is_told_while_there_is_no_room(bodies: Bodies):
    window: Window[int] = Window(1, 100, bodies)
    await window.add(window.enter(1), done(0, []))
    window.end()
    assert await window.first() is not None
    assert await window.first() is None


async def test_a_request_counts_from_when_it_comes_until_its_answer_is_sent(bodies: Bodies):
    window: Window[int] = Window(64, 3 * LARGE, bodies)
    place, waits = window.enter(LARGE), window.enter(4 * LARGE)
    assert bodies.held == 5 * LARGE  # before either is begun
    await window.add(place, done(0, []))
    adding = asyncio.create_task(window.add(waits, done(1, [])))
    with pytest.raises(Overloaded, match="AIMASS_LIMIT_BODIES_MB"):
        window.enter(6 * LARGE)
    window.answered(place, 7 * LARGE)  # in place of the request; that it is too much is not its fault
    assert bodies.held == 11 * LARGE
    assert await window.first() is not None
    await settle()
    assert not adding.done()  # the answer is held, so there is no room yet
    window.left(place)
    await adding
    assert bodies.held == 4 * LARGE
    window.answered(waits, 10)
    assert bodies.held == 0


async def test_nothing_counts_once_nobody_waits(bodies: Bodies):
    window: Window[int] = Window(64, 100, bodies)
    sent, begun, waits = (window.enter(LARGE) for _ in range(3))
    await window.add(sent, done(0, []))
    await window.first()
    adding = asyncio.create_task(window.add(begun, done(1, [])))
    await settle()
    window.cancel()
    assert bodies.held == 0
    for place in (sent, begun, waits):  # of a request whose work could not be stopped
        window.answered(place, LARGE)
    assert bodies.held == 0
    adding.cancel()
