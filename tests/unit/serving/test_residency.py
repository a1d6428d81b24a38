"""Models sleep when the memory budget is full, and wake for the next request."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from app.core.errors import DeadlineExceeded, InsufficientMemory, NotFound, Overloaded, Unavailable
from app.gateway.predict.dispatcher import Dispatcher
from app.gateway.predict.openapi_models import with_models
from app.serving.host import Host, ModelSource, ServedModel
from app.serving.residency import Residency
from app.settings import ServingSettings
from app.telemetry.metrics import ServingMetrics
from tests.support.graphs import heavy, source
from tests.support.repository import HostRepository
from tests.support.serving import Keys, inner

MIB = 8  # of weights of each model
ROW = np.ones((1, 512), np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Five models; number i adds i to each value."""
    return [heavy(tmp_path_factory.mktemp("heavy"), MIB, bias=at) for at in range(5)]


@asynccontextmanager
async def serving(memory_mb: int, registry: CollectorRegistry | None = None) -> AsyncIterator[Host]:
    settings = ServingSettings(threads=1, memory_mb=memory_mb)
    host = Host(settings, ServingMetrics(registry) if registry else None)
    yield host
    await host.close()


async def serve(host: Host, folder: Path, endpoint: str, **more: Any) -> ServedModel:
    served = await host.load(source(folder, endpoint, **more))
    await host.swap(served)
    return served


async def ask(host: Host, endpoint: str) -> float:
    """What the model behind the endpoint adds."""
    served = host.get(endpoint) or await host.reach(endpoint)
    with served:
        answer = await served.infer((ROW,), 1)
    return float(answer.outputs[0][0, 0]) - 1


async def measured(folders: list[Path]) -> int:
    """The largest of the models, in MiB."""
    async with serving(0) as host:
        await serve(host, folders[0], "first")  # what a process loads once counts as the first model's
        sizes = [(await serve(host, folder, str(at))).bytes for at, folder in enumerate(folders)]
    return -(-max(sizes) // (1 << 20))


async def test_a_models_bytes_are_at_least_its_weights(folders: list[Path]):
    assert MIB <= await measured(folders[:1]) < 8 * MIB


async def test_the_least_valuable_model_goes(folders: list[Path]):
    async with serving(0) as host:
        models = {name: await serve(host, folders[0], name) for name in ("small", "large", "slow")}
        residency = Residency(1)
        for name, served in models.items():
            served.bytes = 4000 if name == "large" else 1000
            served.load_s = 8.0 if name == "slow" else 1.0
            residency.add(served)
        assert residency.choose(models) == "large"  # 1 s / 4000 bytes is the least
        del models["large"]
        assert residency.choose(models) == "small"
        models["small"].touched = True  # used again: worth 1/1000 above the one that went last, still less than 8/1000
        assert residency.choose(models) == "small"
        for _ in range(8):  # what is not used ages
            models["small"].touched = True
            chosen = residency.choose(models)
        assert chosen == "slow"
        with models["slow"]:
            assert residency.choose(models) == "small"  # never one that is in use
            with models["small"]:
                assert residency.choose(models) is None
        residency.remove(models["small"])
        del models["slow"]
        assert residency.choose(models) is None  # never one whose memory is free


async def test_idle_models_sleep_and_wake(folders: list[Path]):
    registry = CollectorRegistry()
    budget = 2 * await measured(folders) + 2
    async with serving(budget, registry) as host:
        for at, folder in enumerate(folders):
            await serve(host, folder, f"m{at}")
        assert len(host.models()) < len(folders)
        assert host.endpoints() == [f"m{at}" for at in range(len(folders))]
        for _ in range(2):
            for at in range(len(folders)):
                host.check(f"m{at}")  # whether it sleeps or not, it is ready
                assert await ask(host, f"m{at}") == at
                assert sum(served.bytes for served in host.models()) <= budget << 20
        assert host.outages() == {}
        resident, text = len(host.models()), generate_latest(registry).decode()
    loads, evictions = (
        sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"aimass_serving_{what}_total{{"))
        for what in ("loads_on_demand", "evictions")
    )
    assert loads >= len(folders)
    assert evictions == len(folders) + loads - resident
    assert 'aimass_serving_evictions_total{endpoint="m0"}' in text
    assert 'aimass_serving_model_bytes{endpoint="m4"' in text


async def test_requests_for_a_sleeping_model_share_one_load(folders: list[Path]):
    async with serving(await measured(folders) + 2) as host:
        await serve(host, folders[0], "a")
        await serve(host, folders[1], "b")
        assert host.get("a") is None
        loads = []
        load = host.load

        async def counted(wanted: ModelSource) -> ServedModel:
            loads.append(wanted.endpoint)
            return await load(wanted)

        host.load = counted  # type: ignore[method-assign]
        assert await asyncio.gather(*(ask(host, "a") for _ in range(50))) == [0.0] * 50
        assert loads == ["a"]


async def test_waiting_is_bounded_in_number_and_time(folders: list[Path]):
    async with serving(await measured(folders) + 2) as host:
        await serve(host, folders[0], "a", max_queue=3)
        await serve(host, folders[1], "b")
        go = asyncio.Event()

        async def renew(wanted: ModelSource) -> ModelSource:
            await go.wait()
            return wanted

        host.renew = renew
        asked = [asyncio.create_task(ask(host, "a")) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await ask(host, "a")
        assert refused.value.retry_after_s == pytest.approx(host._asleep["a"].load_s)
        asked.pop().cancel()
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await host.reach("a", deadline=time.perf_counter() + 0.01)
        go.set()
        assert await asyncio.gather(*asked) == [0.0, 0.0]


async def test_a_version_that_is_not_there_wakes_nothing(folders: list[Path]):
    async with serving(await measured(folders) + 2) as host:
        await serve(host, folders[0], "a", version=7)
        await serve(host, folders[1], "b")
        with pytest.raises(NotFound, match="version 6"):
            await host.reach("a", "6")
        assert host.get("a") is None
        assert (await host.reach("a", "7")).version == "7"


async def test_a_failed_wake_says_why_and_is_tried_again(folders: list[Path], tmp_path: Path):
    folder = heavy(tmp_path / "gone", MIB, bias=5)
    async with serving(await measured(folders) + 2) as host:
        await serve(host, folder, "a")
        await serve(host, folders[1], "b")
        (folder / "model.onnx").rename(tmp_path / "aside")
        with pytest.raises(Unavailable, match=r"out of service: model\.onnx cannot be loaded") as first:
            await ask(host, "a")
        with pytest.raises(Unavailable, match="out of service") as second:  # at once, without a try
            await ask(host, "a")
        assert (first.value.retry_after_s or 0) >= (second.value.retry_after_s or 0) > 0
        assert list(host.outages()) == ["a"]
        assert host.endpoints() == ["b"]
        with pytest.raises(Unavailable):
            host.check("a")
        (tmp_path / "aside").rename(folder / "model.onnx")
        async with asyncio.timeout(60):
            while host.outages():  # noqa: ASYNC110 - the watchdog brings it back, and tells nobody
                await asyncio.sleep(0.05)
        assert await ask(host, "a") == 5


async def test_a_model_larger_than_the_budget_is_refused(folders: list[Path]):
    async with serving(MIB // 2) as host:
        with pytest.raises(InsufficientMemory, match=r"of the 4 MiB .* AIMASS_SERVING_MEMORY_MB"):
            await host.load(source(folders[0], "a"))


async def test_a_model_in_use_is_never_evicted(folders: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("app.serving.residency._VICTIM_S", 0.3)
    async with serving(await measured(folders) + 2) as host:
        served = await serve(host, folders[0], "a")
        with served:
            with pytest.raises(Unavailable, match="no room"):
                await host.load(source(folders[1], "b"))
            assert host.get("a") is served
        await serve(host, folders[1], "b")
        assert host.get("a") is None


@pytest.mark.parametrize("change", ["removed", "replaced", "taken out"])
async def test_who_leaves_while_another_waits_for_its_memory_has_left(folders: list[Path], change: str):
    async with serving(await measured(folders) + 2) as host:
        await serve(host, folders[0], "a")
        old = await serve(host, folders[1], "b")
        new = await host.load(source(folders[2], "b", version=2)) if change == "replaced" else None
        waits, left, freed, again = (asyncio.Event() for _ in range(4))
        choose, drained = host._residency.choose, old.drained

        def look(among: dict[str, ServedModel]) -> str | None:
            waits.set()
            if left.is_set():
                freed.set()
            return choose(among)

        async def drained_late() -> None:
            await freed.wait()
            await drained()

        async def renew(wanted: ModelSource) -> ModelSource:
            if wanted.endpoint == "b" and change == "taken out":
                await again.wait()
            return wanted

        host._residency.choose, old.drained, host.renew = look, drained_late, renew  # type: ignore[method-assign, assignment]
        with old:
            asked = asyncio.create_task(ask(host, "a"))
            await waits.wait()
            if new is not None:
                await host.swap(new)
            elif change == "removed":
                await host.remove("b")
            else:
                host.take_out(old, "it was told to")
            left.set()
        assert await asked == 0.0
        asleep = dict(host._asleep)
        await host._evict(old)
        assert host._asleep == asleep
        assert host.outages() == ({"b": "it was told to"} if change == "taken out" else {})
        if change == "replaced":
            assert await ask(host, "b") == 2.0
        else:
            assert host.endpoints() == ["a"]
        again.set()


async def test_a_new_version_evicts_nobody_for_the_one_that_it_replaces(folders: list[Path]):
    async with serving(2 * await measured(folders) + 2) as host:
        await serve(host, folders[0], "a")
        other = await serve(host, folders[1], "b")
        for version in range(2, 5):
            await serve(host, folders[version], "a", version=version)
            assert await ask(host, "a") == version
        assert host.get("b") is other


async def test_over_http_a_sleeping_model_is_ready_and_answers(folders: list[Path], asgi: Callable[[Any], Any]):
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 512], "data": [%b]}]}' % b",".join([b"1"] * 512)
    async with serving(await measured(folders) + 2) as host:
        call = asgi(Dispatcher(inner, host, Keys(), HostRepository(host), ServingSettings()))
        for at, name in enumerate(("a", "b")):
            await serve(host, folders[at], name)
        for at, name in enumerate(("a", "b")):
            assert (await call("GET", f"/v2/models/{name}/ready")).status == 200
            assert (await call("GET", "/v1/models")).json() == {"models": ["a", "b"]}
            assert (await call("GET", f"/v1/models/{name}")).json() == {"name": name, "ready": True}
            reply = await call("POST", f"/v2/models/{name}/infer", body)
            assert (reply.status, reply.json()["outputs"][0]["data"][0]) == (200, 1.0 + at)
            assert [served.source.endpoint for served in host.models()] == [name]
        reply = await call("POST", "/v1/models/a:predict", b'{"instances": [[%b]]}' % b",".join([b"1"] * 512))
        assert reply.json()["predictions"][0][0] == 1.0


async def test_what_is_told_of_a_sleeping_model_wakes_nobody(folders: list[Path], asgi: Callable[[Any], Any]):
    async with serving(await measured(folders) + 2) as host:
        call = asgi(Dispatcher(inner, host, Keys(), HostRepository(host), ServingSettings()))
        await serve(host, folders[0], "a", version=7)
        assert await ask(host, "a") == 0.0
        paths = ("/v2/models/a", "/v2/models/a/versions/7", "/v2/models/a/config", "/v2/models/a/stats")
        awake = [(await call("GET", path)).json() for path in paths]
        served = await serve(host, folders[1], "b")
        assert host.models() == [served]
        *told, statistics = [(await call("GET", path)).json() for path in paths]
        assert told == awake[:-1]
        [counted] = statistics["model_stats"]
        assert awake[-1]["model_stats"][0] | {"memory_usage": []} == counted | {"memory_usage": []}
        assert (counted["inference_count"], counted["memory_usage"][0]["byte_size"]) == (1, 0)
        listed = (await call("GET", "/v2/models/stats")).json()["model_stats"]
        assert [model["name"] for model in listed] == ["a", "b"]
        assert set(with_models({"paths": {}}, host.described())["paths"]) == {
            f"/api/v1/endpoints/{name}/predict" for name in ("a", "b")
        }
        for path in ("/v2/models/a/versions/6", "/v2/models/a/versions/6/stats", "/v2/models/c/config"):
            assert (await call("GET", path)).status == 404
        assert host.models() == [served]
        assert await ask(host, "a") == 0.0
        [woken] = (await call("GET", "/v2/models/a/stats")).json()["model_stats"]
        assert woken["inference_count"] == 2
        assert woken["memory_usage"][0]["byte_size"] > 0


def test_memory_returns_after_unloading():
    """Ten times 48 MiB come and go, in a process of their own: what other tests have left would be measured too."""
    command = [sys.executable, "-m", "bench.memory", "--cycles", "10"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"growth (-?[\d.]+) KiB a cycle", told)
    assert found, told
    assert float(found[1]) < 8 << 10, told  # a model that stays would be 48 << 10
