"""What the queue asks of Redis: the in-memory twin and a real server."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from app.core.errors import Unavailable
from app.core.ids import new_id
from app.core.jobs import Ready
from app.queue.memory import MemoryWake
from app.queue.ports import Wake
from app.queue.redis import RedisWake
from tests.support.servers import ValkeyServer


@pytest.fixture(params=["memory", "valkey"])
async def wake(request: pytest.FixtureRequest) -> AsyncIterator[Wake]:
    made: Wake
    if request.param == "memory":
        made = MemoryWake()
    else:
        made = RedisWake(request.getfixturevalue("redis_url"))
        while await made.next(["cpu", "cuda"], 0.05):  # what an earlier test has left
            pass
    yield made
    await made.close()


class TestWake:
    async def test_an_announced_job_reaches_one_waiting_agent(self, wake: Wake) -> None:
        waiting = [asyncio.create_task(wake.next(["cpu"], 1.0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await wake.announce(Ready("j1", "cpu", 1))
        answers = await asyncio.gather(*waiting)
        assert sorted(answers, key=str) == ["j1", None, None] or answers.count("j1") == 1

    async def test_priorities_come_first_and_devices_are_kept_apart(self, wake: Wake) -> None:
        await wake.announce(Ready("late", "cpu", 2))
        await wake.announce(Ready("gpu", "cuda", 0))
        await wake.announce(Ready("soon", "cpu", 0))
        assert await wake.next(["cpu"], 1.0) == "soon"
        assert await wake.next(["cpu"], 1.0) == "late"
        assert await wake.next(["cpu"], 0.05) is None
        assert await wake.next(["cuda", "cpu"], 1.0) == "gpu"

    async def test_first_announced_is_first_served(self, wake: Wake) -> None:
        ids = [new_id() for _ in range(5)]
        for job_id in ids:
            await wake.announce(Ready(job_id, "cpu", 1))
        assert [await wake.next(["cpu"], 1.0) for _ in range(5)] == ids

    async def test_many_are_announced_at_once(self, wake: Wake) -> None:
        ids = [new_id() for _ in range(4)]
        await wake.announce(*(Ready(job_id, "cpu", i % 2) for i, job_id in enumerate(ids)))
        await wake.announce()
        assert [await wake.next(["cpu"], 1.0) for _ in range(4)] == [ids[0], ids[2], ids[1], ids[3]]

    async def test_a_job_that_is_announced_again_and_again_waits_once(self, wake: Wake) -> None:
        for _ in range(3):
            await wake.announce(Ready("j1", "cpu", 1), Ready("j2", "cpu", 1))
        assert [await wake.next(["cpu"], 0.05) for _ in range(3)] == ["j1", "j2", None]
        await wake.announce(Ready("j1", "cpu", 1))
        assert await wake.next(["cpu"], 0.05) == "j1"

    async def test_a_message_reaches_every_listener_of_its_channel(self, wake: Wake) -> None:
        channel = f"c-{new_id()}"
        listeners = [wake.listen(channel), wake.listen(channel, "other")]
        for listener in listeners:
            assert await anext(listener) == ("", "")
        await wake.publish("elsewhere", "no")
        await wake.publish(channel, "yes")
        for listener in listeners:
            assert await asyncio.wait_for(anext(listener), 2) == (channel, "yes")
            await listener.aclose()  # type: ignore[attr-defined]


class TestOutage:
    async def test_a_dead_server_is_unavailable_and_a_restarted_one_is_used_again(self) -> None:
        with ValkeyServer() as server:
            wake = RedisWake(server.url, timeout_s=1.0)
            listener = wake.listen("c")
            assert await anext(listener) == ("", "")
            server.kill()
            with pytest.raises(Unavailable, match="AIMASS_REDIS_URL"):
                await wake.announce(Ready("j", "cpu", 1))
            with pytest.raises(Unavailable):
                await wake.next(["cpu"], 0.2)
            server.start()
            assert await asyncio.wait_for(anext(listener), 5) == ("", "")
            await wake.announce(Ready("j", "cpu", 1))
            assert await wake.next(["cpu"], 1.0) == "j"
            await listener.aclose()  # type: ignore[attr-defined]
            await wake.close()
