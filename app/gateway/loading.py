"""Keeps the models in this process's memory in step with the endpoints in the registry."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from app.core.errors import AimassError, Unavailable
from app.core.resources import Endpoint
from app.gateway.predict.ports import Listed
from app.queue.ports import ENDPOINT_CHANNEL
from app.registry.endpoints import EndpointReader, EndpointWriter
from app.registry.models import ModelReader, ModelWriter
from app.services.local_copies import remove_unused
from app.services.platform import Platform
from app.services.serve_version import choose_variant, serve_version
from app.serving.host import Host, ModelSource, ServedModel
from app.serving.types import Batching
from app.specs.endpoints import EndpointSpec

log = logging.getLogger("aimass.loading")
_REPOSITORY_STATES = {"ready": "READY", "loading": "LOADING", "unloaded": "UNAVAILABLE", "failed": "UNAVAILABLE"}
_REASONS = {"unloaded": "unloaded"}


@dataclass(frozen=True, slots=True)
class Loading:
    """What this process knows of one endpoint."""

    generation: tuple[float, int] | None  # None: to be tried again
    error: str | None = None


class Loader:
    """Loads what the registry names, swaps it in, and lets go of what it no longer names. One change at a time."""

    def __init__(self, platform: Platform, host: Host) -> None:
        self._platform = platform
        self._host = host
        self._known: dict[str, Loading] = {}
        self._lock = asyncio.Lock()
        self._noticed = asyncio.Event()
        self.synced = False

    def state(self, endpoint: Endpoint) -> tuple[str, str | None]:
        """(`ready`, `unloaded`, `loading` or `failed`, why) of an endpoint in this process."""
        known = self._known.get(endpoint.name)
        if known is None or known.generation != endpoint.generation:
            return "loading", None
        if known.error:
            return "failed", known.error
        return ("ready" if endpoint.spec.get("loaded", True) else "unloaded"), None

    def failures(self) -> dict[str, str]:
        """Endpoints whose latest revision could not be loaded here, and why."""
        return {name: known.error for name, known in self._known.items() if known.error}

    async def put(
        self, name: str, model: str, version: int, variant: str | None, spec: EndpointSpec
    ) -> tuple[Endpoint, bool]:
        """Load and prove the model, then route the endpoint to it: (the endpoint, whether it is new).

        Nothing has changed when this raises: the old version, if any, goes on serving.
        """
        async with self._lock:
            return await self._route(name, model, version, variant, spec)

    async def _route(
        self, name: str, model: str, version: int, variant: str | None, spec: EndpointSpec
    ) -> tuple[Endpoint, bool]:
        served, chosen = await self._load(name, model, version, variant, spec)
        async with self._platform.database.write() as session:
            await ModelWriter(session).pin(model, version)  # it may have been deleted while it was loaded
            row = spec.model_dump(mode="json")
            endpoint, new = await EndpointWriter(session).put(name, model, version, chosen, row)
        await (self._host.swap(served) if spec.loaded else self._host.remove(name))
        self._known[name] = Loading(endpoint.generation)
        self._host.expect(self._known)
        await self._tell(name)
        return endpoint, new

    async def index(self) -> list[Listed]:
        """Every endpoint, as the model repository extension lists it."""
        async with self._platform.database.read() as session:
            endpoints = await EndpointReader(session).all()
        states = [(endpoint, *self.state(endpoint)) for endpoint in endpoints]
        return [
            Listed(endpoint.name, str(endpoint.version), _REPOSITORY_STATES[state], why or _REASONS.get(state))
            for endpoint, state, why in states
        ]

    async def load(self, name: str) -> None:
        """Bring back an endpoint that was unloaded, or load it again. NotFound without one."""
        async with self._lock:
            async with self._platform.database.read() as session:
                endpoint = await EndpointReader(session).get(name)
            spec = EndpointSpec.model_validate(endpoint.spec).model_copy(update={"loaded": True})
            await self._route(name, endpoint.model, endpoint.version, endpoint.variant, spec)

    async def unload(self, name: str) -> None:
        """Free the endpoint's memory, in every gateway; it stays known. NotFound without one."""
        async with self._lock:
            async with self._platform.database.write() as session:
                endpoints = EndpointWriter(session)
                was = await endpoints.get(name)
                endpoint, _ = await endpoints.put(
                    name, was.model, was.version, was.variant, was.spec | {"loaded": False}
                )
            await self._host.remove(name)
            self._known[name] = Loading(endpoint.generation)
        await self._tell(name)

    async def follow_alias(self, model: str, alias: str, version: int) -> None:
        """Route the endpoints that go by the alias to the version; an error leaves the one that it meets as it was."""
        async with self._lock:
            async with self._platform.database.read() as session:
                routed = await EndpointReader(session).routed_by(model, alias)
            for endpoint in routed:
                spec = EndpointSpec.model_validate(endpoint.spec)
                await self._route(endpoint.name, model, version, spec.routes[0].variant, spec)

    async def delete(self, name: str) -> None:
        """Remove the endpoint; requests under way are finished."""
        async with self._lock:
            async with self._platform.database.write() as session:
                await EndpointWriter(session).delete(name)
            await self._forget(name)
            self._host.expect(self._known)
        await self._tell(name)

    async def sync(self) -> None:
        """Make this process serve what the registry says. A model that cannot be loaded leaves the old one serving."""
        async with self._lock:
            async with self._platform.database.read() as session:
                endpoints = await EndpointReader(session).all()
            self._host.expect(endpoint.name for endpoint in endpoints)
            for name in set(self._known) - {endpoint.name for endpoint in endpoints}:
                await self._forget(name)
            for endpoint in endpoints:
                if self.state(endpoint)[0] == "loading":
                    await self._follow(endpoint)
            self.synced = True
            needed = {served.source.folder.name for served in self._host.models()}
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
                self._known[endpoint.name] = Loading(endpoint.generation)
                return
            served, _ = await self._load(endpoint.name, endpoint.model, endpoint.version, endpoint.variant, spec)
        except Exception as error:  # noqa: BLE001 - one endpoint that cannot be loaded must not hold up the others
            why = error.detail if isinstance(error, AimassError) else f"{type(error).__name__}: {error}"
            log.warning(
                "endpoint=%s version=%s@%d cannot be loaded: %s",
                endpoint.name,
                endpoint.model,
                endpoint.version,
                why,
            )
            again = isinstance(error, AimassError) and error.retryable  # the store was away, say: the next sync tries
            self._known[endpoint.name] = Loading(None if again else endpoint.generation, why)
            return
        await self._host.swap(served)
        self._known[endpoint.name] = Loading(endpoint.generation)
        log.info("endpoint=%s serves %s@%d %s", endpoint.name, endpoint.model, endpoint.version, endpoint.variant)

    async def _load(
        self, name: str, model: str, version: int, variant: str | None, spec: EndpointSpec
    ) -> tuple[ServedModel, str]:
        async with self._platform.database.read() as session:
            found = await ModelReader(session).version(model, version)
        chosen = choose_variant(found, variant)
        folder, onnx = await serve_version(self._platform, found, chosen)
        defaults = self._platform.settings.serving
        batching = Batching(
            spec.batching.max_batch or defaults.max_batch,
            spec.batching.max_queue or defaults.max_queue,
            spec.batching.max_delay_ms,
            p95_s=spec.slo.p95_ms / 1e3 if spec.slo else None,
            cache_bytes=spec.cache.max_mb << 20 if spec.cache else 0,
        )
        return await self._host.load(
            ModelSource(name, model, version, chosen.name, folder, onnx, batching)
        ), chosen.name

    async def _forget(self, name: str) -> None:
        await self._host.remove(name)
        self._known.pop(name, None)

    async def _tell(self, name: str) -> None:
        with contextlib.suppress(Unavailable):
            await self._platform.wake.publish(ENDPOINT_CHANNEL, name)
