"""Keeps the models in this process's memory in step with the endpoints in the registry."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from app.core.errors import AimassError, NotFound, Unavailable
from app.core.resources import Applied, Endpoint, ModelVersion
from app.gateway.predict.ports import Listed
from app.gateway.processes import Processes, Standing, require_applied
from app.gateway.standings import Standings
from app.queue.ports import ENDPOINT_CHANNEL
from app.registry.endpoints import EndpointReader, EndpointWriter
from app.registry.models import ModelReader, ModelWriter
from app.services.local_copies import remove_unused
from app.services.platform import Platform
from app.services.serve_version import choose_variant, fit_variant, serve_version
from app.serving.host import Host, ModelSource, ServedModel
from app.serving.types import Batching
from app.specs.endpoints import EndpointSpec

log = logging.getLogger("aimass.loading")
_REPOSITORY_STATES = {"ready": "READY", "loading": "LOADING", "unloaded": "UNAVAILABLE", "failed": "UNAVAILABLE"}
_REASONS = {"unloaded": "unloaded"}


class _AliasMoved(Exception):
    """The route's alias points at another version than when its loading began."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


class _Changed(Exception):
    """The endpoint was changed or deleted, by another gateway or a job, since it was read."""


@dataclass(frozen=True, slots=True)
class Change:
    """An endpoint as it was just written, and what the processes have made of it."""

    endpoint: Endpoint
    new: bool
    standing: Standing


class Loader:
    """Loads what the registry names, swaps it in, and lets go of what it no longer names. One change at a time.

    A change is made by one process and followed by the others: whoever makes it waits for them, within a bound.
    """

    def __init__(self, platform: Platform, host: Host, processes: Processes) -> None:
        self._platform = platform
        self._host = host
        host.renew = self._renew
        self._processes = processes
        self.standings = Standings(platform, host, processes)
        self._lock = asyncio.Lock()
        self._noticed = asyncio.Event()
        self.loaded = asyncio.Event()  # every endpoint that there was at the start has been loaded, or has failed
        host.starting = True
        self.before_ready: Callable[[], Awaitable[object]] | None = None  # what has to be done then

    @property
    def synced(self) -> bool:
        """True once every endpoint that there was at the start has been loaded, or has failed."""
        return self.loaded.is_set()

    def report_all(self) -> None:
        """Tell the registry anew what this process has applied: it was forgotten there."""
        self.standings.forgotten()
        self._noticed.set()

    async def put(self, name: str, version: ModelVersion, variant: str | None, spec: EndpointSpec) -> Change:
        """Load and prove the model, route the endpoint to it, and wait for the other processes to follow.

        Nothing has changed when loading raises: the old version, if any, goes on serving.
        """
        stale = self._lock.locked()
        async with self._lock:
            if stale:  # its variants may have been judged anew while others were loaded
                version = await self._version(version.model, version.version)
            endpoint, new = await self._route_by_alias(name, version, variant, spec)
        [standing] = await self.standings.settled([endpoint])
        return Change(endpoint, new, standing)

    async def _route_by_alias(
        self, name: str, version: ModelVersion, variant: str | None, spec: EndpointSpec, was: Endpoint | None = None
    ) -> tuple[Endpoint, bool]:
        """As `_route`, to the version that the route's alias, if it has one, points at once it is loaded."""
        while True:
            try:
                return await self._route(name, version, variant, spec, alias=spec.routes[0].alias, was=was)
            except _AliasMoved as moved:
                version, variant = await self._version(version.model, moved.version), spec.routes[0].variant

    async def _route(
        self,
        name: str,
        version: ModelVersion,
        variant: str | None,
        spec: EndpointSpec,
        *,
        alias: str | None = None,
        was: Endpoint | None = None,
    ) -> tuple[Endpoint, bool]:
        """_AliasMoved, and nothing has changed, unless the alias, if one is given, still points at the version.

        _Changed likewise, unless the endpoint still is what it `was`, if that is given.
        """
        served, chosen = await self._load(name, version, variant, spec)
        model, number = version.model, version.version
        try:
            async with self._platform.database.write() as session:
                models = ModelWriter(session)
                await models.hold(model, number)  # it may have been deleted while it was loaded
                if alias is not None:
                    await _check_alias(models, model, alias, number)
                endpoints, row = EndpointWriter(session), spec.model_dump(mode="json")
                await _check_same(endpoints, was)
                endpoint, new = await endpoints.put(name, model, number, variant or chosen, row)
                applied = Applied(endpoint.generation)
                await self._processes.report(session, {name: applied})  # true in a moment: nothing below can fail
        except BaseException:
            self._host.discard(served)
            raise
        if spec.loaded:
            await self._host.swap(served)
        else:  # it was loaded to prove that it can be
            self._host.discard(served)
            await self._host.remove(name)
        self.standings.applied(name, applied)
        self.standings.expect({*self.standings.names, name})
        await self._tell(name)
        return endpoint, new

    async def index(self) -> list[Listed]:
        """Every endpoint, as the model repository extension lists it."""
        async with self._platform.database.read() as session:
            endpoints = await EndpointReader(session).all()
        return [
            Listed(
                endpoint.name,
                str(endpoint.version),
                _REPOSITORY_STATES[standing.state],
                standing.error or _REASONS.get(standing.state),
            )
            for endpoint, standing in zip(endpoints, await self.standings.of(endpoints), strict=True)
        ]

    async def load(self, name: str) -> None:
        """Bring back an endpoint that was unloaded, or load it again. NotFound without one.

        Unavailable if it is loaded here and another process has not followed.
        """
        async with self._lock:
            endpoint = None
            while endpoint is None:
                async with self._platform.database.read() as session:
                    was = await EndpointReader(session).get(name)
                version = await self._version(was.model, was.version)
                spec = EndpointSpec.model_validate(was.spec).model_copy(update={"loaded": True})
                with contextlib.suppress(_Changed):
                    endpoint, _ = await self._route_by_alias(name, version, was.variant, spec, was)
        require_applied(endpoint, (await self.standings.settled([endpoint]))[0])

    async def unload(self, name: str) -> None:
        """Free the endpoint's memory, in every gateway; it stays known. NotFound without one; Unavailable as `load`."""
        async with self._lock:
            async with self._platform.database.write() as session:
                endpoints = EndpointWriter(session)
                was = await endpoints.get(name)
                endpoint, _ = await endpoints.put(
                    name, was.model, was.version, was.variant, was.spec | {"loaded": False}
                )
                applied = Applied(endpoint.generation)
                await self._processes.report(session, {name: applied})
            await self._host.remove(name)
            self.standings.applied(name, applied)
        await self._tell(name)
        require_applied(endpoint, (await self.standings.settled([endpoint]))[0])

    async def follow_alias(self, model: str, alias: str, version: int) -> list[Endpoint]:
        """Route the endpoints that go by the alias to the version; an error leaves the one that it meets as it was.

        One that somebody else changes meanwhile is left out: it may go by the alias no more.
        """
        async with self._lock:
            async with self._platform.database.read() as session:
                routed = await EndpointReader(session).routed_by(model, alias)
            moved = []
            for endpoint in routed:
                spec = EndpointSpec.model_validate(endpoint.spec)
                found = await self._version(model, version)
                with contextlib.suppress(_Changed):
                    new, _ = await self._route(endpoint.name, found, spec.routes[0].variant, spec, was=endpoint)
                    moved.append(new)
        return moved

    async def delete(self, name: str) -> bool:
        """Remove the endpoint; requests under way are finished. False: another process goes on serving it for now."""
        async with self._lock:
            async with self._platform.database.write() as session:
                endpoints = EndpointWriter(session)
                endpoint = await endpoints.get(name)
                await endpoints.delete(name)
                await self._processes.report(session, {name: None})
            await self._host.remove(name)
            self.standings.applied(name, None)
            self.standings.expect(set(self.standings.names) - {name})
        await self._tell(name)
        return await self.standings.gone_elsewhere(endpoint)

    async def expect(self) -> None:
        """Learn which endpoints there are: until they are loaded they are unavailable rather than unknown."""
        async with self._platform.database.read() as session:
            endpoints = await EndpointReader(session).all()
        self.standings.expect({endpoint.name for endpoint in endpoints})

    async def sync(self) -> None:
        """Make this process serve what the registry says. A model that cannot be loaded leaves the old one serving."""
        async with self._lock:
            endpoints = await self._compare()
        for endpoint in endpoints:
            if self.standings.behind(endpoint):
                async with self._lock:  # a change that waits for it comes before the next one
                    await self._catch_up(endpoint.name)
        if not self.synced:
            if self.before_ready is not None:
                await self.before_ready()
            self._host.starting = False
            self.loaded.set()
        needed = {source.folder.name for source in self._host.sources()}
        await asyncio.to_thread(remove_unused, self._platform.scratch, needed)

    async def _compare(self) -> list[Endpoint]:
        """What the registry has; what it has no more is let go of."""
        async with self._platform.database.read() as session:
            endpoints = await EndpointReader(session).all()
        self.standings.expect({endpoint.name for endpoint in endpoints})
        for name in self.standings.gone():
            await self._host.remove(name)
            self.standings.forget(name)
        self.standings.note_outages()
        await self.standings.report()
        return endpoints

    async def _catch_up(self, name: str) -> None:
        """Load the endpoint as it is by now; it may have been changed, or deleted, since they were compared."""
        with contextlib.suppress(NotFound):
            async with self._platform.database.read() as session:
                endpoint = await EndpointReader(session).get(name)
            if self.standings.behind(endpoint):
                await self._follow(endpoint)
                await self.standings.report()

    async def run(self) -> None:
        """Sync at every notice, and every few seconds in case one was lost."""
        notices = asyncio.create_task(self._follow_notices(), name="endpoint notices")
        try:
            while True:
                self._noticed.clear()  # before it looks: what is noticed from then on it may have missed
                try:
                    await self.sync()
                except AimassError as error:
                    log.warning("endpoints could not be compared with the registry: %s", error.detail)
                except Exception:
                    log.exception("endpoints could not be compared with the registry")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._noticed.wait(), self._platform.settings.serving.poll_s)
        finally:
            notices.cancel()

    async def _follow_notices(self) -> None:
        async for _ in self._platform.wake.listen(ENDPOINT_CHANNEL):
            self._noticed.set()

    async def _follow(self, endpoint: Endpoint) -> None:
        try:
            spec = EndpointSpec.model_validate(endpoint.spec)
            if not spec.loaded:
                await self._host.remove(endpoint.name)
                self.standings.note(endpoint)
                return
            version = await self._version(endpoint.model, endpoint.version)
            served, _ = await self._load(endpoint.name, version, endpoint.variant, spec)
        except Exception as error:  # noqa: BLE001 - one endpoint that cannot be loaded must not hold up the others
            why = error.detail if isinstance(error, AimassError) else f"{type(error).__name__}: {error}"
            log.warning(
                "endpoint=%s version=%s@%d cannot be loaded: %s",
                endpoint.name,
                endpoint.model,
                endpoint.version,
                why,
            )
            # The store was away, say.
            self.standings.note(endpoint, why, again=isinstance(error, AimassError) and error.retryable)
            return
        await self._host.swap(served)
        self.standings.note(endpoint)
        log.info("endpoint=%s serves %s@%d %s", endpoint.name, endpoint.model, endpoint.version, served.source.variant)

    async def _version(self, model: str, version: int) -> ModelVersion:
        async with self._platform.database.read() as session:
            return await ModelReader(session).version(model, version)

    async def _load(
        self, name: str, version: ModelVersion, variant: str | None, spec: EndpointSpec
    ) -> tuple[ServedModel, str]:
        defaults = self._platform.settings.serving
        on = defaults.provider
        chosen = choose_variant(version, None, on) if variant is None else fit_variant(version, variant, on)
        folder, onnx = await serve_version(self._platform, version, chosen)
        batching = Batching(
            spec.batching.max_batch or defaults.max_batch,
            spec.batching.max_queue or defaults.max_queue,
            spec.batching.max_delay_ms,
            p95_s=spec.slo.p95_ms / 1e3 if spec.slo else None,
            cache_bytes=spec.cache.max_mb << 20 if spec.cache else 0,
            max_answer=self._platform.settings.limit.answer_mb << 20,
        )
        return await self._host.load(
            ModelSource(name, version.model, version.version, chosen.name, folder, onnx, batching)
        ), chosen.name

    async def _renew(self, source: ModelSource) -> ModelSource:
        """Files of a model that slept: they are verified again, and fetched if they are gone."""
        found = await self._version(source.model, source.version)
        chosen = fit_variant(found, source.variant, self._platform.settings.serving.provider)
        folder, onnx = await serve_version(self._platform, found, chosen)
        return replace(source, variant=chosen.name, folder=folder, onnx=onnx)

    async def _tell(self, name: str) -> None:
        with contextlib.suppress(Unavailable):
            await self._platform.wake.publish(ENDPOINT_CHANNEL, name)


async def _check_same(endpoints: EndpointWriter, was: Endpoint | None) -> None:
    if was is not None and not await endpoints.is_still(was):
        raise _Changed


async def _check_alias(models: ModelReader, model: str, alias: str, loaded: int) -> None:
    points_at = await models.resolve_alias(model, alias)
    if points_at != loaded:
        raise _AliasMoved(points_at)
