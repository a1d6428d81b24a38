"""The models in this process's memory: load, prove, swap without cutting a request, drain, sleep and wake.

    host = Host(settings)
    served = await host.load(source)      # session opened, warmed, golden rows proven; nothing changes for callers yet
    await host.swap(served)               # new requests go to it; the old one drains in the background
    served = host.get("churn") or await host.reach("churn")  # loaded again, should it sleep; both take a version
    with served:                          # in use: it will not be closed before the block ends
        answer = await served.infer(inputs, rows=1)

What was loaded is swapped in or discarded: until then its memory and its metrics are counted.

All methods belong to one event loop; only the loading itself happens in a thread.
"""

import asyncio
import gc
import logging
import math
import os
import threading
from collections.abc import Awaitable, Callable, Iterable

from prometheus_client import CollectorRegistry

from app.core.errors import NotFound, Unavailable
from app.serving.lanes import open_lanes, open_opener
from app.serving.process_memory import share_heap
from app.serving.provider import Provider
from app.serving.residency import Residency
from app.serving.runs import RunLimiter
from app.serving.served import BASE_VARIANT, RETRY_S, About, ModelSource, ServedModel, open_model
from app.serving.sleep import Sleeper
from app.serving.types import Batching
from app.serving.watchdog import Watchdog
from app.settings import ServingSettings
from app.telemetry.metrics import ServingMetrics

__all__ = ["BASE_VARIANT", "About", "Batching", "Host", "ModelSource", "ServedModel"]

# Objects that may be made before the youngest are collected. Requests leave no cycles, but 64 of them at once are more
# than Python's 700 objects: a collection in each turn of the event loop, 4 to 7 % of the time of a small model.
_GC_OBJECTS = 10_000

log = logging.getLogger("aimass.serving")


class Host:
    """Endpoint name → the model that answers for it now."""

    def __init__(
        self, settings: ServingSettings, metrics: ServingMetrics | None = None, image_megapixels: float = 50.0
    ) -> None:
        self._image_megapixels = image_megapixels
        self.metrics = metrics or ServingMetrics(CollectorRegistry())
        # How to get the files of a model that slept: they may have been removed or changed since.
        self.renew: Callable[[ModelSource], Awaitable[ModelSource]] = _as_it_was
        self._provider = Provider.of(settings)
        share_heap()
        self._cores = settings.threads or len(os.sched_getaffinity(0))
        self._executor = open_lanes(self._cores)
        self._opener = open_opener()
        self._limiter = RunLimiter(settings.run_limit_s)
        self._residency = Residency(settings.memory_mb << 20)
        self._served: dict[str, ServedModel] = {}
        self._asleep: dict[str, Sleeper] = {}
        self._expected: frozenset[str] = frozenset()
        self._reasons: dict[str, str] = {}  # why an endpoint has no model
        self.starting = False  # models are still being loaded for the first time
        self._draining: dict[asyncio.Task[None], ServedModel] = {}
        self._loading = asyncio.Lock()  # one at a time: its memory is measured
        self._watchdog = Watchdog(settings, self.models, lambda: list(self._asleep.values()), self.take_out)
        self._watching: asyncio.Task[None] | None = None

    async def load(self, source: ModelSource) -> ServedModel:
        """Open, warm, prove and plan a model; callers do not see it yet.

        Corrupt: a file is missing, cannot be read or does not fit the signature. ParityFailed: the golden rows give
        another answer here. InsufficientMemory: it does not fit the budget. Unavailable: nor while others are in use.
        """
        if self._watching is None:
            self._watching = asyncio.create_task(self._watchdog.run(), name="watchdog")
        async with self._loading:
            await self._make_room(source, source.file_bytes)
            watch = self._limiter.watch(threading.get_ident())
            opened = await asyncio.get_running_loop().run_in_executor(
                self._opener,
                open_model,
                source,
                self._provider,
                watch,
                self._executor,
                self._cores,
                self._residency.budget,
            )
            metrics = self.metrics.bind(source.endpoint, source.model, source.version, source.variant)
            served = ServedModel(source, opened, self._executor, metrics, self._image_megapixels)
            self._residency.add(served)
            self.metrics.residency.resize(metrics.labels, served.bytes)
            del opened
            gc.collect()
            gc.freeze()  # full collections no longer walk what was loaded: they were the p99
            gc.set_threshold(_GC_OBJECTS, *gc.get_threshold()[1:])
            try:
                await self._make_room(source, served.bytes, served)
            except BaseException:
                self._drain(served)
                raise
        return served

    async def swap(self, served: ServedModel) -> None:
        """Let `served` answer for its endpoint from now on; requests that the old model has are finished by it."""
        endpoint = served.source.endpoint
        old = self._served.get(endpoint)
        self._served[endpoint] = served
        self._asleep.pop(endpoint, None)
        self._reasons.pop(endpoint, None)
        if old is not None and old is not served:
            self._drain(old)

    def discard(self, served: ServedModel) -> None:
        """Let go of a loaded model that is not to be swapped in."""
        self._drain(served)

    async def remove(self, endpoint: str) -> None:
        """Stop serving an endpoint; requests under way are finished."""
        self._asleep.pop(endpoint, None)
        self._reasons.pop(endpoint, None)
        if old := self._served.pop(endpoint, None):
            self._drain(old)

    def expect(self, endpoints: Iterable[str]) -> None:
        """Which endpoints exist: those not loaded yet are unavailable rather than unknown; others' counters go."""
        self._expected = frozenset(endpoints)
        self.metrics.keep_only(self._expected)

    def explain(self, endpoint: str, why: str) -> None:
        """Why no model could be loaded for an endpoint, for who asks it while it has none."""
        self._reasons[endpoint] = why

    def get(self, endpoint: str, version: str | None = None) -> ServedModel | None:
        """The model that answers for an endpoint, if it is in memory and of this version; `reach` knows why not."""
        served = self._served.get(endpoint)
        return served if served is None or version is None or version == served.version else None

    def lookup(self, endpoint: str, version: str | None = None) -> ServedModel:
        """As `get`; NotFound for an unknown endpoint or another version, Unavailable for one not in memory."""
        served = self._served.get(endpoint)
        if served is not None:
            _check_version(served.source, version)
            return served
        if sleeper := self._asleep.get(endpoint):
            if sleeper.why is not None:
                raise sleeper.unavailable()
            raise Unavailable(f"endpoint '{endpoint}' is asleep: a prediction wakes it", retry_after_s=RETRY_S)
        if endpoint in self._expected:
            why = "is not loaded: it is on its way, or was unloaded and waits to be loaded again"
            if reason := self._reasons.get(endpoint):
                why = f"could not be loaded: {reason}"
            raise Unavailable(f"endpoint '{endpoint}' {why}", retry_after_s=RETRY_S)
        raise NotFound(f"Request for unknown model: '{endpoint}' is not found")

    async def reach(self, endpoint: str, version: str | None = None, deadline: float = math.inf) -> ServedModel:
        """As `lookup`, but a model that sleeps is loaded first, within the deadline (on `time.perf_counter`'s clock).

        To be used before the event loop gets another turn. The errors of `lookup` and of `Sleeper.loaded`.
        """
        while sleeper := self._asleep.get(endpoint):
            _check_version(sleeper.source, version)
            await sleeper.loaded(deadline)
        return self.lookup(endpoint, version)

    def check(self, endpoint: str, version: str | None = None) -> None:
        """Raise what `reach` would, without loading anything: a model that sleeps can answer."""
        sleeper = self._asleep.get(endpoint)
        if sleeper is None or sleeper.why is not None:
            self.lookup(endpoint, version)
        else:
            _check_version(sleeper.source, version)

    def about(self, endpoint: str, version: str | None = None) -> About:
        """What can be told of a model, without loading it; the errors of `check`."""
        self.check(endpoint, version)
        return (self._served.get(endpoint) or self._asleep[endpoint]).about

    def described(self) -> list[About]:
        """What can be told of every model that can answer, by endpoint name."""
        return [self.about(endpoint) for endpoint in self.endpoints()]

    def models(self) -> list[ServedModel]:
        """Every model in memory that answers now, by endpoint name."""
        return [self._served[name] for name in sorted(self._served)]

    def endpoints(self) -> list[str]:
        """Names of the endpoints that can answer, those that sleep too."""
        return sorted([*self._served, *(name for name, sleeper in self._asleep.items() if sleeper.why is None)])

    def sources(self) -> list[ModelSource]:
        """Of the models in memory and of those that may have to be loaded again."""
        awake = [served.source for served in self._served.values()]
        return awake + [sleeper.source for sleeper in self._asleep.values()]

    def outages(self) -> dict[str, str]:
        """Endpoints that were taken out, or cannot be loaded again, and why."""
        return {name: sleeper.why for name, sleeper in self._asleep.items() if sleeper.why is not None}

    def ready(self) -> bool:
        """True if at least one model can answer, and those that there were at the start are no longer being loaded."""
        return not self.starting and (bool(self._served) or len(self.outages()) < len(self._asleep))

    def take_out(self, served: ServedModel, why: str) -> None:
        """Stop asking a model that does not answer as it should; who waits for it is told, and it is loaded anew."""
        endpoint = served.source.endpoint
        if self._served.get(endpoint) is not served:
            return
        log.error("endpoint=%s %s is taken out: %s", endpoint, served.source, why)
        self.metrics.residency.taken_out[endpoint] += 1
        sleeper = self._sleep(served)
        sleeper.fail(why)
        served.abandon(sleeper.unavailable())
        if sleeper.due:
            sleeper.wake()

    async def drained(self) -> None:
        """Return once the memory of every model that was let go is free."""
        while self._draining:
            await asyncio.gather(*self._draining)

    async def close(self) -> None:
        """Drain every model and stop the lanes."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        waking = [sleeper.task for sleeper in self._asleep.values() if sleeper.task is not None]
        for endpoint in [*self._served, *self._asleep]:
            await self.remove(endpoint)
        await asyncio.gather(*waking, return_exceptions=True)
        await self.drained()
        self._opener.shutdown()
        self._executor.shutdown()
        self._limiter.close()

    async def _wake(self, sleeper: Sleeper) -> None:
        endpoint = sleeper.source.endpoint
        try:
            served = await self.load(await self.renew(sleeper.source))
        except BaseException:
            self.metrics.residency.wakes[endpoint, "failed"] += 1
            raise
        if self._asleep.get(endpoint) is not sleeper:  # replaced or removed meanwhile
            self._drain(served)
            return
        self.metrics.residency.wakes[endpoint, "loaded"] += 1
        log.info("endpoint=%s %s is awake again after %.2f s", endpoint, served.source, served.load_s)
        served.woken, served.failures = sleeper, sleeper.failures
        await self.swap(served)

    def _sleep(self, served: ServedModel) -> Sleeper:
        endpoint = served.source.endpoint
        sleeper = self._asleep[endpoint] = Sleeper(served.about, self._wake, served.load_s, served.failures)
        del self._served[endpoint]
        self._drain(served)
        return sleeper

    async def _make_room(self, source: ModelSource, needed: int, loaded: ServedModel | None = None) -> None:
        await self._freed()
        await self._residency.make_room(source, needed, loaded, self._served, self._evict)

    async def _evict(self, served: ServedModel) -> None:
        """Return once its memory is free; nothing is done to a model that does not answer any more."""
        if self._served.get(served.source.endpoint) is not served:
            return
        self.metrics.residency.evictions[served.source.endpoint] += 1
        self._sleep(served)
        await self._freed()

    async def _freed(self) -> None:
        """Return once no unused model's memory is still to be freed."""
        await asyncio.gather(*[task for task, served in self._draining.items() if served.idle])

    def _drain(self, served: ServedModel) -> None:
        task = asyncio.create_task(self._release(served), name=f"drain {served.source.endpoint}")
        self._draining[task] = served
        task.add_done_callback(self._draining.pop)

    async def _release(self, served: ServedModel) -> None:
        await served.drained()
        self._residency.remove(served)
        self.metrics.residency.resize(served.metrics.labels, -served.bytes)
        self.metrics.release(served.metrics)


async def _as_it_was(source: ModelSource) -> ModelSource:
    return source


def _check_version(source: ModelSource, version: str | None) -> None:
    if version not in {None, str(source.version)}:
        raise NotFound(f"Request for unknown model: '{source.endpoint}' version {version} is not found")
