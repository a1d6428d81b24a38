"""This gateway process among all that share the registry: it says what it has applied, and hears what others have."""

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from app.core.errors import AimassError, Unavailable
from app.core.ids import new_id
from app.core.resources import Applied, Endpoint
from app.registry import gateways
from app.registry.session import WriteSession
from app.services.platform import Platform

log = logging.getLogger("aimass.processes")
_RETRY_S = 2.0
State = Literal["ready", "unloaded", "loading", "failed"]


@dataclass(frozen=True, slots=True)
class Standing:
    """What all live gateway processes together have made of an endpoint: the worst of them is its state."""

    state: State
    error: str | None
    processes: Mapping[str, int]  # how many there are in all (`total`), and `applied`, `loading`, `failed`

    @property
    def applied(self) -> bool:
        """True if every process has the endpoint as the registry has it."""
        return self.processes["applied"] == self.processes["total"]


def stand(endpoint: Endpoint, reports: Iterable[Applied | None]) -> Standing:
    """Put together what each process reports; None: it has not been heard of this endpoint."""
    counts: Counter[str] = Counter()
    error = None
    for report in reports:
        counts["total"] += 1
        if report is None or report.generation < endpoint.generation:
            counts["loading"] += 1
        elif report.error is None:
            counts["applied"] += 1
        else:
            counts["failed"] += 1
            error = error or report.error
    done: State = "ready" if endpoint.spec.get("loaded", True) else "unloaded"
    state: State = "failed" if counts["failed"] else "loading" if counts["loading"] else done
    return Standing(state, error, {key: counts[key] for key in ("total", "applied", "loading", "failed")})


def require_applied(endpoint: Endpoint, standing: Standing) -> None:
    """Unavailable, with their counts, unless every process has the endpoint as the registry has it."""
    if not standing.applied:
        counts = standing.processes
        raise Unavailable(
            f"'{endpoint.name}' has changed in {counts['applied']} of {counts['total']} gateway processes; "
            + (standing.error or "the others are on their way"),
            retry_after_s=_RETRY_S,
        )


class Processes:
    """Registers this process and keeps it alive in the registry. `number` is its place under a launcher."""

    def __init__(self, platform: Platform, number: int | None) -> None:
        self._platform = platform
        self._id = new_id()
        self._host = socket.gethostname()
        # Two launchers never share a data folder, and one never gives a number to two processes that live.
        self._slot = None if number is None else f"{self._host}:{platform.scratch}:{number}"

    async def join(self) -> None:
        """Register. Before the endpoints are loaded: a change that comes meanwhile has to wait for this process too."""
        async with self._platform.database.write() as session:
            await gateways.register(session, self._id, self._slot, self._host, os.getpid())

    async def leave(self) -> None:
        """Stop being waited for."""
        with contextlib.suppress(AimassError):
            async with self._platform.database.write() as session:
                await gateways.unregister(session, self._id)

    async def run(self, report_all: Callable[[], None]) -> None:
        """Say every few seconds that this process lives; `report_all` after it had been forgotten."""
        while True:
            try:
                if not await self._beat():
                    report_all()
            except AimassError as error:
                log.warning("the registry could not be told that this process lives: %s", error.detail)
            except Exception:
                log.exception("the registry could not be told that this process lives")
            await asyncio.sleep(gateways.HEARTBEAT_S)

    async def report(self, session: WriteSession, changes: Mapping[str, Applied | None]) -> None:
        """Say what this process has made of these endpoints; None: it has let go of one that was deleted."""
        await gateways.report(session, self._id, changes)

    async def others(self, endpoints: Sequence[str]) -> list[dict[str, Applied]]:
        """What each other live process has made of these endpoints."""
        async with self._platform.database.read() as session:
            found = await gateways.applied_by(session, endpoints)
        return [reports for gateway_id, reports in found.items() if gateway_id != self._id]

    async def _beat(self) -> bool:
        async with self._platform.database.write() as session:
            known = await gateways.heartbeat(session, self._id)
            if not known:
                await gateways.register(session, self._id, None, self._host, os.getpid())
        return known
