"""Group commit: who shares a group, and that nobody suffers from it."""

import asyncio
from collections.abc import Sequence

import pytest

from app.core.errors import Unavailable
from app.registry.together import MOST, Together

AWAY = 10**9


class Doubler:
    """Doubles numbers; `0` is refused, a negative one breaks the whole transaction, `AWAY` finds no server."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, asks: Sequence[int]) -> list[int | Exception]:
        self.groups.append(list(asks))
        await self.go_on.wait()
        if AWAY in asks:
            raise Unavailable("no server")
        if min(asks) < 0:
            raise ValueError("broken")
        return [number * 2 if number else KeyError(number) for number in asks]


@pytest.fixture
def doubler() -> Doubler:
    return Doubler()


def errors(answers: Sequence[object]) -> list[type]:
    return [type(answer) for answer in answers if isinstance(answer, BaseException)]


async def start(together: Together[int, int], numbers: Sequence[int]) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(together.ask(number)) for number in numbers]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_what_comes_during_a_group_is_the_next(doubler: Doubler) -> None:
    together = Together(doubler)
    doubler.go_on.clear()
    first = await start(together, [1])
    rest = await start(together, [2, 3, 4])
    doubler.go_on.set()
    assert await asyncio.gather(*first, *rest) == [2, 4, 6, 8]
    assert doubler.groups == [[1], [2, 3, 4]]
    assert await together.ask(5) == 10


async def test_a_group_is_bounded(doubler: Doubler) -> None:
    numbers = list(range(1, 2 * MOST + 2))
    assert await asyncio.gather(*map(Together(doubler).ask, numbers)) == [2 * number for number in numbers]
    assert [len(group) for group in doubler.groups] == [MOST, MOST, 1]


async def test_a_refusal_is_one_askers_own(doubler: Doubler) -> None:
    answers = await asyncio.gather(*map(Together(doubler).ask, [1, 0, 2]), return_exceptions=True)
    assert [answers[0], answers[2]] == [2, 4]
    assert errors(answers) == [KeyError]
    assert doubler.groups == [[1, 0, 2]]


async def test_what_breaks_the_transaction_breaks_for_its_asker_alone(doubler: Doubler) -> None:
    answers = await asyncio.gather(*map(Together(doubler).ask, [1, -1, 2]), return_exceptions=True)
    assert [answers[0], answers[2]] == [2, 4]
    assert errors(answers) == [ValueError]
    assert doubler.groups == [[1, -1, 2], [1], [-1], [2]]


async def test_a_server_that_is_away_is_not_asked_once_for_each(doubler: Doubler) -> None:
    answers = await asyncio.gather(*map(Together(doubler).ask, [1, AWAY, 2]), return_exceptions=True)
    assert errors(answers) == [Unavailable] * 3
    assert doubler.groups == [[1, AWAY, 2]]


@pytest.mark.parametrize("position", [0, 1])
async def test_a_cancelled_asker_hurts_no_other(doubler: Doubler, position: int) -> None:
    together = Together(doubler)
    doubler.go_on.clear()
    running, waiting = await start(together, [1, 2]), await start(together, [3, 4])
    running[position].cancel()
    waiting[position].cancel()
    doubler.go_on.set()
    answers = await asyncio.gather(*running, *waiting, return_exceptions=True)
    assert errors(answers) == [asyncio.CancelledError] * 2
    assert [answer for answer in answers if isinstance(answer, int)] == ([4, 8] if position == 0 else [2, 6])
    assert doubler.groups == [[1, 2], [4 if position == 0 else 3]], "what had begun goes on; what had not is left out"


async def test_closing_waits_for_those_who_have_asked(doubler: Doubler) -> None:
    together = Together(doubler)
    doubler.go_on.clear()
    tasks = await start(together, [1, 2])
    closing = asyncio.create_task(together.close())
    await asyncio.sleep(0)
    assert not closing.done()
    doubler.go_on.set()
    await closing
    assert await asyncio.gather(*tasks) == [2, 4]
