"""What is under way of one stream is bounded by number and by bytes."""

import asyncio
from typing import Any

from app.gateway.grpc.window import Window


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_requests_wait_for_room_and_are_answered_in_their_order():
    window: Window[int] = Window(64, 100)
    begun: list[int] = []

    def begin(number: int) -> Any:
        async def answer() -> int:
            return number

        begun.append(number)
        return lambda: asyncio.create_task(answer())

    sizes = [60, 40, 1, 500, 10]

    async def take() -> None:
        for number, size in enumerate(sizes):
            await window.add(size, begin(number))
        await window.end()

    reader = asyncio.create_task(take())
    seen = []
    for expected in ([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]):
        await settle()
        assert begun == expected  # the last of them waits, unless all are there
        first = await window.first()
        assert first is not None
        seen.append(await first[0])
        window.left(first[1])
    assert await window.first() is None
    assert seen == [0, 1, 2, 3, 4]
    await reader


async def test_who_has_left_is_not_worked_for():
    window: Window[None] = Window(2, 100)

    async def wait() -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(wait()) for _ in range(2)]
    for task in tasks:
        await window.add(1, lambda task=task: task)
    window.cancel()
    await settle()
    assert all(task.cancelled() for task in tasks)


async def test_what_waits_for_a_place_is_not_begun():
    window: Window[int] = Window(1, 100)
    begun: list[asyncio.Task[int]] = []

    def begin() -> asyncio.Task[int]:
        begun.append(asyncio.create_task(asyncio.sleep(3600, 1)))
        return begun[-1]

    async def take() -> None:
        while True:
            await window.add(1, begin)

    reader = asyncio.create_task(take())
    await settle()
    assert len(begun) == 1
    assert await window.first() == (begun[0], 1)  # makes place, while its answer is waited for
    await settle()
    assert len(begun) == 2
    reader.cancel()
    window.cancel()
    await settle()
    assert (len(begun), begun[1].cancelled()) == (2, True)
    begun[0].cancel()
