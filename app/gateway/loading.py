"""Keeps the models in this process's memory in step with the endpoints in the registry."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from app.core.errors import AimassError, Unavailable
from app.core.resources import Applied, Endpoint, ModelVersion
from app.gateway.predict.ports import Listed
from app.gateway.processes import Processes, Standing, require_applied, stand
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
_ASK_S = (0.02, 0.05, 0.1, 0.2)  # between two looks at whether the other processes have followed


class _AliasMoved(Exception):
    """The route's alias points at another version than when its loading began."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version


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
        self._names: set[str] = set()  # of the endpoints in the registry
        self._known: dict[str, Applied] = {}
        self._again: set[str] = set()  # could not be loaded for a reason that passes: the next sync tries
        self._unreported: set[str] = set()
        self._outages: set[str] = set()  # that were reported
        self._lock = asyncio.Lock()
        self._noticed = asyncio.Event()
        self.loaded = asyncio.Event()  # every endpoint that there was at the start has been loaded, or has failed
        host.starting = True
        self.before_ready: Callable[[], Awaitable[object]] | None = None  # what has to be done then

    @property
    def synced(self) -> bool:
        """True once every endpoint that there was at the start has been loaded, or has failed."""
        return self.loaded.is_set()

    def missing(self) -> list[str]:
        """Endpoints whose loading has not ended yet, whatever comes of it."""
        return sorted(self._names - set(self._known))

    async def standings(self, endpoints: Sequence[Endpoint]) -> list[Standing]:
        """What all gateway processes together have made of these endpoints."""
        if not endpoints:
            return []
        others = await self._processes.others([endpoint.name for endpoint in endpoints])
        return [
            stand(endpoint, [self._applied(endpoint.name), *(reports.get(endpoint.name) for reports in others)])
            for endpoint in endpoints
        ]

    async def settled(self, endpoints: Sequence[Endpoint]) -> list[Standing]:
        """As `standings`, once no process is loading them any more or `follow_s` have passed."""
        deadline, turn = asyncio.get_running_loop().time() + self._platform.settings.gateway.follow_s, 0
        while True:
            standings = await self.standings(endpoints)
            loading = any(standing.processes["loading"] for standing in standings)
            if not loading or not await _pause(turn, deadline):
                return standings
            turn += 1

    def _applied(self, name: str) -> Applied | None:
        """What this process says of an endpoint: one that was taken out has failed, although it was loaded well."""
        known, outage = self._known.get(name), self._host.outages().get(name)
        return replace(known, error=outage) if known is not None and known.error is None and outage else known

    def failures(self) -> dict[str, str]:
        """Endpoints whose latest revision could not be loaded here, and why."""
        return {name: known.error for name, known in self._known.items() if known.error}

    def report_all(self) -> None:
        """Tell the registry anew what this process has applied: it was forgotten there."""
        self._unreported |= set(self._known)
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
        [standing] = await self.settled([endpoint])
        return Change(endpoint, new, standing)

    async def _route_by_alias(
        self, name: str, version: ModelVersion, variant: str | None, spec: EndpointSpec
    ) -> tuple[Endpoint, bool]:
        """As `_route`, to the version that the route's alias, if it has one, points at once it is loaded."""
        while True:
            try:
                return await self._route(name, version, variant, spec, spec.routes[0].alias)
            except _AliasMoved as moved:
                version, variant = await self._version(version.model, moved.version), spec.routes[0].variant

    async def _route(
        self, name: str, version: ModelVersion, variant: str | None, spec: EndpointSpec, alias: str | None = None
    ) -> tuple[Endpoint, bool]:
        """_AliasMoved, and nothing has changed, unless the alias, if one is given, still points at the version."""
        served, chosen = await self._load(name, version, variant, spec)
        model, number = version.model, version.version
        try:
            async with self._platform.database.write() as session:
                models = ModelWriter(session)
                await models.hold(model, number)  # it may have been deleted while it was loaded
                if alias is not None:
                    await _check_alias(models, model, alias, number)
                row = spec.model_dump(mode="json")
                endpoint, new = await EndpointWriter(session).put(name, model, number, variant or chosen, row)
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
        self._known[name] = applied
        self._again.discard(name)
        self._expect(self._names | {name})
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
            for endpoint, standing in zip(endpoints, await self.standings(endpoints), strict=True)
        ]

    async def load(self, name: str) -> None:
        """Bring back an endpoint that was unloaded, or load it again. NotFound without one.

        Unavailable if it is loaded here and another process has not followed.
        """
        async with self._lock:
            async with self._platform.database.read() as session:
                endpoint = await EndpointReader(session).get(name)
            version = await self._version(endpoint.model, endpoint.version)
            spec = EndpointSpec.model_validate(endpoint.spec).model_copy(update={"loaded": True})
            endpoint, _ = await self._route_by_alias(name, version, endpoint.variant, spec)
        require_applied(endpoint, (await self.settled([endpoint]))[0])

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
            self._known[name] = applied
            self._again.discard(name)
        await self._tell(name)
        require_applied(endpoint, (await self.settled([endpoint]))[0])

    async def follow_alias(self, model: str, alias: str, version: int) -> list[Endpoint]:
        """Route the endpoints that go by the alias to the version; an error leaves the one that it meets as it was."""
        async with self._lock:
            async with self._platform.database.read() as session:
                routed = await EndpointReader(session).routed_by(model, alias)
            moved = []
            for endpoint in routed:
                spec = EndpointSpec.model_validate(endpoint.spec)
                found = await self._version(model, version)
                moved.append((await self._route(endpoint.name, found, spec.routes[0].variant, spec))[0])
        return moved

    async def delete(self, name: str) -> bool:
        """Remove the endpoint; requests under way are finished. False: another process goes on serving it for now."""
        async with self._lock:
            async with self._platform.database.write() as session:
                endpoints = EndpointWriter(session)
                endpoint = await endpoints.get(name)
                await endpoints.delete(name)
                await self._processes.report(session, {name: None})
            await self._forget(name)
            self._expect(self._names - {name})
        await self._tell(name)
        return await self._gone(endpoint)

    async def _gone(self, endpoint: Endpoint) -> bool:
        """True once no other process has the deleted endpoint; False if one still has after `follow_s`."""
        deadline, turn = asyncio.get_running_loop().time() + self._platform.settings.gateway.follow_s, 0
        while True:
            others = [reports.get(endpoint.name) for reports in await self._processes.others([endpoint.name])]
            if all(report is None or report.generation > endpoint.generation for report in others):
                return True
            if not await _pause(turn, deadline):
                return False
            turn += 1

    async def expect(self) -> None:
        """Learn which endpoints there are: until they are loaded they are unavailable rather than unknown."""
        async with self._platform.database.read() as session:
            endpoints = await EndpointReader(session).all()
        self._expect({endpoint.name for endpoint in endpoints})

    def _expect(self, names: set[str]) -> None:
        self._names = names
        self._host.expect(names)

    async def sync(self) -> None:
        """Make this process serve what the registry says. A model that cannot be loaded leaves the old one serving."""
        async with self._lock:
            async with self._platform.database.read() as session:
                endpoints = await EndpointReader(session).all()
            self._expect({endpoint.name for endpoint in endpoints})
            for name in set(self._known) - self._names:
                await self._forget(name)
                self._unreported.add(name)
            outages = set(self._host.outages())
            self._unreported |= (outages ^ self._outages) & set(self._known)
            self._outages = outages
            await self._report()
            for endpoint in endpoints:
                known = self._known.get(endpoint.name)
                if known is None or known.generation != endpoint.generation or endpoint.name in self._again:
                    await self._follow(endpoint)
                    await self._report()
            if not self.synced:
                if self.before_ready is not None:
                    await self.before_ready()
                self._host.starting = False
                self.loaded.set()
            needed = {source.folder.name for source in self._host.sources()}
            await asyncio.to_thread(remove_unused, self._platform.scratch, needed)

    async def run(self) -> None:
        """Sync at every notice, and every few seconds in case one was lost."""
        notices = asyncio.create_task(self._follow_notices(), name="endpoint notices")
        try:
            while True:
                try:
                    await self.sync()
                except AimassError as error:
                    log.warning("endpoints could not be compared with the registry: %s", error.detail)
                except Exception:
                    log.exception("endpoints could not be compared with the registry")
                self._noticed.clear()
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
                self._note(endpoint)
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
            self._note(endpoint, why, again=isinstance(error, AimassError) and error.retryable)
            return
        await self._host.swap(served)
        self._note(endpoint)
        log.info("endpoint=%s serves %s@%d %s", endpoint.name, endpoint.model, endpoint.version, served.source.variant)

    def _note(self, endpoint: Endpoint, error: str | None = None, *, again: bool = False) -> None:
        self._known[endpoint.name] = Applied(endpoint.generation, error)
        if error is not None:
            self._host.explain(endpoint.name, error)
        self._unreported.add(endpoint.name)
        (self._again.add if again else self._again.discard)(endpoint.name)

    async def _report(self) -> None:
        """Tell the registry what this process has made of the endpoints that it followed."""
        names, self._unreported = self._unreported, set()
        if not names:
            return
        try:
            async with self._platform.database.write() as session:
                await self._processes.report(session, {name: self._applied(name) for name in names})
        except BaseException:
            self._unreported |= names
            raise

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

    async def _forget(self, name: str) -> None:
        await self._host.remove(name)
        self._known.pop(name, None)
        self._again.discard(name)

    async def _tell(self, name: str) -> None:
        with contextlib.suppress(Unavailable):
            await self._platform.wake.publish(ENDPOINT_CHANNEL, name)


async def _check_alias(models: ModelReader, model: str, alias: str, loaded: int) -> None:
    points_at = await models.resolve_alias(model, alias)
    if points_at != loaded:
        raise _AliasMoved(points_at)


async def _pause(turn: int, deadline: float) -> bool:
    """Wait a little, longer with each turn; False, at once, after the deadline."""
    left_s = deadline - asyncio.get_running_loop().time()
    if left_s <= 0:
        return False
    await asyncio.sleep(min(left_s, _ASK_S[min(turn, len(_ASK_S) - 1)]))
    return True
