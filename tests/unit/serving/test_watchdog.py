"""Runs that hang are ended; models that no longer answer are taken out and come back."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.core.errors import Corrupt, DeadlineExceeded, Unavailable
from app.serving.host import Host, ServedModel
from app.serving.sleep import Sleeper
from app.serving.types import Answer, Tensors
from app.serving.watchdog import Watchdog
from app.settings import ServingSettings
from tests.support.graphs import FOR_EVER, heavy, looping, source

WITHIN_S = 60.0


@asynccontextmanager
async def serving(**settings: float) -> AsyncIterator[Host]:
    host = Host(ServingSettings(threads=2, **settings))  # type: ignore[arg-type] # every one used here is a number
    yield host
    await host.close()


@pytest.fixture(scope="module")
def loop_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looping(tmp_path_factory.mktemp("looping"))


async def serve(host: Host, folder: Path, name: str = "m") -> ServedModel:
    served = await host.load(source(folder, name))
    await host.swap(served)
    return served


async def ask(host: Host, trips: int, name: str = "m") -> int:
    with await host.reach(name) as served:
        answer = await served.infer((np.array([trips]),), 1)
    return int(answer.outputs[0][0])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


async def test_a_run_for_ever_in_a_lane_is_ended_and_hurts_no_other(loop_folder: Path):
    async with serving(run_limit_s=0.5) as host:
        served = await serve(host, loop_folder)
        served.leave_loop()
        stuck = asyncio.create_task(ask(host, FOR_EVER))
        await asyncio.sleep(0)
        others = [asyncio.create_task(ask(host, trips)) for trips in range(1, 6)]
        assert await asyncio.gather(*others) == [1, 2, 3, 4, 5]
        with pytest.raises(DeadlineExceeded, match="AIMASS_SERVING_RUN_LIMIT_S"):
            await stuck
        assert host.get("m") is served
        assert await ask(host, 7) == 7


async def test_models_that_have_hung_leave_the_lanes_to_others(loop_folder: Path):
    async with serving(run_limit_s=1) as host:
        for name in ("one", "two", "other"):
            (await serve(host, loop_folder, name)).leave_loop()
        for _ in range(2):  # the first time nobody could know
            stuck = [asyncio.create_task(ask(host, FOR_EVER, name)) for name in ("one", "two")]
            await asyncio.sleep(0.1)
            answered = [asyncio.create_task(ask(host, trips, "other")) for trips in (1, 2)]
            await asyncio.wait([*stuck, *answered], return_when=asyncio.FIRST_COMPLETED)
            hindered = any(one.done() for one in stuck)
            assert await asyncio.gather(*answered) == [1, 2]
            assert [type(one) for one in await asyncio.gather(*stuck, return_exceptions=True)] == [DeadlineExceeded] * 2
        assert not hindered
        assert await ask(host, 3, "one") == 3


async def test_a_run_for_ever_on_the_event_loop_is_ended_and_moves_the_model_to_a_lane(loop_folder: Path):
    async with serving(run_limit_s=1) as host:
        served = await serve(host, loop_folder)
        if not served.plan.inline:
            pytest.skip("the machine was too busy to plan this model on the event loop")
        asked = [ask(host, trips) for trips in (1, FOR_EVER, 2)]
        one, stuck, two = await asyncio.gather(*asked, return_exceptions=True)
        assert (one, two) == (1, 2)  # they shared its batch
        assert isinstance(stuck, DeadlineExceeded)
        await until(lambda: not served.plan.inline)
        assert await ask(host, 3) == 3


class Broken:
    """What a lane runs instead of the model, until it is mended by loading it anew."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self.let_go = asyncio.Event()

    def wrong(self, inputs: Tensors) -> Tensors:
        return tuple(tensor + 1 for tensor in inputs)

    def failing(self, inputs: Tensors) -> Tensors:
        self._served.watch.failures += 1
        raise MemoryError(f"no room for {len(inputs)} tensors")

    def hanging(self, inputs: Tensors) -> Tensors:
        time.sleep(3)  # as an operator would that does not look at RunOptions.terminate
        return inputs


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("wrong", "golden output differs from the recorded one"),
        ("failing", "the golden rows do not run: MemoryError: no room for 1 tensors"),
        ("hanging", "the golden rows had no answer within 1 s"),
    ],
)
async def test_a_model_that_goes_bad_is_taken_out_and_loaded_anew(loop_folder: Path, way: str, why: str):
    async with serving(prove_s=0.2, run_limit_s=0.4) as host:
        served = await serve(host, loop_folder)
        served.leave_loop()
        batcher = served._batcher
        assert batcher is not None
        object.__setattr__(batcher._plan, "run", getattr(Broken(served), way))
        await until(lambda: host.outages() or host.get("m") is not served)
        if outages := host.outages():  # unless it is back already
            assert outages == {"m": why}
            assert not host.ready()
            with pytest.raises(Unavailable, match="out of service") as refused:
                await ask(host, 1)
            assert refused.value.retry_after_s is not None
        await until(lambda: host.get("m") not in {None, served})
        assert host.metrics.residency.taken_out == {"m": 1}
        assert (host.outages(), await ask(host, 5)) == ({}, 5)


async def test_who_waits_for_a_model_that_is_taken_out_is_answered(loop_folder: Path):
    async with serving(run_limit_s=3) as host:
        served = await serve(host, loop_folder)
        served.leave_loop()
        asked = [asyncio.create_task(ask(host, trips)) for trips in (FOR_EVER, 1, 2)]
        await until(lambda: served._batcher is not None and served._batcher._running)
        host.take_out(served, "it was told to")
        for result in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(result, Unavailable)
            assert "it was told to" in result.detail


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
async def test_who_reads_his_request_while_the_model_is_taken_out_is_told_so(loop_folder: Path, cache_bytes: int):
    async with serving() as host:
        wanted = source(loop_folder, "m")
        batching = replace(wanted.batching, cache_bytes=cache_bytes)
        served = await host.load(replace(wanted, batching=batching))
        await host.swap(served)
        assert await ask(host, 1) == 1
        with served:
            host.take_out(served, "it was told to")
            with pytest.raises(Unavailable, match="it was told to"):
                await served.infer((np.array([1]),), 1)
            with pytest.raises(Unavailable, match="it was told to"):
                await served.prove()


async def test_an_idle_model_is_proven_and_stays(tmp_path: Path):
    async with serving(prove_s=0.05) as host:
        served = await host.load(source(heavy(tmp_path / "heavy", 1), "m"))
        await host.swap(served)
        served.touched = False
        before = served.watch.good_at
        await until(lambda: served.watch.good_at > before)
        assert host.get("m") is served
        assert not served.touched  # a proof is no use of the model


@pytest.mark.parametrize("max_queue", [1, 2])
async def test_golden_rows_need_no_place_in_the_queue(loop_folder: Path, max_queue: int):
    """Two are recorded: an endpoint that queues fewer rows, or whose queue is full, stays in service."""
    async with serving(prove_s=0.1, run_limit_s=0.2) as host:
        served = await host.load(source(loop_folder, "m", max_queue=max_queue))
        await host.swap(served)
        served.leave_loop()
        batcher = served._batcher
        assert batcher is not None
        proven = []
        prove = batcher.prove

        async def seen(inputs: Tensors, rows: int) -> Answer:
            proven.append(rows)
            return await prove(inputs, rows)

        batcher.prove = seen  # type: ignore[method-assign]
        await until(lambda: len(proven) >= 2)
        full = [asyncio.create_task(ask(host, 1)) for _ in range(max_queue)]
        await asyncio.gather(full[0], served.prove())
        await asyncio.gather(*full)
        assert (host.get("m"), host.metrics.residency.taken_out, served.metrics.rejected) == (served, {}, {})


async def test_a_model_that_is_taken_out_again_and_again_waits_longer_each_time(
    loop_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("app.serving.sleep.RETRY_S", 0.2)
    waits = []
    async with serving(prove_s=30) as host:
        await serve(host, loop_folder)
        for at in range(4):
            served = host.get("m")
            assert served is not None
            if at == 3:
                await Watchdog(ServingSettings(), list, list, host.take_out)._prove(served)  # it is good
                assert host.get("m") is served
            host.take_out(served, "it was told to")
            sleeper = host._asleep["m"]
            waits.append(round(sleeper._retry_at - time.perf_counter(), 1))
            assert (sleeper.task is not None) == (waits[-1] <= 0)  # it is being loaded, at once
            with pytest.raises(Unavailable) as told:
                await ask(host, 1)
            assert (told.value.retry_after_s or 0) > 0
            await until(lambda: host.get("m"))
    assert waits == [0, 0.2, 0.4, 0]


async def test_a_load_that_fails_is_tried_again_after_pauses_that_double(loop_folder: Path):
    async with serving() as host:
        about = (await serve(host, loop_folder)).about

    async def broken(_: Sleeper) -> None:
        raise Corrupt("a file is missing")

    for why in (None, "it was taken out"):
        sleeper, waits = Sleeper(about, broken, 1.0), []
        if why:
            sleeper.fail(why)
            assert sleeper.due
        for _ in range(7):
            with pytest.raises(Unavailable, match="a file is missing"):
                await sleeper.wake()
            waits.append(round(sleeper._retry_at - time.perf_counter()))
        assert waits == [2, 4, 8, 16, 32, 60, 60]


async def test_days_of_failures_are_still_a_pause_and_a_word_to_those_who_wait(loop_folder: Path):
    async with serving(run_limit_s=3) as host:
        served = await serve(host, loop_folder)
        served.leave_loop()
        served.failures = 2000
        asked = asyncio.create_task(ask(host, FOR_EVER))
        await until(lambda: served._batcher is not None and served._batcher._running)
        host.take_out(served, "it was told to")
        with pytest.raises(Unavailable, match="it was told to") as told:
            await asked
        assert told.value.retry_after_s == pytest.approx(60, abs=1)
        assert not host._asleep["m"].due


async def test_a_model_whose_callers_leave_no_silence_proves_itself_on_them(loop_folder: Path):
    prove_s = 30.0
    async with serving(prove_s=prove_s) as host:
        served = await serve(host, loop_folder)
        watch, served.failures = served.watch, 4
        watchdog = Watchdog(ServingSettings(prove_s=prove_s), list, list, host.take_out)
        told = []
        for since_s, failures in ((1.0, 0), (prove_s - 1, 0), (prove_s + 1, 1), (prove_s + 1, 0)):
            await asyncio.gather(*(ask(host, trips) for trips in range(1, 6)))
            served.since = watch.good_at - since_s
            watch.failures = failures
            watchdog._look_at(served)
            told.append(served.failures)
        assert told == [4, 4, 4, 0]
        assert not watchdog._proofs
        host.take_out(served, "it was told to")
        assert host._asleep["m"].task is not None  # it is loaded at once
        await until(lambda: host.get("m"))
